"""The driver on a bootstrap particle filter, against the Kalman filter."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.stats import norm
from numpy.testing import assert_allclose, assert_array_equal

from whence.inference.smc import (
    AbstractFeynmanKac,
    Resampler,
    advance,
    start,
    weigh,
)
from whence.inference.smc._resampling import SCHEMES
from whence.inference.smc._weights import effective_sample_size

RHO, NOISE, SIGHT = 0.9, 0.6, 0.8
TIMES = 15
REPEATS = 2_000


class Filter(AbstractFeynmanKac):
    """x_t = 0.9 x_{t-1} + noise, y_t = x_t + noise; the control is the time."""

    y: jax.Array
    num: int

    def initial(self, *, key):
        return jr.normal(key, (self.num,)), jnp.asarray(0, jnp.int32)

    def mutate(self, particles, log_weights, control, *, key):
        return RHO * particles + NOISE * jr.normal(key, particles.shape), control + 1

    def log_potential(self, particles, log_weights, control):
        return norm.logpdf(self.y[control], particles, SIGHT), control


def _data():
    rng = np.random.default_rng(5)
    x, y = rng.normal(), []
    for _ in range(TIMES):
        y.append(x + SIGHT * rng.normal())
        x = RHO * x + NOISE * rng.normal()
    return np.array(y)


def _kalman(y):
    """Return the exact log evidence and the mean of the last state."""
    mean, var, total = 0.0, 1.0, 0.0
    for t, value in enumerate(y):
        if t:
            mean, var = RHO * mean, RHO**2 * var + NOISE**2
        s = var + SIGHT**2
        total += -0.5 * (np.log(2 * np.pi * s) + (value - mean) ** 2 / s)
        mean, var = mean + var / s * (value - mean), var * SIGHT**2 / s
    return total, mean


def _run(model, resampler, key):
    key_start, key_steps = jr.split(key)
    cloud = start(model, key=key_start)
    log_potential, _ = model.log_potential(cloud.particles, cloud.log_weights, cloud.control)
    cloud, _ = weigh(cloud, log_potential)

    def step(cloud, key):
        cloud, did = advance(model, cloud, resampler, key=key)
        return cloud, did.resampled

    cloud, resampled = jax.lax.scan(step, cloud, jr.split(key_steps, TIMES - 1))
    return {
        "log_evidence": cloud.log_evidence.value,
        "variance": cloud.evidence_variance,
        "mean": jnp.sum(jnp.exp(cloud.log_weights) * cloud.particles),
        "plain_mean": jnp.mean(cloud.particles),
        "resampled": resampled.sum(),
        "ess": effective_sample_size(cloud.log_weights),
    }


@functools.cache
def _repeat(num, *resampler):
    model = Filter(jnp.asarray(_data()), num)
    keys = jr.split(jr.key(20261120), REPEATS)
    runs = jax.jit(jax.vmap(lambda k: _run(model, Resampler(*resampler), k)))(keys)
    return {name: np.asarray(value) for name, value in runs.items()}


SETTINGS = [
    ("systematic", 0.5),
    ("multinomial", 1.0),
    pytest.param("systematic", 1.0, marks=pytest.mark.slow),
    pytest.param("residual", 1.0, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("scheme", "threshold"), SETTINGS)
def test_evidence_is_unbiased_and_its_error_is_its_spread(scheme, threshold):
    runs = _repeat(100, scheme, threshold)
    exact, _ = _kalman(_data())
    ratio = np.exp(runs["log_evidence"] - exact)
    # Unbiased in Z, not in log Z, at any number of particles.
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / np.sqrt(REPEATS)
    assert ratio.std() / np.sqrt(REPEATS) < 0.03  # sharp enough to see a bias
    reported = np.sqrt(runs["variance"].mean())
    assert 0.8 < reported / ratio.std() < 1.25
    assert np.all(runs["resampled"] > 0)


def test_weighted_particles_estimate_the_filter_mean():
    runs = _repeat(100, "systematic", 0.5)
    _, mean = _kalman(_data())
    # The bias of a ratio is of order 1 / particles; the spread of the mean over 2000 runs
    # of 100 would resolve it, so it is allowed for.
    error = runs["mean"].std() / np.sqrt(REPEATS)
    assert abs(runs["mean"].mean() - mean) < 4.5 * error + 1.0 / 100
    assert abs(runs["plain_mean"].mean() - mean) > 0.05  # the weights matter


def test_a_threshold_of_zero_never_resamples_and_is_importance_sampling():
    runs = _repeat(100, "systematic", 0.0)
    assert np.all(runs["resampled"] == 0)
    exact, _ = _kalman(_data())
    ratio = np.exp(runs["log_evidence"] - exact)
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / np.sqrt(REPEATS)


def test_adaptive_resampling_keeps_the_threshold():
    runs = _repeat(100, "systematic", 0.5)
    assert np.all((runs["resampled"] > 0) & (runs["resampled"] < TIMES - 1))


def test_killing_every_particle_gives_no_evidence_and_no_nan(key):
    cloud = start(Filter(jnp.asarray(_data()), 10), key=key)
    dead, increment = weigh(cloud, jnp.full((10,), -jnp.inf))
    assert increment == -np.inf
    assert dead.log_evidence.value == -np.inf
    assert not np.isnan(np.asarray(dead.log_weights)).any()


class Still(AbstractFeynmanKac):
    """A filter whose particles stay where they are."""

    y: jax.Array
    num: int

    def initial(self, *, key):
        return jr.normal(key, (self.num,)), jnp.asarray(0, jnp.int32)

    def log_potential(self, particles, log_weights, control):
        return norm.logpdf(self.y[control], particles, SIGHT), control

    def mutate(self, particles, log_weights, control, *, key):
        return particles, control + 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_are_the_parents_of_one_step(scheme, key):
    """Where nothing moves, a particle stands where its ancestor stood."""
    model = Still(jnp.asarray(_data()), 50)
    cloud = start(model, key=key)
    moved = False
    for t, threshold in enumerate([0.0, 1.0, 1.0, 0.0]):
        new, did = advance(model, cloud, Resampler(scheme, threshold), key=jr.fold_in(key, t))
        assert did.ancestors.shape == (50,)
        assert_array_equal(new.particles, cloud.particles[did.ancestors])
        assert_array_equal(new.founders, cloud.founders[did.ancestors])
        assert_array_equal(did.resampled, threshold > 0)
        moved |= bool(np.any(np.asarray(did.ancestors) != np.arange(50)))
        if not threshold:
            assert_array_equal(did.ancestors, np.arange(50))
        cloud = new
    assert moved


def test_error_of_importance_sampling_is_that_of_a_mean():
    """One weighing, no resampling: the evidence is the mean of 50 weights."""
    model = Filter(jnp.asarray(_data()), 50)
    cloud = start(model, key=jr.key(3))
    assert_allclose(cloud.evidence_variance, 0.0, atol=1e-12)
    potential, _ = model.log_potential(cloud.particles, cloud.log_weights, cloud.control)
    weights = np.exp(np.asarray(potential))
    cloud, _ = weigh(cloud, potential)
    assert_allclose(
        cloud.evidence_variance, weights.var() / 50 / weights.mean() ** 2, rtol=1e-5
    )
