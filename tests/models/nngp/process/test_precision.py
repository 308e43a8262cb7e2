"""Numbers that single precision does not hold, arrays and NaN where numbers stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.models import nngp
from whence.models.nngp import InverseGamma, PointMass, ScaleMixture

NET = nngp.Serial(nngp.Dense(1.0, 0.1), nngp.ReLU(), nngp.Dense())
YEARS = np.linspace(1950, 2020, 50)[:, None]
Y = np.sin((YEARS[:, 0] - 1985) / 10) + 0.1 * np.random.default_rng(0).normal(size=50)
AT = np.array([[1960.5], [1984.0], [2015.5]])


def _single(*arrays):
    return [np.asarray(a, np.float32) for a in arrays]


def test_scaled_inputs_are_right_in_single_precision():
    scaled = [(v - 1985) / 20 for v in (YEARS, AT)]
    process = ScaleMixture(NET, InverseGamma(2.0, 1.0), 0.1)
    exact = process.condition(scaled[0], Y)
    x, y, at = _single(scaled[0], Y, scaled[1])
    given = process.condition(x, y)
    assert given.tril.dtype == np.float32
    assert_allclose(given.log_evidence, exact.log_evidence, atol=1e-2)
    ours, theirs = given.latent_marginals(at), exact.latent_marginals(scaled[1])
    assert_allclose(ours.mean, theirs.mean, atol=1e-3)
    assert_allclose(ours.variance, theirs.variance, rtol=1e-2)
    two = nngp.IndependentNoise(NET, 1.0, 0.1).condition(x, y).latent_marginals(at)
    theirs = nngp.IndependentNoise(NET, 1.0, 0.1).condition(scaled[0], Y)
    assert_allclose(two.variance, theirs.latent_marginals(scaled[1]).variance, rtol=1e-2)


def test_years_are_refused_in_single_precision():
    x, y, at = _single(YEARS, Y, AT)
    remedy = "scale the inputs.*enable_x64|enable_x64.*scale the inputs"
    process = ScaleMixture(NET, InverseGamma(2.0, 1.0), 0.1)
    two_scales = nngp.IndependentNoise(NET, 1.0, 0.1)
    large = lambda: nngp.condition_large(process, x, y, key=jax.random.key(0))
    trained = lambda: nngp.Trained(ScaleMixture(NET, PointMass()), x, y).last_layer(at)
    for refused in (
        lambda: process.condition(x, y),
        lambda: two_scales.condition(x, y),
        large,
        trained,
    ):
        with pytest.raises(ValueError, match=remedy):
            refused()
    assert jax.jit(lambda x: process.log_evidence(x, y))(x) == -np.inf
    assert two_scales.log_evidence(x, y) == -np.inf


def test_predictions_that_cancel_are_refused():
    """A deviation of a hundredth where the prior's is a hundred."""
    x, at = _single(np.linspace(-1, 1, 30)[:, None], np.array([[0.01]]))
    process = ScaleMixture(nngp.Dense(1.0, 1e5), PointMass(1.0), 1.0)
    given = process.condition(x, np.zeros(30, np.float32))
    with pytest.raises(ValueError, match="predictions at `x`, row 0.*enable_x64"):
        given.latent_marginals(at)
    assert np.isnan(jax.jit(lambda new: given.latent_marginals(new).variance)(at)).all()


def test_numbers_that_float32_would_round_are_refused():
    y = 20240101.0 + np.random.default_rng(0).normal(0, 0.3, 50)
    with jax.enable_x64(False):
        process = ScaleMixture(nngp.Dense(1.0, 0.1), PointMass(1.0), 0.1)
        for x, target, name in ((AT, y[:3], "y"), (y[:, None], Y, "x")):
            with pytest.raises(ValueError, match=f"`{name}` must keep its digits.*x64"):
                process.condition(x, target)


NUMBERS = {
    "noise": lambda v: ScaleMixture(NET, PointMass(), noise=v),
    "value": PointMass,
    "shape": lambda v: InverseGamma(v, 1.0),
    "weight_variance": nngp.Dense,
    "c": lambda v: nngp.BurrXII(v, 1.0),
    "jitter": lambda v: nngp.Classification(NET, PointMass(), AT / 2000, 2, jitter=v),
    "rate": nngp.Rbf,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_arrays_where_numbers_stand(name):
    make = NUMBERS[name]
    for value in (
        jnp.ones(3),
        np.ones(3),
        jnp.asarray(-1.0),
        np.asarray(-1.0),
        jnp.asarray(np.nan),
    ):
        with pytest.raises(ValueError, match=f"{name}. must be"):
            make(value)
    if name == "rate":  # part of the program
        return
    with pytest.raises(ValueError, match=f"{name}. must be"):
        jax.jit(lambda v: make(v))(jnp.ones(3))


def test_traced_numbers_out_of_range_have_no_density():
    x = np.array([[0.0], [1.0]])
    for make in (
        lambda v: ScaleMixture(NET, PointMass(), v),
        lambda v: ScaleMixture(NET, PointMass(v)),
    ):
        assert not np.isfinite(jax.jit(lambda v, m=make: m(v).log_evidence(x, x[:, 0]))(-1.0))


def test_inputs_that_are_not_finite_name_their_row():
    x = np.linspace(-1, 1, 15)[:, None]
    x[3] = np.nan
    for new in (x, jnp.asarray(x)):
        for process in (
            ScaleMixture(NET, PointMass(), 0.1),
            nngp.IndependentNoise(NET, 1.0, 0.1),
        ):
            with pytest.raises(ValueError, match="x. must be finite; row 3 is not"):
                process.condition(new, np.zeros(15))
    good = ScaleMixture(NET, PointMass(), 0.1).condition(x[:2], x[:2, 0])
    with pytest.raises(ValueError, match="must be finite; row 0"):
        good.latent_marginals(np.array([[np.inf]]))


def test_targets_that_are_not_expected_are_said():
    x = np.random.default_rng(0).uniform(-2, 2, (15, 1))
    process = ScaleMixture(NET, InverseGamma(2.0, 1.0), 0.1)
    said = " ".join(process.condition(x, 1e6 + 1e3 * np.sin(x[:, 0])).remarks)
    assert "Subtract the mean" in said
    assert "p-value" in said
    assert not process.condition(x, np.sin(x[:, 0])).remarks
    nothing = ScaleMixture(NET, nngp.Jeffreys(), 0.1).condition(x, 0 * x[:, 0])
    assert "log evidence is inf" in " ".join(nothing.remarks)
    two = nngp.IndependentNoise(NET, 1.0, 0.1).condition(x, 1e6 + np.sin(x[:, 0]))
    assert "Subtract the mean" in " ".join(two.remarks)
