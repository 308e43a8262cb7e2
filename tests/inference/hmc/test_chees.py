"""ChEES: invariance, moments, what it learns, and how it fails."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from arviz_stats.base import array_stats
from numpy.testing import assert_allclose
from scipy import stats

import whence as wh
from whence.core import AbstractTarget
from whence.inference.hmc import LowRankEstimator
from whence.inference.hmc._chees import chees_gradient
from whence.inference.hmc._common import van_der_corput
from whence.inference.hmc._integrator import PhasePoint
from whence.inference.hmc._metric import DiagonalMetric
from whence.testing import Gaussian, LogGamma, check_engine, check_truth


class Picky(AbstractTarget):
    """A standard normal whose density is zero (or its gradient NaN) where `x[0] < bound`."""

    bound: jax.Array

    def init(self, *, key):
        return jr.uniform(key, (2,), self.bound.dtype, -2.0, 2.0)

    def log_density(self, position):
        inside = -0.5 * jnp.sum(position**2)
        return jnp.where(position[0] >= self.bound, inside, -jnp.inf)

    def constrain(self, position):
        return {"x": position}


class TwoModes(AbstractTarget):
    """Two unit normals at -10 and 10, with no bridge between them."""

    middle: jax.Array

    def init(self, *, key):
        sign = jr.rademacher(key, (1,), self.middle.dtype)
        return 10 * sign + jr.normal(key, (1,), self.middle.dtype)

    def log_density(self, position):
        x = position[0] - self.middle
        return jnp.logaddexp(-0.5 * (x - 10) ** 2, -0.5 * (x + 10) ** 2)

    def constrain(self, position):
        return {"x": position}


@pytest.mark.slow
def test_conformance(key):
    check_engine(wh.ChEES(chains=24, warmup=160, draws=120), key=key)


@pytest.mark.parametrize(
    ("target", "metric"),
    [
        (Gaussian(10, condition_number=100.0, correlated=True), "diagonal"),
        (Gaussian(5, condition_number=1e6, correlated=True), "auto"),
    ],
    ids=["diagonal", "dense"],
)
def test_moments(target, metric, key):
    posterior = wh.infer(target, wh.ChEES(warmup=250, draws=150, metric=metric), key=key)
    check_truth(posterior, target, min_ess=1000.0)
    assert not posterior.stats["diverging"].any()


def _exact_start(engine, target, draws, key):
    """A state whose chains are exact draws, as if warm-up had ended there."""
    state = engine.init(target, key=key)
    lp, gradient = jax.vmap(jax.value_and_grad(target.log_density))(draws)
    return eqx.tree_at(
        lambda s: (s.position, s.log_density, s.gradient), state, (draws, lp, gradient)
    )


def _set_step(state, step_size):
    log = jnp.full_like(state.step_size.log_mean, jnp.log(step_size))
    return eqx.tree_at(lambda s: s.step_size.log_mean, state, log)


def test_frozen_kernel_keeps_a_skewed_target(key):
    """Chains that start from exact draws stay exact draws, however coarse the steps."""
    key_draws, key_run = jr.split(key)
    target = LogGamma((2.0,))
    engine = wh.ChEES(chains=20_000, warmup=10, draws=1, metric="diagonal")
    draws = jnp.log(jr.gamma(key_draws, 2.0, (engine.chains, 1)))
    state = _set_step(_exact_start(engine, target, draws, key), 1.2)

    @jax.jit
    def run(state):
        def one(state, index):
            state, info = engine.step(target, state, index, key=jr.fold_in(key_run, index))
            return state, info.stats["acceptance_rate"]

        return jax.lax.scan(one, state, 10 + jnp.arange(15, dtype=jnp.int32))

    state, rates = run(state)
    assert 0.5 < rates.mean() < 0.95  # the test would be empty if all were accepted
    gamma = np.exp(np.asarray(state.position[:, 0]))
    # Chains never talk after warm-up, so these are independent draws.
    assert stats.kstest(gamma, stats.gamma(2.0).cdf).pvalue > 1e-5
    moved = np.corrcoef(gamma, np.exp(np.asarray(draws[:, 0])))[0, 1]
    assert abs(moved) < 0.2


def test_gradient_of_the_criterion():
    """Against automatic differentiation, for the exact flow of a scaled normal."""
    scale = jnp.asarray([0.5, 2.0, 3.0])
    noise = jr.normal(jr.key(1), (2, 50, 3))
    # With mirrored pairs all means vanish at all times, as those of infinitely many do.
    position, momentum = jnp.concatenate([noise, -noise], axis=1)

    def flow(time):
        return (
            scale[None] * (position * jnp.cos(time) + momentum * jnp.sin(time)),
            momentum * jnp.cos(time) - position * jnp.sin(time),
        )

    def criterion(time):
        end = flow(time)[0] / scale[None]
        gain = jnp.sum(end**2, axis=1) - jnp.sum(position**2, axis=1)
        return 0.25 * jnp.mean(gain**2)

    whitening = DiagonalMetric(scale).dual()
    point = jax.vmap(lambda x, p: PhasePoint(x, p, jnp.zeros(()), x, x))
    before, after = point(scale[None] * position, momentum), point(*flow(0.7))
    ones = jnp.ones(100)
    got = chees_gradient(whitening, before, after, ones, ones > 0)
    assert_allclose(got, jax.value_and_grad(criterion)(0.7), rtol=1e-10)
    # A chain that blew up counts for nothing.
    spoilt = eqx.tree_at(lambda p: p.position, after, after.position.at[3].set(jnp.nan))
    others = chees_gradient(whitening, before, spoilt, ones, jnp.arange(100) != 3)
    assert np.isfinite(others).all()
    # Nor does one so far away that its square is infinite: it is never accepted.
    far = eqx.tree_at(lambda p: p.position, after, after.position.at[3].set(1e200))
    assert_allclose(chees_gradient(whitening, before, far, ones.at[3].set(0), ones > 0), others)


def test_van_der_corput():
    points = [van_der_corput(jnp.asarray(i, jnp.int32), np.dtype("float64")) for i in range(7)]
    assert_allclose(points, [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8])


def test_bad_starts_are_replaced(key):
    """Three starts in four are outside the support; every chain finds one inside."""
    target = Picky(jnp.asarray(1.0))
    posterior = wh.infer(target, wh.ChEES(chains=32, warmup=200, draws=200), key=key)
    x = posterior.variables["x"]
    assert (x[..., 0] >= 1).all()
    truth = stats.truncnorm(1, np.inf).mean()
    spread = x[..., 0].mean(axis=1).std(ddof=1) / np.sqrt(32)  # over independent chains
    assert abs(x[..., 0].mean() - truth) < 5 * spread
    assert np.unique(posterior.stats["step_size"]).size == 1  # frozen, and shared
    assert len(np.unique(posterior.stats["n_steps"], axis=0)) == 1  # no chain waits


def test_no_start_is_an_error(key):
    target = Picky(jnp.asarray(3.0))
    with pytest.raises(wh.InferenceError, match="initial points"):
        wh.infer(target, wh.ChEES(chains=4, warmup=10, draws=5), key=key)


def test_failure_to_mix_is_seen_in_rhat(key):
    target = TwoModes(jnp.asarray(0.0))
    posterior = wh.infer(target, wh.ChEES(chains=16, warmup=60, draws=60), key=key)
    x = posterior.variables["x"][..., 0]
    assert array_stats.rhat(x, chain_axis=0, draw_axis=1) > 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 3}, "`chains` must be at least 4; got 3"),
        ({"warmup": 5}, "`warmup` must be at least 10; got 5"),
        ({"draws": 0}, "`draws` must be at least 1; got 0"),
        ({"target_accept": 1.0}, "`target_accept` must be above 0 and below 1; got 1.0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"metric": "full"}, "`metric` must be"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        wh.ChEES(**options)


def test_metric_updates_double():
    engine = wh.ChEES(warmup=500)
    assert engine.metric_updates == (0, 1, 2, 5, 11, 23, 46, 93, 187, 375)
    assert engine.schedule.pauses == (1, 2, 3, 6, 12, 24, 47, 94, 188, 376)


def test_an_estimator_in_place_of_a_name(key):
    target = Gaussian(10, condition_number=100.0, correlated=True)
    engine = wh.ChEES(warmup=250, draws=150, metric=LowRankEstimator())
    check_truth(wh.infer(target, engine, key=key), target, min_ess=1000.0)
