"""Laws that depend on the time and on inputs: nothing may be one time off, exact or not."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from hidden_models import condition_dense
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal, norm

import whence as wh
from whence.inference.smc._filter import run_filter
from whence.inference.smc._particle_gibbs import conditional_path
from whence.inference.smc._smoothing import backward_path

GAPS = np.array([0.4, 3.0, 0.2, 2.0, 0.3, 4.0])
Y = np.array([0.9, 0.2, np.nan, 2.1, 3.4, 1.0])
RUNS = 2_000


class Drift(wh.StateSpaceModel):
    """A level with a push that grows in time, moved and seen by noise that inputs set."""

    def initial(self):
        return dist.Normal(0.5, 1.5)

    def transition(self, x, t, gap):
        return dist.Normal(0.8 * x + 0.3 * t, 0.5 * jnp.sqrt(gap))

    def emission(self, x, t, gap):
        return dist.Normal(x - 0.4 * t, 0.3 + 0.1 * gap)


class Proposed(Drift):
    """With proposals of its own, that are good and not exact."""

    def initial_proposal(self, y, gap):
        return dist.Normal(0.2 + 0.7 * y, 0.6)

    def proposal(self, x, y, t, gap):
        return dist.Normal(0.5 * (0.8 * x + 0.3 * t) + 0.5 * (y + 0.4 * t), 0.8)


def dense(y, gaps=GAPS):
    """Prior mean and covariance of the states, and what `condition_dense` makes of them."""
    num = len(y)
    mean, root = [0.5], np.zeros((num, num))
    root[0, 0] = 1.5
    for t in range(1, num):
        mean.append(0.8 * mean[-1] + 0.3 * t)
        root[t] = 0.8 * root[t - 1]
        root[t, t] = 0.5 * gaps[t] ** 0.5
    seen, times = ~np.isnan(y), np.arange(num)
    noise = np.diag((0.3 + 0.1 * gaps[seen]) ** 2)
    found = condition_dense(
        np.array(mean), root @ root.T, np.eye(num)[seen], noise, (y + 0.4 * times)[seen]
    )
    return np.array(mean), root @ root.T, found


def many(function, key, model=Drift):
    """What a function of a sequence, a draw and a key gives in many runs."""
    sequence = wh.condition(model(exact=False), Y, GAPS).sequence
    draw = sequence.constrain({})
    one = lambda k: function(sequence, draw, k)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jr.split(key, RUNS)))


@pytest.mark.parametrize("parallel", [False, True])
def test_evidence(parallel):
    target = wh.condition(Drift(parallel=parallel), Y, GAPS)
    assert target.model.form == "linear"
    assert_allclose(jax.jit(lambda: target.log_likelihood({}))(), dense(Y)[2][0], rtol=1e-10)


def test_joint_density_of_states_and_data():
    target = wh.condition(Drift(exact=False), Y, GAPS)
    path = np.random.default_rng(0).normal(size=6)
    mean, covariance, _ = dense(Y)
    seen, times = ~np.isnan(Y), np.arange(6)
    data = norm(path - 0.4 * times, 0.3 + 0.1 * GAPS).logpdf(Y)[seen].sum()
    prior = multivariate_normal(mean, covariance).logpdf(path)
    found = jax.jit(lambda x: target.log_density({"states": x}))(jnp.asarray(path))
    assert_allclose(found, prior + data, rtol=1e-9)


def test_data_that_come_later_and_data_given_none(key):
    """Means and standard deviations by 4,000 draws, in standard errors."""
    target, keys = wh.condition(Drift(), Y, GAPS), jr.split(key, 4_000)
    draw, ahead = target.constrain({}), np.array([0.5, 2.5])
    later = lambda k: target.predict_given(draw, (ahead, None, None), key=k)["y"]
    drawn = jax.jit(jax.vmap(later))(keys)
    gaps = np.append(GAPS, ahead)
    _, _, (_, mean, covariance) = dense(np.append(Y, [np.nan, np.nan]), gaps)
    sd = np.sqrt(np.diag(covariance)[-2:] + (0.3 + 0.1 * ahead) ** 2)
    off = drawn.mean(0) - (mean[-2:] - 0.4 * np.arange(6, 8))
    assert_allclose(off / sd * 4_000**0.5, 0, atol=4.5)
    assert_allclose(drawn.std(0) / sd, 1, atol=4.5 / np.sqrt(2 * 4_000))
    drawn = jax.jit(jax.vmap(lambda k: draw.predict(jnp.asarray(GAPS), key=k)))(keys)
    mean, covariance, _ = dense(Y)
    sd = np.sqrt(np.diag(covariance) + (0.3 + 0.1 * GAPS) ** 2)
    off = drawn.mean(0) - (mean - 0.4 * np.arange(6))
    assert_allclose(off / sd * 4_000**0.5, 0, atol=4.5)
    assert_allclose(drawn.std(0) / sd, 1, atol=4.5 / np.sqrt(2 * 4_000))


def test_two_filters(key):
    target = wh.condition(Drift(), Y, GAPS)
    method = wh.ParticleFilter(2_000)
    runs = [
        wh.smooth(target, method, smoother="two-filter", key=k).mean for k in jr.split(key, 8)
    ]
    _, _, (_, mean, covariance) = dense(Y)
    error = np.std(runs, axis=0) / 7**0.5
    assert np.all(error < 0.05 * np.sqrt(np.diag(covariance)))
    # Student's law with 7 degrees of freedom: beyond 7 is one in 5,000.
    assert np.all(np.abs(np.mean(runs, axis=0) - mean) < 7 * error + 0.01)


def check_paths(paths, weights):
    """Weighted means and neighbours' covariances, at 4.5 standard errors."""
    _, _, (_, mean, covariance) = dense(Y)
    centred = paths - mean
    for each, truth in (
        (centred, 0.0),
        (centred[:, 1:] * centred[:, :-1], np.diag(covariance, 1)),
    ):
        each = weights[:, None] * (each - truth)
        assert np.all(np.abs(each.mean(0)) < 4.5 * each.std(0) / RUNS**0.5)


@pytest.mark.parametrize("model", [Drift, Proposed])
def test_evidence_and_paths_of_small_filters_are_unbiased(model, key):
    # What is proposed makes weights uneven: the particles keep the ratio near to normal.
    proposal, particles = ("bootstrap", 40) if model is Drift else ("guided", 100)

    def one(sequence, draw, key):
        key_filter, key_path = jr.split(key)
        settings = wh.ParticleFilter(particles, proposal, threshold=1.0)
        cloud, history = run_filter(settings, sequence, draw, key=key_filter)
        path = backward_path(sequence, draw, history, key=key_path)
        return cloud.log_evidence.value, path

    z, paths = many(one, key, model)
    ratio = np.exp(z - dense(Y)[2][0])
    error = ratio.std() / RUNS**0.5
    assert error < 0.04
    assert abs(ratio.mean() - 1) < 4 * error
    check_paths(paths, ratio)


def test_particle_gibbs_leaves_paths_exact(key):
    exact = wh.smooth(wh.condition(Drift(), Y, GAPS), paths=RUNS, key=key)
    starts = jnp.asarray(np.moveaxis(exact.points[0], 1, 0))
    sequence = wh.condition(Drift(exact=False), Y, GAPS).sequence
    draw = sequence.constrain({})
    one = lambda path, k: conditional_path(sequence, draw, path, 8, key=k)
    moved = jax.jit(jax.vmap(one))(starts, jr.split(key, RUNS))
    check_paths(np.asarray(moved), np.ones(RUNS))
