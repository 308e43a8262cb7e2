"""The pool of persistent particles against its formulas, by brute force and autodiff."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp

from whence.inference.smc._kernels import Particles
from whence.inference.smc._persistent import Pool

NUM, DIM = 6, 2
TEMPERATURES = (0.0, 0.1, 0.4, 0.8)
LAST = 0.95


@pytest.fixture(scope="module")
def stages():
    """Log tilts and founders of four stages; one particle has no likelihood at all."""
    rng = np.random.default_rng(0)
    tilts = 2 * rng.normal(size=(4, NUM)) - 3
    tilts[0, 2] = -np.inf
    founders = rng.integers(0, NUM, size=(4, NUM))
    founders[0] = np.arange(NUM)
    return tilts, founders, rng.normal(size=(4, NUM, DIM))


@pytest.fixture(scope="module")
def fill(stages):
    """A function that makes a pool of these stages, heading for the last temperature.

    A constant is added to the log tilts.
    """
    tilts, founders, x = stages

    @jax.jit
    def fill(constant):
        pool = Pool.empty(jnp.zeros((NUM, DIM)), 5)
        for s in range(4):
            if s:
                pool, _ = pool.heading(jnp.asarray(TEMPERATURES[s]))
            points = Particles(jnp.asarray(x[s]), jnp.zeros(NUM), tilts[s] + constant)
            pool = pool.grown(points, jnp.asarray(founders[s], jnp.int32))
        return pool.heading(jnp.asarray(LAST))[0]

    return fill


@pytest.fixture(scope="module")
def pool(fill):
    return fill(0.0)


def log_weights(tilts, log_evidences, temperature):
    """Log of `exp(b l)` over the mixture of the stages, `(stage, particle)`."""
    tilts = jnp.where(jnp.isfinite(tilts), tilts, -1e3)
    each = zip(TEMPERATURES[: len(tilts)], log_evidences, strict=True)
    stages = jnp.stack([b * tilts - z for b, z in each])
    return temperature * tilts - jax.scipy.special.logsumexp(stages, axis=0)


def evidences(tilts, copies):
    """Log evidence at each temperature, with each particle so many times over."""
    found = [jnp.zeros(())]
    for s, temperature in enumerate((*TEMPERATURES[1:], LAST), start=1):
        logs = log_weights(tilts[:s], found, temperature)
        found.append(jnp.log(jnp.sum(copies[:s] * jnp.exp(logs)) / NUM))
    return jnp.stack(found)


@pytest.fixture(scope="module")
def truth(stages):
    """Log evidences, and their derivatives by how often each particle is there."""

    @jax.jit
    def both(copies):
        found = lambda copies: evidences(stages[0], copies)
        return found(copies), jax.jacrev(found)(copies)

    return jax.tree.map(np.asarray, both(jnp.ones((4, NUM))))


def test_evidence_and_effective_sample_size(pool, stages, truth):
    found = truth[0]
    assert_allclose(pool.log_evidences[:5], found, rtol=1e-10)
    logs = np.asarray(log_weights(stages[0], found[:4], LAST))
    log_evidence, ess = jax.jit(lambda b: pool.sums(b))(jnp.asarray(LAST))
    assert_allclose(log_evidence, found[-1], rtol=1e-10)
    assert_allclose(ess, np.exp(2 * logsumexp(logs) - logsumexp(2 * logs)), rtol=1e-10)


def test_error_is_by_the_influence_of_places_and_of_families(pool, stages, truth):
    founders, slopes = stages[1], truth[1]
    centred = slopes - slopes.mean(-1, keepdims=True)
    places = centred.sum(1)
    families = np.zeros_like(places)
    for s in range(4):
        np.add.at(families, (slice(None), founders[s]), centred[:, s])
    assert_allclose(pool.influence[:5, 0], places, rtol=1e-8, atol=1e-12)
    assert_allclose(pool.influence[:5, 1], families, rtol=1e-8, atol=1e-12)
    sums = (places[-1] ** 2).sum(), (families[-1] ** 2).sum()
    assert abs(sums[0] / sums[1] - 1) > 0.2
    assert_allclose(pool.variance, max(sums), rtol=1e-8)


def test_likelihoods_may_be_tiny(fill, pool):
    far = fill(-3_000.0)
    constants = -3_000 * np.array([*TEMPERATURES, LAST])
    assert_allclose(far.log_evidences[:5] - constants, pool.log_evidences[:5], rtol=1e-8)
    assert_allclose(far.influence, pool.influence, rtol=1e-8, atol=1e-12)


def test_particles_are_chosen_by_their_weights_with_all_that_is_theirs(pool, stages, truth):
    (tilts, founders, x), found = stages, truth[0]
    weights = np.exp(np.asarray(log_weights(tilts, found[:4], LAST)))
    expected = NUM * weights / weights.sum()
    choose = jax.jit(jax.vmap(lambda k: pool.choose(jnp.asarray(LAST), key=k)))
    points, owners = jax.tree.map(np.asarray, choose(jr.split(jr.key(0), 2_000)))
    # Which one is at which place: (run, place, stage, particle).
    same = (points.x[:, :, None, None] == x[None, None]).all(-1)
    assert (same.sum((2, 3)) == 1).all()
    counts = same.sum(1)
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    # The offset is uniform: a count above its floor is so with the probability of the rest.
    rest = expected - np.floor(expected)
    error = np.sqrt(rest * (1 - rest) / 2_000) + 1e-9
    assert np.all(np.abs(counts.mean(0) - expected) < 4.5 * error)
    stage, particle = np.nonzero(same.reshape(-1, 4, NUM).any(0))
    assert len(stage) > 10
    where = np.argmax(same.reshape(-1, 4 * NUM), axis=1)
    assert_array_equal(owners.ravel(), founders.ravel()[where])
    assert_allclose(points.log_tilt.ravel(), tilts.ravel()[where])
