"""Particle filters and smoothers against exact ones."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from hidden_models import (
    LEVEL_Y,
    Level,
    Regimes,
    Volatility,
    dense_level,
    enumerate_regimes,
)
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.inference.smc import States
from whence.inference.smc._filter import run_filter
from whence.inference.smc._smoothing import ancestral_path, backward_path, fixed_lag
from whence.inference.smc._states import warn_if_alone
from whence.testing import Gaussian

RUNS = 2_000
Y = np.where(np.arange(8) == 4, np.nan, LEVEL_Y)  # one of them is missing
FILTERS = {
    "bootstrap": wh.ParticleFilter(30),
    "guided": wh.ParticleFilter(10, "guided", threshold=0.8),
    "lookahead": wh.ParticleFilter(30, lookahead=True, resampling="ssp", threshold=1.0),
    "killing": wh.ParticleFilter(30, resampling="killing", threshold=1.0),
}


@functools.cache
def _target():
    return wh.condition(Level(s=0.7, r=0.5), Y)


def _many(function, runs, key=8):
    """Return what `function(sequence, draw, key)` gives in many runs."""
    sequence = _target().sequence
    draw = sequence.constrain({})
    found = jax.jit(jax.vmap(lambda k: function(sequence, draw, k)))(
        jr.split(jr.key(key), runs)
    )
    return jax.tree.map(np.asarray, found)


@functools.cache
def _runs(name):
    def one(sequence, draw, key):
        cloud, history = run_filter(FILTERS[name], sequence, draw, key=key)
        weights = jnp.exp(cloud.log_weights)
        last = cloud.particles.state
        return {
            "z": cloud.log_evidence.value,
            "variance": cloud.evidence_variance,
            "mean": weights @ last,
            "second": weights @ last**2,
            "plain": last.mean(),
            "resampled": history.resampled.sum(),
        }

    return _many(one, RUNS)


@pytest.mark.parametrize("name", FILTERS)
def test_evidence_is_unbiased_and_its_error_is_its_spread(name):
    runs, exact = _runs(name), dense_level(0.7, 0.5, Y)[0]
    ratio = np.exp(runs["z"] - exact)
    error = ratio.std() / np.sqrt(RUNS)
    assert abs(ratio.mean() - 1) < 4 * error
    assert error < 0.04  # sharp enough to see a bias
    if name != "killing":  # with 30 particles the error of its error is as large
        assert 0.7 < np.sqrt(runs["variance"].mean()) / ratio.std() < 1.4


@pytest.mark.parametrize("name", ["bootstrap", "guided", "lookahead"])
def test_weighted_particles_have_the_moments_of_the_filter(name):
    """Weighted by the evidence, the estimates are unbiased: no allowance for particles."""
    runs, (exact, mean, cov) = _runs(name), dense_level(0.7, 0.5, Y)
    ratio = np.exp(runs["z"] - exact)
    for value, truth in (("mean", mean[-1]), ("second", cov[-1, -1] + mean[-1] ** 2)):
        each = ratio * (runs[value] - truth)
        assert abs(each.mean()) < 4 * each.std() / np.sqrt(RUNS)
    assert abs((ratio * (runs["plain"] - mean[-1])).mean()) > 0.02 or name == "guided"


def test_a_guided_filter_is_nearly_exact_where_the_proposal_is_locally_optimal():
    assert _runs("guided")["z"].std() < 0.6 * _runs("bootstrap")["z"].std()


def test_paths_are_unbiased_whatever_the_number_of_particles():
    _, mean, cov = dense_level(0.7, 0.5, Y)
    exact = dense_level(0.7, 0.5, Y)[0]

    def one(sequence, draw, key):
        key_filter, key_path, key_back = jr.split(key, 3)
        settings = wh.ParticleFilter(20, threshold=1.0)
        cloud, history = run_filter(settings, sequence, draw, key=key_filter)
        ahead = backward_path(sequence, draw, history, key=key_back)
        lagged, weights = fixed_lag(history, 7)
        lag_mean = jnp.sum(jnp.exp(weights) * lagged, axis=1)
        path = ancestral_path(history, key=key_path)
        return cloud.log_evidence.value, path, ahead, lag_mean

    z, *paths = _many(one, RUNS)
    ratio = np.exp(z - exact)
    for path, varies in zip(paths, (True, True, False)):
        each = ratio[:, None] * (path - mean[None])
        # 8 times, 3 smoothers: normal deviates beyond 4.5 are one in 6,000 keys.
        assert np.all(np.abs(each.mean(0)) < 4.5 * each.std(0) / np.sqrt(RUNS))
        if varies:
            steps = ratio * (np.diff(path, axis=1)[:, 2] ** 2)
            truth = cov[3, 3] + cov[2, 2] - 2 * cov[2, 3] + (mean[3] - mean[2]) ** 2
            # Beginnings that belong to other ends show in the jumps between times.
            assert abs(steps.mean() - truth) < 4.5 * steps.std() / np.sqrt(RUNS)


def test_smoothers_of_many_particles_agree_with_the_exact_one(key):
    exact = wh.smooth(_target(), key=key)
    method = wh.ParticleFilter(4_000)
    for smoother in ("backward", "ancestors", wh.FixedLag(20)):
        found = wh.smooth(_target(), method, smoother=smoother, paths=1_000, key=key)
        # 1000 paths, of which those of ancestors share beginnings.
        assert np.all(np.abs(found.mean - exact.mean) < 6 * exact.sd / np.sqrt(1_000) + 0.02)
        assert_allclose(found.sd, exact.sd, rtol=0.2)
        assert_allclose(found.quantile(0.5), exact.mean, atol=0.25)
    filtered = wh.filter(_target(), method, key=key)
    assert filtered.ancestors.shape == (1, 8, 4_000)
    assert np.all(filtered.unique_ancestors[0, 1:] <= 4_000)
    assert np.all((filtered.largest_weight > 0) & (filtered.ess <= 4_000.5))
    assert_allclose(filtered.log_evidence_increment.sum(), filtered.log_evidence, rtol=1e-9)


def test_two_filters_agree_with_the_exact_smoother(key):
    for target in (_target(), wh.condition(Level(s=0.5, r=3.0), Y)):
        exact, method = wh.smooth(target, key=key), wh.ParticleFilter(1_000)
        runs = [
            wh.smooth(target, method, smoother="two-filter", key=k) for k in jr.split(key, 8)
        ]
        for got, truth in ((lambda r: r.sd, exact.sd), (lambda r: r.mean, exact.mean)):
            found = np.array([got(run) for run in runs])
            error = found.std(0) / np.sqrt(len(runs) - 1)
            assert np.all(error < 0.05 * exact.sd)
            # Student's law with 7 degrees of freedom: beyond 7 is one in 5,000.
            assert np.all(np.abs(found.mean(0) - truth) < 7 * error + 0.01)
    # The filter, which does not know the data to come, would not do.
    assert np.any(np.abs(wh.filter(target, key=key).mean - exact.mean) > 7 * error + 0.01)
    counts = wh.condition(Regimes(), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="needs continuous states"):
        wh.smooth(counts, wh.ParticleFilter(10), smoother="two-filter", key=key)


def test_a_short_lag_is_not_a_smoother(key):
    noisy = wh.condition(Level(s=0.5, r=3.0), Y)
    found = wh.smooth(noisy, wh.ParticleFilter(20_000), smoother=wh.FixedLag(1), key=key)
    until = [dense_level(0.5, 3.0, Y[: t + 2]) for t in range(7)]
    for t, (_, mean, cov) in enumerate(until):
        assert abs(found.mean[t] - mean[t]) < 6 * np.sqrt(cov[t, t] / 20_000) + 0.02
    exact = wh.smooth(noisy, key=key).mean
    assert np.abs(found.mean - exact).max() > 0.1  # twice what is allowed above


@pytest.mark.filterwarnings("ignore:One particle has most of the weight")
def test_a_particle_has_numbers_of_its_own_however_many_there_are(key):
    few, many = (
        wh.filter(_target(), wh.ParticleFilter(n, threshold=0.0), key=key) for n in (8, 32)
    )
    assert_array_equal(few.points, many.points[:, :, :8])


def test_online_is_the_same_as_all_at_once(key):
    method, whole = wh.ParticleFilter(50, resampling="stratified"), _target()
    state = method.start(wh.condition(Level(s=0.7, r=0.5), Y[:5]), key=key)
    for y in Y[5:]:
        state = method.update(state, y)
    again = method.start(whole, key=key)
    assert_array_equal(state.clouds.particles.state, again.clouds.particles.state)
    assert_array_equal(state.states.log_evidence, again.states.log_evidence)
    with pytest.raises(ValueError, match=r"`time` must be 8, .* back in time.*; got 3"):
        method.update(state, 1.0, time=3)
    with pytest.raises(ValueError, match=r"real numbers of shape \(\); got \[1"):
        method.update(state, [1.0, 2.0])
    with pytest.raises(wh.InferenceError, match=r"weight zero or NaN at time 8"):
        method.update(state, 1e200)


def test_draws_of_parameters_are_weighted_by_data_that_come_later(key):
    draws = {"s": np.array([[0.3, 1.2]]), "r": np.array([[0.5, 0.5]])}
    target = wh.condition(Level(), Y[:4])
    posterior = wh.Posterior.from_draws(target, draws)
    method = wh.ParticleFilter(20_000)
    state = method.start(target.at(posterior), key=key)
    for y in (3.0, 1.5):
        state = method.update(state, y)
    later = np.append(Y[:4], (3.0, 1.5))
    truth = [dense_level(s, 0.5, later)[0] - dense_level(s, 0.5, Y[:4])[0] for s in (0.3, 1.2)]
    log_weights = np.asarray(state.at.log_weights)
    assert_allclose(np.diff(log_weights), np.diff(truth), atol=0.15)


def test_mixture_over_a_posterior_is_between_the_states_of_its_draws(key):
    target = wh.condition(Level(), Y)
    posterior = wh.Posterior.from_draws(
        target, {"s": np.array([[0.3, 1.2]]), "r": np.array([[0.5, 1.0]])}
    )
    found = wh.smooth(target.at(posterior), key=key)
    each = [dense_level(s, r, Y) for s, r in ((0.3, 0.5), (1.2, 1.0))]
    assert_allclose(found.mean, (each[0][1] + each[1][1]) / 2, rtol=1e-9)
    gap = (each[0][1] - each[1][1]) ** 2 / 4
    variance = (np.diag(each[0][2]) + np.diag(each[1][2])) / 2 + gap
    assert_allclose(found.sd, np.sqrt(variance), rtol=1e-9)


def test_quantiles_weigh_draws_and_points():
    """Two draws of parameters with weights 3/4 and 1/4, two points each, by hand."""
    points, shares = np.array([[[0.0, 10.0]], [[20.0, 30.0]]]), np.array([[[0.8, 0.2]]] * 2)
    none = np.zeros((2, 1))
    found = States(
        none, none, points, np.log(shares), np.log([0.75, 0.25]), none[:, 0], none[:, 0]
    )
    # Weights of 0, 10, 20 and 30: 0.6, 0.15, 0.2 and 0.05.
    for q, value in ((0.5, 0.0), (0.7, 10.0), (0.9, 20.0), (0.97, 30.0)):
        assert_allclose(found.quantile(q), [value])
    assert_allclose(found.quantile([0.5, 0.9])[:, 0], [0.0, 20.0])


def test_finite_states_with_particles(key):
    counts = np.array([0.0, 3.0, np.nan, 7.0, 1.0])
    exact, paths, weights = enumerate_regimes(counts)
    found = wh.smooth(
        wh.condition(Regimes(), counts), wh.ParticleFilter(4_000), paths=2_000, key=key
    )
    assert abs(found.log_evidence[0] - exact) < 5 * found.log_evidence_error[0]
    share = (weights[:, None] * (paths == 2)).sum(0)
    assert_allclose((found.points[0] == 2).mean(1), share, atol=0.06)


def test_weights_that_are_all_zero_name_the_time_and_the_datum(key):
    class Bounded(wh.StateSpaceModel):
        def initial(self):
            return dist.Uniform(0.0, 1.0)

        def transition(self, x, t):
            return dist.Uniform(0.5 * x, 1.0)

        def emission(self, x, t):
            return dist.Uniform(x - 0.1, x + 0.1)

    target = wh.condition(Bounded(), np.array([0.5, 0.6, 3.25, 0.6]))
    with pytest.raises(wh.InferenceError, match=r"time 2 \(the datum is 3\.25\)"):
        wh.filter(target, wh.ParticleFilter(100), key=key)
    found = wh.filter(target, wh.ParticleFilter(100), key=key, throw=False)
    assert found.log_evidence[0] == -np.inf
    assert not np.isnan(found.ess[0, :2]).any()


def test_a_filter_of_one_particle_is_told(key):
    """Steps of 0.7 seen with noise of 1e-4: of 30 particles at most one is near a datum."""
    target = wh.condition(Level(s=0.7, r=1e-4), Y)
    exact = wh.filter(target, key=key).log_evidence
    with pytest.warns(wh.InferenceWarning, match="most of the weight at 7 of 8 times, first"):
        found = wh.filter(target, wh.ParticleFilter(30), key=key)
    assert abs(found.log_evidence - exact) > 10 * found.log_evidence_error
    guided = wh.filter(target, wh.ParticleFilter(30, "guided"), key=key)  # the remedy
    error = float(guided.log_evidence_error[0])
    assert error < 0.5
    assert_allclose(guided.log_evidence, exact, atol=4.5 * error)
    with pytest.warns(wh.InferenceWarning, match=r"at 1 of 2 times, first at time 6"):
        warn_if_alone(np.array([[20.0, 1.5], [9.0, 8.0]]), 5)


def test_bad_input_is_refused_in_words(key):
    with pytest.raises(ValueError, match="`particles` must be at least 2; got 1"):
        wh.ParticleFilter(1)
    with pytest.raises(ValueError, match="`threshold` must be .* at most 1; got 1.5"):
        wh.ParticleFilter(threshold=1.5)
    with pytest.raises(ValueError, match="`resampling` must be one of"):
        wh.ParticleFilter(resampling="best")
    with pytest.raises(ValueError, match="2 unknown parameters"):
        wh.smooth(wh.condition(Level(), Y), key=key)
    with pytest.raises(ValueError, match="must be a sequence of hidden states"):
        wh.smooth(Gaussian(2), key=key)
    with pytest.raises(ValueError, match="`smoother` must be"):
        wh.smooth(_target(), smoother="best", key=key)

    class Wide(Level):
        def transition(self, x, t):
            return dist.Normal(jnp.zeros(2), self.s)

    class Spread(Level):
        def emission(self, x, t):
            return dist.Normal(x * jnp.ones(2), self.r)

    with pytest.raises(ValueError, match=r"`transition` of Wide .* of the state, \(\).*\(2,\)"):
        wh.condition(Wide(), Y)
    with pytest.raises(ValueError, match=r"`emission` of Spread .* would broadcast"):
        wh.condition(Spread(), Y)
    target = wh.condition(Regimes(), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="`proposal='guided'` needs a normal law"):
        wh.filter(target, wh.ParticleFilter(10, "guided"), key=key)


@pytest.mark.slow
def test_volatility_filters_agree(key):
    """The guided filter and a bootstrap filter with many particles, where nothing is normal."""
    rng = np.random.default_rng(3)
    x = np.zeros(100)
    for t in range(1, 100):
        x[t] = 0.95 * x[t - 1] + 0.3 * rng.normal()
    y = np.exp(x / 2) * rng.normal(size=100)
    target = wh.condition(Volatility(phi=0.95, sigma=0.3, beta=1.0), y)
    many = wh.filter(target, wh.ParticleFilter(50_000), key=key)
    guided = wh.filter(target, wh.ParticleFilter(5_000, "guided", lookahead=True), key=key)
    error = np.hypot(many.log_evidence_error, guided.log_evidence_error)
    assert abs(many.log_evidence - guided.log_evidence) < 4 * error
