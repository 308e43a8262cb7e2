"""Finite networks: their moments over random weights are the kernels of the limit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import erf

from whence.models.nngp import (
    AbstractInitialisation,
    Conv,
    Dense,
    Erf,
    Flatten,
    GlobalAveragePooling,
    Independent,
    LowRank,
    Orthogonal,
    ReLU,
    Residual,
    Serial,
    Sparse,
)

ROWS = jnp.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
LAWS = [Independent(), Orthogonal(), LowRank(0.5), Sparse(0.25)]
SLOW = pytest.mark.slow
ONE = Serial(Dense(2.0, 0.1), Erf(), Dense(1.5))
TWO = Serial(Dense(2.0, 0.1), Erf(), Dense(2.0, 0.1), Erf(), Dense())
DENSE = Serial(
    Dense(2.0, 0.1),
    Residual(Serial(Erf(), Dense(1.5, 0.2), ReLU(), Dense(0.8))),
    Erf(),
    Dense(),
)


class Louder(AbstractInitialisation):
    """Weights a tenth too large, which every test here must notice."""

    def sample(self, shape, *, key):
        return 1.1 * jr.normal(key, shape)


def _readings(width, law):
    """Units of the layer below that each unit reads."""
    return round(law.density * width) if isinstance(law, Sparse) else width


def _draws(net, x, width, law, num, key, outputs=32):
    """Return `f f'` and `f^4` of networks, each averaged over outputs, a row for each."""

    @eqx.filter_jit
    def one(key):
        made = net.network(width, x.shape[1:], key=key, outputs=outputs, initialisation=law)
        values = jax.vmap(made)(x)
        return values @ values.T / outputs, jnp.mean(values**4, axis=1)

    keys = jr.split(key, num)
    return jax.tree.map(np.asarray, jax.jit(lambda k: jax.lax.map(one, k, batch_size=50))(keys))


def _mean_and_error(draws):
    return draws.mean(0), draws.std(0) / np.sqrt(len(draws))


def _off(found, truth, error, allowed=0.0):
    """Whether a mean is off by more than 4.5 standard errors and what theory allows."""
    return bool(np.any(np.abs(found - truth) > 4.5 * error + allowed))


@pytest.mark.parametrize("law", [pytest.param(x, marks=SLOW) for x in LAWS[:3]] + LAWS[3:])
def test_one_hidden_layer_is_exact_at_any_width(key, law):
    """Its units are independent and weights uncorrelated, so `E f f'` is the kernel.

    Where a unit reads m others with Gaussian weights, f is Gaussian given them, with a
    variance that is a mean over m: `E f^4 = 3 (k^2 + w^2 Var(erf^2) / m)`, exactly too.
    """
    second, fourth = _draws(ONE, ROWS, 8, law, 4000, key)
    mean, error = _mean_and_error(second)
    assert not _off(mean, ONE.nngp(ROWS), error)
    if isinstance(law, Independent | Sparse):
        q, _ = Dense(2.0, 0.1).diagonal(ROWS)
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        squares = erf(np.sqrt(np.asarray(q))[:, None] * nodes) ** 2
        moments = [squares**power @ weights / weights.sum() for power in (1, 2)]
        variance = 1.5**2 * (moments[1] - moments[0] ** 2)
        truth = 3 * (1.5**2 * moments[0] ** 2 + variance / _readings(8, law))
        assert not _off(fourth.mean(0), truth, _mean_and_error(fourth)[1])
        # As of a Gaussian it would be wrong: so far from the limit is this.
        if isinstance(law, Sparse):
            assert _off(
                fourth.mean(0), 3 * 1.5**2 * moments[0] ** 2, _mean_and_error(fourth)[1]
            )


def _kernel_of_two_layers(readings, num=100_000):
    """Return `E f f'` of `TWO` at finite width, and its standard error.

    Given the first layer, whose units are independent and Gaussian, a unit of the second is
    Gaussian with covariance S, a mean over the m units that it reads. So it is the mean of
    the limit's own map over draws of S: exact for every m, with no network drawn.
    """
    hidden = np.asarray(Dense(2.0, 0.1).nngp(ROWS)) + 1e-12 * np.eye(3)
    z = np.random.default_rng(0).normal(size=(num, readings, 3))
    units = erf(z @ np.linalg.cholesky(hidden).T)
    s = 0.1 + 2.0 * np.einsum("nmi,nmj->nij", units, units) / readings
    scale = 1 + 2 * np.einsum("nii->ni", s)
    return _mean_and_error(
        2 / np.pi * np.arcsin(2 * s / np.sqrt(scale[:, None] * scale[..., None]))
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS[::3], ids=repr)
def test_two_hidden_layers_are_off_the_limit_as_theory_says(key, law):
    """By an order of 1 / m, with m the units that one reads, not the width."""
    width = 16 if isinstance(law, Sparse) else 4
    assert _readings(width, law) == 4
    mean, error = _mean_and_error(_draws(TWO, ROWS, width, law, 20_000, key)[0])
    truth, own_error = _kernel_of_two_layers(4)
    assert not _off(mean, truth, np.hypot(error, own_error))
    assert _off(mean, TWO.nngp(ROWS), error)


def _extrapolated(net, x, width, law, num, key):
    """Return twice the mean at double width less that at `width`, and its standard error.

    Means differ from the limit by c / width and terms of order `width^-2`; c cancels.
    """
    narrow, wide = (
        _mean_and_error(_draws(net, x, w, law, num, k)[0])
        for w, k in zip((width, 2 * width), jr.split(key))
    )
    return 2 * wide[0] - narrow[0], np.sqrt(4 * wide[1] ** 2 + narrow[1] ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_width_goes_to_the_limit(key, law):
    limit = np.asarray(DENSE.nngp(ROWS))
    mean, error = _extrapolated(DENSE, ROWS, 16, law, 4000, key)
    left = limit.max() / _readings(16, law) ** 2
    assert not _off(mean, limit, error, left)


@pytest.mark.slow
def test_weights_that_are_too_large_are_noticed(key):
    mean, error = _mean_and_error(_draws(ONE, ROWS, 8, Louder(), 500, key)[0])
    assert _off(mean, ONE.nngp(ROWS), error)


@pytest.mark.slow
@pytest.mark.parametrize("law", [Louder()])
def test_weights_that_are_too_large_are_noticed_by_extrapolation(key, law):
    limit = np.asarray(DENSE.nngp(ROWS))
    mean, error = _extrapolated(DENSE, ROWS, 16, law, 4000, key)
    assert _off(mean, limit, error, limit.max() / 16**2)


@pytest.mark.slow
@pytest.mark.parametrize("last", [Flatten(), GlobalAveragePooling()], ids=repr)
def test_channels_go_to_the_limit(key, last):
    conv = Conv((3, 2), (2, 1), 2.0, 0.1)
    net = Serial(Conv((3, 3), None, 2.0, 0.1), ReLU(), conv, ReLU(), last, Dense(1.0, 0.3))
    x = jr.normal(jr.fold_in(key, 1), (2, 3, 3, 2))
    limit = np.asarray(net.nngp(x))
    mean, error = _extrapolated(net, x, 8, LowRank(0.5), 1500, key)
    assert not _off(mean, limit, error, limit.max() / 8**2)
    assert _off(1.2 * mean, limit, error, limit.max() / 8**2)


@pytest.mark.slow
def test_the_tangent_kernel_is_that_of_the_gradients(key):
    @eqx.filter_jit
    def tangent_kernels(width, keys):
        return jax.lax.map(lambda k: one(width, k), keys)

    def one(width, key):
        made = DENSE.network(width, 2, key=key)
        weights, rest = eqx.partition(made, eqx.is_inexact_array)
        jacobian = jax.vmap(lambda x: jax.grad(lambda w: eqx.combine(w, rest)(x)[0])(weights))
        rows = [j.reshape(3, -1) for j in jax.tree.leaves(jacobian(ROWS))]
        return sum(r @ r.T for r in rows)

    keys = jr.split(key, 600)
    narrow = _mean_and_error(np.asarray(tangent_kernels(24, keys[:300])))
    wide = _mean_and_error(np.asarray(tangent_kernels(48, keys[300:])))
    mean, error = 2 * wide[0] - narrow[0], np.sqrt(4 * wide[1] ** 2 + narrow[1] ** 2)
    # The variances are leaves too; they are constants of training and add nothing.
    limit = np.asarray(DENSE.kernel(ROWS).ntk)
    assert not _off(mean, limit, error, limit.max() / 24**2)
    assert _off(mean, limit * 1.2, error, limit.max() / 24**2)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_entries_have_unit_variance(key, law):
    shape = 12, 16
    matrices = jax.vmap(lambda k: law.sample(shape, key=k))(jr.split(key, 100))
    squares = np.asarray((matrices**2).mean((1, 2)))
    assert abs(squares.mean() - 1) < 4.5 * squares.std() / np.sqrt(100) + 1e-12
    means = np.asarray(matrices.mean((1, 2)))
    assert abs(means.mean()) < 4.5 * means.std() / np.sqrt(100)


def test_structure(key):
    square = Orthogonal().sample((20, 30), key=key)
    assert_allclose(square @ square.T, 30 * np.eye(20), atol=1e-12)
    assert np.linalg.matrix_rank(LowRank(0.25).sample((20, 30), key=key)) == 5
    assert np.all(np.sum(Sparse(0.2).sample((20, 30), key=key) != 0, axis=1) == 6)


WRONG = {
    "width. must be at least 1": lambda net, key: net.network(0, 2, key=key),
    "outputs. must be at least 1": lambda net, key: net.network(3, 2, key=key, outputs=0),
    "must end with .Dense": lambda net, key: Conv((1,)).network(4, (2, 1), key=key),
    "keep the shape of one example": lambda net, key: Residual(net).network(4, 2, key=key),
    "Dense. reads vectors": lambda net, key: net.network(4, (3, 2), key=key),
    "fraction. must be above 0": lambda net, key: LowRank(0.0),
    "density. must be above 0": lambda net, key: Sparse(1.5),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words, key):
    with pytest.raises(ValueError, match=words):
        WRONG[words](DENSE, key)
