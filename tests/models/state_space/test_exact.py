"""Exact filters and smoothers against dense Gaussian algebra and enumeration."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from hidden_models import (
    GAPS,
    LEVEL_Y,
    NILE,
    Level,
    Regimes,
    Trend,
    dense_level,
    dense_trend,
    enumerate_regimes,
)
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import whence as wh
from whence.models.linear_gaussian import _kalman as kalman

TREND_Y = np.array([[1.2, 0.7], [0.4, np.nan], [np.nan, np.nan], [-2.0, -2.4], [-2.2, -3.5]])
COUNTS = np.array([0.0, 3.0, np.nan, 7.0, 1.0])


def compiled(function, *arguments):
    """What a function gives, as one program."""
    return jax.jit(lambda *given: function(*given))(*arguments)


def given_rest(target):
    """Log density of each datum given all others."""
    return compiled(lambda: target.pointwise_given_rest(target.constrain({}))["y"])


@pytest.mark.parametrize("parallel", [False, True])
def test_evidence_with_uneven_gaps_and_missing_channels_is_that_of_the_dense_gaussian(parallel):
    target = wh.condition(Trend(parallel=parallel), TREND_Y, GAPS)
    assert target.model.form == "linear"
    assert not target.latents
    exact, _, _ = dense_trend(0.5, TREND_Y)
    assert_allclose(compiled(target.log_likelihood, {}), exact, rtol=1e-10)


def test_smoothed_and_filtered_moments_and_paths_are_those_of_the_dense_gaussian(key):
    target = wh.condition(Trend(), TREND_Y, GAPS)
    _, mean, cov = dense_trend(0.5, TREND_Y)
    found = wh.smooth(target, paths=4_000, key=key)
    assert_allclose(found.mean.ravel(), mean, rtol=1e-9)
    assert_allclose(found.sd.ravel(), np.sqrt(np.diag(cov)), rtol=1e-9)
    paths = np.moveaxis(found.points[0], 1, 0).reshape(4_000, -1)
    error = np.sqrt(np.diag(cov) / 4_000)
    assert np.all(np.abs(paths.mean(0) - mean) < 4.5 * error)
    # A covariance of normal draws has variance (c_ii c_jj + c_ij^2) / n.
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 4_000)
    assert np.all(np.abs(np.cov(paths.T) - cov) < 5 * spread)
    for t in (1, 3):
        _, so_far, cov = dense_trend(0.5, TREND_Y[: t + 1])
        filtered = wh.filter(target, key=key)
        assert_allclose(filtered.mean[t], so_far[-2:], rtol=1e-9)
        assert_allclose(filtered.sd[t], np.sqrt(np.diag(cov))[-2:], rtol=1e-9)


def test_density_of_each_datum_given_all_others():
    target = wh.condition(Level(s=0.7, r=0.5), LEVEL_Y)
    rest = given_rest(target)
    whole, _, _ = dense_level(0.7, 0.5, LEVEL_Y)
    for t in range(len(LEVEL_Y)):
        without = np.where(np.arange(len(LEVEL_Y)) == t, np.nan, LEVEL_Y)
        assert_allclose(rest[t], whole - dense_level(0.7, 0.5, without)[0], rtol=1e-9)
    # Data that all but determine the state: float32 must not take like from like.
    exact = wh.condition(Level(s=50.0, r=1e-3), LEVEL_Y)
    exact = given_rest(exact)
    with jax.enable_x64(False):
        target = wh.condition(Level(s=50.0, r=1e-3), LEVEL_Y.astype(np.float32))
        rest = given_rest(target)
    assert_allclose(rest, exact, rtol=1e-4)


def test_density_given_the_rest_with_errors_that_hang_together():
    errors, move = np.array([[0.5, 0.3], [0.3, 0.4]]), np.array([[0.8, 0.5], [-0.1, 0.6]])
    see = np.array([[1.0, 0.0], [-2.0, 1.0]])

    class Both(wh.StateSpaceModel):
        def initial(self):
            return dist.Normal(jnp.array([0.5, -0.2]), 1.0)

        def transition(self, x, t):
            return dist.Normal(move @ x, 0.6)

        def emission(self, x, t):
            return dist.MultivariateNormal(see @ x, errors)

    y = np.random.default_rng(3).normal(size=(4, 2))
    y[2, 0] = np.nan
    target = wh.condition(Both(), y)
    model = target.constrain({})
    rest = compiled(model.log_density_given_rest, target.y, *target.inputs)
    # Rows of `root` are states as made of all noise.
    root, mean = [np.eye(2, 8)], [np.array([0.5, -0.2])]
    for t in range(1, 4):
        mean.append(move @ mean[-1])
        root.append(move @ root[-1] + 0.6 * np.eye(2, 8, k=2 * t))
    h = np.kron(np.eye(4), see)
    spread = h @ np.concatenate(root)
    cov = spread @ spread.T + np.kron(np.eye(4), errors)
    seen = ~np.isnan(y.ravel())
    inverse = np.linalg.inv(cov[np.ix_(seen, seen)])
    precision = np.diag(inverse)
    off = inverse @ (y.ravel() - h @ np.concatenate(mean))[seen]
    want = 0.5 * (np.log(precision / (2 * np.pi)) - off**2 / precision)
    assert_allclose(np.ravel(rest)[seen], want, rtol=1e-9)


def test_forecasts_continue_the_filtered_state(key):
    posterior_of = wh.condition(Level(s=0.7, r=0.5), LEVEL_Y)
    keys = jr.split(key, 4_000)
    draw = posterior_of.constrain({})
    new = (None, None, 2)
    drawn = jax.vmap(lambda k: posterior_of.predict_given(draw, new, key=k)["y"])(keys)
    y = np.append(LEVEL_Y, [np.nan, np.nan])
    _, mean, cov = dense_level(0.7, 0.5, y)
    sd = np.sqrt(4 * np.diag(cov)[-2:] + 0.25)
    assert np.all(np.abs(drawn.mean(0) - 2 * mean[-2:]) < 4.5 * sd / np.sqrt(4_000))
    assert_allclose(drawn.std(0), sd, rtol=5 / np.sqrt(2 * 4_000))


def test_square_roots_keep_float32_right_where_covariances_lose_their_digits():
    class Diffuse(wh.StateSpaceModel):
        def initial(self):
            return dist.Normal(jnp.zeros(2), 1e3)

        def transition(self, x, t):
            return dist.Normal(jnp.stack([x[0] + x[1], x[1]]), 0.1)

        def emission(self, x, t):
            return dist.Normal(x[0], 0.1)

    y = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=60)))
    exact = float(compiled(wh.condition(Diffuse(), y).log_likelihood, {}))
    jax.config.update("jax_enable_x64", False)
    try:
        target = wh.condition(Diffuse(), y.astype(np.float32))
        roots = float(compiled(target.log_likelihood, {}))
        linear, data, seen = compiled(target.model._linear, target.y, None, None)
        system = linear.dense()
        fixed = lambda s: (s.sight, s.offset, s.variance)
        one = (system.sight[0], system.offset[0], jnp.diagonal(system.variance[0]))
        system = eqx.tree_at(fixed, system, one)
        covariances = float(compiled(kalman.log_evidence, system, data, seen))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert abs(roots - exact) < 1e-4 * abs(exact)
    assert not abs(covariances - exact) < 1e-2 * abs(exact)


@pytest.mark.parametrize(("parallel", "length"), [(False, 50_000), (True, 100)])
def test_long_chains_keep_their_digits_in_float32(parallel, length, key):
    class Two(wh.StateSpaceModel):
        def initial(self):
            return dist.Categorical(probs=jnp.array([0.7, 0.3]))

        def transition(self, x, t):
            return dist.Categorical(probs=jnp.array([[0.9, 0.1], [0.2, 0.8]])[x])

        def emission(self, x, t):
            return dist.Normal(jnp.array([-3.0, 40.0])[x], 20.0)

    y = np.random.default_rng(0).normal(20.0, 25.0, size=length)
    exact = wh.condition(Two(parallel=False), y)
    with jax.enable_x64(False):
        target = wh.condition(Two(parallel=parallel), y.astype(np.float32))
        evidence = float(compiled(target.log_density, {}))
        if not parallel:
            got = wh.smooth(target, key=key, paths=1).mean[:, 0]
    # Of 230,000 and 460 nats.
    assert abs(evidence - float(compiled(exact.log_density, {}))) < (1e-3 if parallel else 0.1)
    if not parallel:
        want = wh.smooth(exact, key=key, paths=1).mean[:, 0]
        assert np.abs(got - want).max() < 1e-4


def test_gradient_of_the_evidence_is_its_slope():
    target = wh.condition(Level(), LEVEL_Y)
    position = {"s": jnp.asarray(-0.3), "r": jnp.asarray(0.2)}
    gradient = jax.jit(jax.grad(target.log_density))(position)
    for name in position:
        step = lambda h, name=name: target.log_density({**position, name: position[name] + h})
        assert_allclose(gradient[name], (step(1e-5) - step(-1e-5)) / 2e-5, rtol=1e-6)


def test_exact_states_and_states_as_latents_are_one_model(key):
    """Integrated over the path, the joint density is the marginal one: by its ratio to it."""
    joint = wh.condition(Level(exact=False), LEVEL_Y)
    assert [latent.name for latent in joint.latents] == ["s", "r", "states"]
    position = joint.init(key=key)
    s, r = (float(np.exp(position[n])) for n in "sr")
    marginal = wh.condition(Level(), LEVEL_Y)
    left = {n: position[n] for n in "sr"}
    _, mean, cov = dense_level(s, r, LEVEL_Y)
    given = multivariate_normal(mean, cov).logpdf(np.asarray(position["states"]))
    assert_allclose(joint.log_density(position) - marginal.log_density(left), given, rtol=1e-8)


@pytest.mark.parametrize("parallel", [False, True])
def test_finite_states_against_enumeration(key, parallel):
    target = wh.condition(Regimes(parallel=parallel), COUNTS)
    assert target.model.form == "finite"
    exact, paths, weights = enumerate_regimes(COUNTS)
    assert_allclose(compiled(target.log_likelihood, {}), exact, rtol=1e-10)
    if parallel:
        return
    found = wh.smooth(target, paths=4_000, key=key)
    marginal = np.stack([(weights[:, None] * (paths == k)).sum(0) for k in range(3)], axis=1)
    assert_allclose(found.mean, marginal, rtol=1e-9)
    drawn = found.points[0].T @ 3 ** np.arange(5)
    counts = np.bincount(drawn, minlength=3**5)[paths @ 3 ** np.arange(5)]
    error = np.sqrt(4_000 * weights * (1 - weights))
    # 243 paths: the largest of as many normal deviates exceeds 5 once in 7,000 keys.
    assert np.all(np.abs(counts - 4_000 * weights) < 5 * error + 3)
    so_far = enumerate_regimes(COUNTS[:2])
    early = [(so_far[2] * (so_far[1][:, 1] == k)).sum() for k in range(3)]
    assert_allclose(wh.filter(target, key=key).mean[1], early, rtol=1e-9)
    rest = given_rest(target)
    without = COUNTS.copy()
    without[1] = np.nan
    assert_allclose(rest[1], exact - enumerate_regimes(without)[0], rtol=1e-9)


def test_nile_local_level():
    """The evidence is that of the dense Gaussian, and highest at published variances.

    15099 and 1469.1: Durbin and Koopman (2012), Time Series Analysis by State Space Methods,
    section 2.10.
    """

    class Nile(wh.StateSpaceModel):
        level: jax.Array
        noise: jax.Array

        def initial(self):
            return dist.Normal(0.0, jnp.sqrt(1e7))

        def transition(self, x, t):
            return dist.Normal(x, jnp.sqrt(self.level))

        def emission(self, x, t):
            return dist.Normal(x, jnp.sqrt(self.noise))

    target = wh.condition(Nile(jnp.asarray(1469.1), jnp.asarray(15099.0)), NILE)
    at = jax.jit(
        lambda *v: dataclasses.replace(target.model, level=v[0], noise=v[1]).log_likelihood(
            target.y
        )
    )
    steps = 1469.1 * np.minimum.outer(np.arange(100), np.arange(100))
    cov = 1e7 + steps + 15099.0 * np.eye(100)
    best = at(1469.1, 15099.0)
    assert_allclose(best, multivariate_normal(np.zeros(100), cov).logpdf(NILE), rtol=1e-9)
    for change in ((1400.0, 15099.0), (1540.0, 15099.0), (1469.1, 14700.0), (1469.1, 15500.0)):
        assert at(*change) < best
