"""Conditioning by products only, against Cholesky."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

from whence.models.nngp import (
    BurrXII,
    Dense,
    Draws,
    Erf,
    InverseGamma,
    Jeffreys,
    PointMass,
    ReLU,
    ScaleMixture,
    Serial,
    condition_large,
)
from whence.models.nngp.large import _kernel
from whence.models.nngp.large._gradient import evidence_gradient
from whence.models.nngp.large._solve import conjugate_gradients

NET = Serial(Dense(2.0, 0.1), ReLU(), Dense(2.0, 0.1), ReLU(), Dense())
LAWS = [InverseGamma(2.5, 1.5)]
MORE = [BurrXII(2.0, 1.0), Jeffreys(), PointMass(0.7), Draws(jnp.array([0.02, 0.03, 0.05]))]


def _data(rows, features=5, outputs=None):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(rows + 10, features))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=rows + 10)
    y = y if outputs is None else np.stack([y] + [y**2] * (outputs - 1), axis=1)
    return x[:rows], y[:rows], x[rows:]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_kernel, "SIDE", 64)


@pytest.fixture(scope="module")
def both():
    """Return 150 rows conditioned both ways, three tiles wide, the last not full."""
    side, _kernel.SIDE = _kernel.SIDE, 64
    x, y, new = _data(150)
    process = ScaleMixture(NET, LAWS[0], 0.1)
    exact = process.condition(x, y)
    large = condition_large(process, x, y, key=jr.key(1), rank=20, tolerance=1e-9)
    _kernel.SIDE = side
    return exact, large, new


def test_quadratic_is_within_its_bound(both):
    exact, large, _ = both
    lacks = float(exact.quadratic - large.quadratic)
    rounding = 1e-12 * float(exact.quadratic)
    assert -rounding <= lacks <= large.quadratic_error + rounding
    assert large.quadratic_error < 1e-10 * float(exact.quadratic)
    assert_allclose(large.conflict, exact.conflict, rtol=1e-9)
    weights = np.linalg.solve(exact.tril.T, exact.white)
    # In the norm of A, which is at least the noise, it is off by the root of that error.
    off = np.sum((large.weights - weights) ** 2)
    assert off <= (large.quadratic_error + rounding) / 0.1


def test_log_det_is_within_its_standard_error(both):
    exact, large, _ = both
    assert_allclose(large.log_det, exact.log_det, atol=4.5 * large.log_det_error)
    assert large.log_det_error < 1
    assert_allclose(large.log_evidence, exact.log_evidence, atol=4.5 * large.log_evidence_error)


@pytest.mark.slow
def test_standard_error_is_right():
    """Over 60 keys the errors of the log determinant have the spread that is reported."""
    x, y, _ = _data(40)
    process = ScaleMixture(NET, LAWS[0], 0.1)
    exact = float(process.condition(x, y).log_det)
    made = [
        condition_large(process, x, y, key=key, rank=8, probes=16)
        for key in jr.split(jr.key(2), 60)
    ]
    z = np.array([(float(m.log_det) - exact) / m.log_det_error for m in made])
    # Student's t with 15 degrees of freedom has variance 15/13, and kurtosis 3 + 6/11.
    assert abs(z.mean()) < 4.5 * np.sqrt(15 / 13 / 60)
    assert abs(np.mean(z**2) - 15 / 13) < 4.5 * 15 / 13 * np.sqrt((2 + 6 / 11) / 60)


def test_predictions_are_within_their_bounds(both):
    exact, large, new = both
    loc, covariance = exact.moments(new)
    for tolerance in (0.1, 1e-8):
        got = large.moments(new, tolerance=tolerance)
        above = np.asarray(got.variance - jnp.diagonal(covariance))
        assert np.all(above >= -1e-10)
        assert np.all(above <= got.variance_error + 1e-10)
        assert np.all(got.variance_error <= 1.0001 * tolerance * got.variance)
    assert np.all(np.abs(got.loc - loc)[:, 0] <= got.loc_error + 1e-10)
    assert_allclose(got.loc, loc, atol=1e-5)
    assert_allclose(got.variance, jnp.diagonal(covariance), rtol=1e-7)


@pytest.mark.parametrize(
    "law",
    [*LAWS, *(pytest.param(law, marks=pytest.mark.slow) for law in MORE)],
    ids=lambda law: type(law).__name__,
)
def test_marginals_of_every_law(both, law):
    exact, large, new = both
    exact, large = (
        eqx.tree_at(lambda c: c.process, c, ScaleMixture(NET, law, 0.1)) for c in both[:2]
    )
    joint = exact.observation(new)
    got = large.observation_marginals(new, tolerance=1e-8)
    assert got.batch_shape == (10,)
    assert_allclose(got.mean, joint.mean, atol=1e-5)
    assert_allclose(got.variance, joint.variance, rtol=1e-5)
    each = exact.observation_marginals(new)
    assert_allclose(got.log_prob(0.3), each.log_prob(0.3), rtol=1e-4)
    latent = large.latent_marginals(new, tolerance=1e-8)
    assert_allclose(latent.variance, exact.latent_marginals(new).variance, rtol=1e-4)


@pytest.mark.parametrize("memory", [0.0, pytest.param(1.2e-4, marks=pytest.mark.slow)])
def test_recomputed_and_in_float32(both, small_tiles, memory):
    exact, _, new = both
    x, y = exact.x, exact.y
    large = condition_large(
        exact.process, x, y, key=jr.key(1), rank=20, tolerance=1e-3, memory=memory
    )
    said = " ".join(large.remarks)
    assert ("computed anew" in said) == (large.kernel.tiles is None) == (memory == 0)
    assert ("stored in float32" in said) == (memory > 0)
    assert_allclose(large.quadratic, exact.quadratic, rtol=1e-5)
    assert_allclose(large.log_det, exact.log_det, atol=4.5 * large.log_det_error)
    got = large.moments(new, tolerance=1e-3)
    assert_allclose(got.variance, jnp.diagonal(exact.moments(new)[1]), rtol=2e-3)


def test_gradient_of_a_bilinear_form(both):
    _, large, _ = both
    left, right = jr.normal(jr.key(7), (2, 150, 3))
    network, noise = evidence_gradient(large.kernel, left, right)

    def form(process):
        covariance = process.network.nngp(large.x) + process.noise * jnp.eye(150)
        return jnp.sum(left * (covariance @ right))

    truth = eqx.filter_jit(eqx.filter_grad(form))(large.process)
    assert_allclose(noise, truth.noise, rtol=1e-12)
    for ours, dense in zip(jax.tree.leaves(network), jax.tree.leaves(truth.network)):
        assert_allclose(ours, dense, rtol=1e-9)


@pytest.mark.slow
def test_gradient_of_the_evidence(both, small_tiles):
    """Against autodiff through Cholesky, in standard errors over keys."""
    exact, _, _ = both
    truth = eqx.filter_grad(lambda p: p.log_evidence(exact.x, exact.y))(exact.process)
    keys = jr.split(jr.key(3), 6)
    runs = [
        condition_large(
            exact.process, exact.x, exact.y, key=k, rank=60, probes=64, tolerance=1e-8
        )
        for k in keys
    ]

    leaves = [jax.tree.leaves(run.gradient()) for run in runs]
    errors = []
    for values, expected in zip(np.array(leaves).T, jax.tree.leaves(truth)):
        errors.append(values.std(ddof=1) / np.sqrt(len(keys)))
        # 5 degrees of freedom: 8 standard errors are passed by chance in 1 of 2000.
        assert abs(values.mean() - expected) < 8 * errors[-1] + 1e-6 * abs(expected)
    # By the noise, half the trace of B^-1 W^2: random signs err by what is off its diagonal.
    whiten = np.asarray(runs[0].whiten(jnp.eye(150)))
    covariance = np.asarray(exact.tril @ exact.tril.T)
    matrix = np.linalg.solve(whiten @ covariance @ whiten, whiten @ whiten) / 2
    matrix = (matrix + matrix.T) / 2
    rest = matrix - np.diag(np.diagonal(matrix))
    expected = np.sqrt(2 * np.sum(rest**2) / 64 / len(keys))
    # A deviation over 6 runs is within a third and twice of its value but for 1 in 100.
    assert expected / 4 < errors[-1] < 3 * expected


@pytest.mark.slow
def test_outputs_share_the_scale(small_tiles):
    x, y, new = _data(150, outputs=2)
    process = ScaleMixture(NET, MORE[0], 0.2)
    exact = process.condition(x, y)
    large = condition_large(process, x, y, key=jr.key(4), rank=20, tolerance=1e-6)
    assert large.size == 300
    assert_allclose(large.quadratic, exact.quadratic, rtol=1e-6)
    assert_allclose(large.log_det, exact.log_det, atol=4.5 * large.log_det_error)
    assert large.latent_marginals(new).batch_shape == (10, 2)
    assert_allclose(large.moments(new).loc, exact.moments(new)[0], atol=1e-3)


def test_not_converged_is_said(small_tiles):
    x, y, _ = _data(150)
    process = ScaleMixture(NET, LAWS[0], 1e-6)
    large = condition_large(process, x, y, key=jr.key(5), rank=20, max_steps=3)
    assert any("did not converge" in said for said in large.remarks)
    assert float(process.condition(x, y).quadratic - large.quadratic) <= large.quadratic_error


def test_conjugate_gradients_at_the_identity():
    right = jnp.array([[1.0, 0.0], [2.0, 0.0]])
    done = conjugate_gradients(lambda u: u, right, lambda *_: False, max_steps=9)
    assert_allclose(done.solution, right)
    assert_allclose(done.quadratic, [5.0, 0.0])
    assert done.steps < 9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_two_thousand_rows(dtype):
    x, y, new = _data(2000, features=20)
    net = Serial(*(layer for _ in range(3) for layer in (Dense(2.0, 0.1), ReLU())), Dense())
    process = ScaleMixture(net, InverseGamma(2.0, 1.0), 0.1)
    exact = process.condition(x, y)
    large = condition_large(process, x.astype(dtype), y, key=jr.key(6), rank=300)
    assert_allclose(large.quadratic, exact.quadratic, rtol=2e-5)
    assert_allclose(large.log_det, exact.log_det, atol=4.5 * large.log_det_error)
    assert large.log_det_error < 5
    assert_allclose(large.log_evidence, exact.log_evidence, atol=4.5 * large.log_evidence_error)
    loc, covariance = exact.moments(new)
    got = large.moments(new)
    assert_allclose(got.loc, loc, atol=5e-3)
    assert_allclose(got.variance, jnp.diagonal(covariance), rtol=0.0105)
    posterior = large.scale
    assert isinstance(posterior, dist.InverseGamma)
    assert_allclose(posterior.mean, exact.scale.mean, rtol=2e-5)


def _given(**options):
    x, y, _ = _data(20)
    noise, x = options.pop("noise", 0.1), options.pop("x", x)
    options = {"key": jr.key(0)} | options
    return condition_large(ScaleMixture(NET, LAWS[0], noise), x, y, **options)


WRONG = {
    "noise. of .process. must be above 0": {"noise": 0.0},
    "tolerance. must be positive": {"tolerance": 0.0},
    "rank. must be at least 1 and at most 20": {"rank": 21},
    "probes. must be at least 2": {"probes": 1},
    "memory. must be at least 0": {"memory": -1.0},
    "max_steps. must be at least 1": {"max_steps": 0},
    "must be finite": {"x": np.full((20, 5), np.inf)},
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        _given(**WRONG[words])


def test_a_kernel_that_rounds_to_below_zero():
    """Months in years: to this network all but one input, whose kernel rounds by 1e-11."""
    network = Serial(Dense(1.0, 0.1), Erf(), Dense())
    x = 2001.0 + np.arange(60)[:, None] / 12
    process, y = ScaleMixture(network, InverseGamma(2.0, 1.0), noise=0.1), np.sin(x[:, 0])
    large, exact = condition_large(process, x, y, key=jr.key(0)), process.condition(x, y)
    assert_allclose(large.log_evidence, exact.log_evidence, rtol=1e-6)
    found, truth = large.latent_marginals(x[:3]), exact.latent_marginals(x[:3])
    assert_allclose(found.mean, truth.mean, rtol=1e-5)
