"""SGLD against its exact stationary law, and its behaviour when things go wrong.

For a linear gradient the chain is autoregressive of order one with coefficient
`rho = 1 - h a`. A sum of squares of `n` of its values then has a relative variance of
`2 (1 + rho^2) / (1 - rho^2) / n`, which gives the tolerances below.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import polygamma

from whence.core._engine import Trace
from whence.core._results import RESULTS
from whence.core._target import AbstractDataTarget, AbstractTarget
from whence.inference.sgmcmc import (
    SGLD,
    SGMCMC,
    ConstantStep,
    Curvature,
    Identity,
    MinibatchGradient,
    PolynomialDecay,
    RMSprop,
)
from whence.running._infer import InferenceError, infer


class Gaussian(AbstractTarget):
    """Independent Gaussian coordinates around zero, in a pytree."""

    precision: jax.Array

    def init(self, *, key):
        return {"x": jr.normal(key, self.precision.shape, self.precision.dtype)}

    def log_density(self, position):
        return -0.5 * jnp.sum(self.precision * position["x"] ** 2)

    def constrain(self, position):
        return position


class LinearNoise(AbstractDataTarget):
    """A standard normal prior and rows that add up to nothing: pure gradient noise."""

    slope: jax.Array  # (data, dim), columns of mean zero

    @property
    def num_data(self):
        return len(self.slope)

    def init(self, *, key):
        return jr.normal(key, self.slope.shape[1:])

    def log_prior(self, position):
        return -0.5 * jnp.sum(position**2)

    def log_likelihood(self, position, rows=None):
        return (self.slope if rows is None else self.slope[rows]) @ position

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


class GaussianMean(AbstractDataTarget):
    """The mean of unit-variance data under a flat prior; coordinates are independent."""

    y: jax.Array  # (data, dim)

    @property
    def num_data(self):
        return len(self.y)

    def init(self, *, key):
        return jr.normal(key, self.y.shape[1:], self.y.dtype)

    def log_prior(self, position):
        return jnp.zeros((), position.dtype)

    def log_likelihood(self, position, rows=None):
        y = self.y if rows is None else self.y[rows]
        return -0.5 * jnp.sum((y - position[None]) ** 2, 1)

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


class LogGamma(AbstractTarget):
    """The logarithm of a Gamma(3) variable, many independent copies: skewed."""

    def init(self, *, key):
        return jr.normal(key, (50,))

    def log_density(self, position):
        return jnp.sum(3 * position - jnp.exp(position))

    def constrain(self, position):
        return position


class Cliff(AbstractTarget):
    """A slope, up to a wall beyond which the log density is not a number."""

    def init(self, *, key):
        return jr.normal(key, (3,))

    def log_density(self, position):
        return jnp.sum(position * jnp.where(position < 10, 1.0, jnp.nan))

    def constrain(self, position):
        return position


def run(engine, target, key, start=0, states=None):
    """All chains of an engine, vmapped; states and `Info` with axes (chain, step, ...)."""
    keys = jr.split(key, engine.chains)

    @jax.jit
    def program(target, keys, states):
        def chain(chain_key, state):
            def body(state, index):
                return engine.step(target, state, index, key=jr.fold_in(chain_key, index))

            indices = jnp.arange(start, engine.schedule.steps, dtype=jnp.int32)
            return jax.lax.scan(body, state, indices)

        return jax.vmap(chain)(keys, states)

    if states is None:
        states = jax.jit(jax.vmap(lambda k: engine.init(target, key=k)))(keys)
    return program(target, keys, states)


def draws(engine, target, key):
    engine.validate(target)
    states, info = run(engine, target, key)
    assert_array_equal(states.nonfinite_at, -1)
    first = engine.schedule.warmup
    return jax.tree.map(lambda x: np.asarray(x[:, first:]), info.position)


def relative_error(rho, thin, count):
    """Standard deviation of a mean square of an autoregression, relative to its mean."""
    square = rho ** (2 * thin)
    return np.sqrt(2 * (1 + square) / (1 - square) / count)


def test_stationary_variance_with_full_gradients(key):
    precision = jnp.repeat(jnp.asarray([0.5, 1.0, 4.0]), 100)
    engine = SGLD(steps=40_000, thin=10, warmup=4_000, step_size=0.1)
    x = draws(engine, Gaussian(precision), key)["x"].reshape(4, -1, 3, 100)
    for i, a in enumerate([0.5, 1.0, 4.0]):
        expected = 1 / (1 - 0.1 * a / 2) / a
        error = relative_error(1 - 0.1 * a, 10, x[:, :, i].size)
        assert error < 0.005  # so that the bias is visible: 2.6%, 5.3% and 25%
        assert_allclose((x[:, :, i] ** 2).mean(), expected, rtol=4.5 * error)
        assert_allclose(x[:, :, i].mean(), 0, atol=4.5 * error * expected**0.5)


def test_stationary_variance_with_gradient_noise(key):
    # N^2 s^2 / b = 4 with N = 100, b = 10 and rows of plus or minus s.
    slope = np.sqrt(4 * 10 / 100**2) * np.repeat([1.0, -1.0], 50)[:, None] * np.ones(100)
    engine = SGLD(
        steps=40_000, thin=10, warmup=4_000, step_size=0.1, batch_size=10, batching="iid"
    )
    x = draws(engine, LinearNoise(jnp.asarray(slope)), key)
    # All columns are the same rows, so their gradient noise is shared: count chains' worth.
    independent = x.shape[0] * x.shape[1]
    error = relative_error(0.9, 10, independent)
    expected = (1 + 0.1 * 4 / 2) / (1 - 0.1 / 2)
    assert_allclose(expected, 1.2632, atol=1e-4)
    assert_allclose((x**2).mean(), expected, rtol=4.5 * error)


def mean_model(key, num_data=100, dim=40):
    y = jr.normal(key, (num_data, dim))
    y = (y - y.mean(0)[None]) / y.std(0)[None]  # so that the scatter is one in every coordinate
    return GaussianMean(y), num_data, 0.2 / num_data


def test_minibatches_with_replacement(key):
    key_y, key_run = jr.split(key)
    target, n, h = mean_model(key_y)
    engine = SGLD(
        steps=40_000, thin=10, warmup=4_000, step_size=h, batch_size=10, batching="iid"
    )
    x = draws(engine, target, key_run)
    noise = n**2 / 10
    expected = (1 + h * noise / 2) / (1 - h * n / 2) / n
    # Rows are shared by the coordinates but random; the correlation is of order 1 / sqrt(n).
    error = relative_error(1 - h * n, 10, x.size)
    assert_allclose((x**2).mean(), expected, rtol=4.5 * 1.5 * error)
    assert expected * n > 2  # mostly noise of the batches


def reshuffled_variance(n, b, h):
    """Exact variance after all but the last update of an epoch, by propagating moments."""
    m, rho = n // b, 1 - h * n
    # The errors of the m batches of an epoch add up to zero.
    single = n**2 / b * (n - b) / (n - 1)
    covariance = single * (np.eye(m) * m - 1) / (m - 1)

    def contribution(weights):
        return h**2 * weights @ covariance[: len(weights), : len(weights)] @ weights + (
            2 * h * (weights**2).sum()
        )

    epoch_end = contribution(rho ** np.arange(m - 1, -1, -1)) / (1 - rho ** (2 * m))
    return rho ** (2 * (m - 1)) * epoch_end + contribution(rho ** np.arange(m - 2, -1, -1.0))


def test_reshuffled_minibatches(key):
    key_y, key_run = jr.split(key)
    target, n, h = mean_model(key_y)
    engine = SGLD(steps=40_000, thin=10, warmup=4_000, step_size=h, batch_size=10)
    x = draws(engine, target, key_run)
    expected = reshuffled_variance(n, 10, h)
    error = relative_error(1 - h * n, 10, x.size)
    assert_allclose((x**2).mean(), expected, rtol=4.5 * 1.5 * error)
    independent = (1 + h * n**2 / 20) / (1 - h * n / 2) / n
    assert expected < 0.8 * independent


def test_skewed_target(key):
    engine = SGLD(chains=4, steps=60_000, thin=20, warmup=6_000, step_size=0.005)
    x = draws(engine, LogGamma(), key)
    mean, variance = polygamma(0, 3), polygamma(1, 3)
    # The bias is of order h a / 2 (0.75% at the mode); the chain forgets in 2 / (h a) updates.
    size = x.size / (2 / (0.005 * 2) / 20)
    assert_allclose(x.mean(), mean, atol=4.5 * np.sqrt(variance / size) + 0.01)
    assert_allclose(x.var(), variance, rtol=4.5 * np.sqrt(3 / size) + 0.02)
    third = ((x - x.mean()) ** 3).mean()
    assert_allclose(third, polygamma(2, 3), rtol=0.15)


def test_rmsprop_evens_out_scales(key):
    a = np.array([25.0, 0.04])
    precision = jnp.repeat(jnp.asarray(a), 100)
    engine = SGLD(
        steps=100_000,
        thin=50,
        warmup=40_000,
        step_size=0.01,
        preconditioner=RMSprop(memory=0.9999),
    )
    x = draws(engine, Gaussian(precision), key)["x"].reshape(4, -1, 2, 100)
    # `G` is nearly 1 / sqrt(a), hence a contraction of h sqrt(a) per update.
    rate = 0.01 * np.sqrt(a)
    for i in range(2):
        error = relative_error(1 - rate[i], 50, x[:, :, i].size)
        # `G` still follows the slow coordinate by about 10% of its autocorrelation.
        assert_allclose((x[:, :, i] ** 2).mean() * a[i], 1.0, rtol=4.5 * error + 0.1)


def test_decay(key):
    decay = PolynomialDecay(offset=50.0, power=0.6)
    engine = SGLD(chains=2, steps=400, thin=4, step_size=0.2, decay=decay)
    _, info = run(engine, Gaussian(jnp.ones(2)), key)
    counter = 4 * np.arange(100) + 3
    expected = 0.2 * (1 + counter / 50.0) ** -0.6
    assert_allclose(info.stats["step_size"][0], expected, rtol=1e-12)


def test_lp_belongs_to_the_draw(key):
    target = Gaussian(jnp.asarray([1.0, 3.0]))
    _, info = run(SGLD(chains=2, steps=40, thin=4, step_size=0.1), target, key)
    lp = jax.vmap(jax.vmap(target.log_density))(info.position)
    assert_allclose(info.stats["lp"], lp, rtol=1e-12)
    gradient = np.asarray([1.0, 3.0]) * np.asarray(info.position["x"])
    assert_allclose(info.stats["grad_norm"], np.linalg.norm(gradient, axis=-1), rtol=1e-12)


def test_stops_at_the_first_nonfinite_update(key):
    engine = SGLD(chains=3, steps=3_000, thin=7, step_size=0.02)
    states, info = run(engine, Cliff(), key)
    for chain, chain_key in enumerate(jr.split(key, 3)):
        # Replay: the same keys, one update at a time.
        position, update = engine.init(Cliff(), key=chain_key).position, 0
        slope = jax.grad(Cliff().log_density)
        replay = jax.jit(lambda x, k: x + 0.02 * slope(x) + jnp.sqrt(0.04) * jr.normal(k, (3,)))
        while jnp.isfinite(position).all():
            step_key = jr.fold_in(chain_key, update // 7)
            _, key_noise = jr.split(jr.fold_in(step_key, update % 7))
            position, update = replay(position, key_noise), update + 1
        assert states.nonfinite_at[chain] == update - 1
        failed = (update - 1) // 7
        assert_array_equal(info.stats["nonfinite_at"][chain, :failed], -1)
        assert info.stats["nonfinite_at"][chain, failed] == update - 1
    assert jnp.isfinite(info.position).all()
    assert jnp.isfinite(states.position).all()
    state = jax.tree.map(lambda x: x[0], states)
    assert engine.done(state)
    assert engine.result(state) == RESULTS.nonfinite_state


def test_start_that_is_not_finite(key):
    target = LinearNoise(jnp.full((5, 1), jnp.nan))
    engine = SGLD(batch_size=2)
    state = engine.init(target, key=key)
    assert engine.done(state)
    assert engine.result(state) == RESULTS.nonfinite_start


def test_chunks_do_not_matter(key):
    target, _, h = mean_model(key, 23, 3)
    short = SGLD(chains=2, steps=60, thin=4, step_size=h, batch_size=5)
    long = SGLD(chains=2, steps=120, thin=4, step_size=h, batch_size=5)
    whole, info = run(long, target, key)
    states, first = run(short, target, key)
    rest_states, rest = run(long, target, key, start=15, states=states)
    joined = np.concatenate([first.position, rest.position], 1)
    assert_array_equal(joined, info.position)
    assert_array_equal(rest_states.position, whole.position)


def test_float32_and_strong_types(key):
    target = GaussianMean(jr.normal(key, (20, 3), jnp.float32))
    engine = SGLD(
        chains=2, steps=40, thin=4, step_size=0.01, batch_size=5, preconditioner=RMSprop()
    )
    state = jax.eval_shape(lambda: engine.init(target, key=key))
    new, info = jax.eval_shape(
        lambda s: engine.step(target, s, jnp.asarray(0, jnp.int32), key=key), state
    )
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert not before.weak_type
        assert not after.weak_type
    assert info.position.dtype == info.stats["lp"].dtype == jnp.float32
    _, info = run(engine, target, key)
    assert jnp.isfinite(info.position).all()


def test_schedule():
    engine = SGLD(steps=50_000, batch_size=256)
    assert engine.schedule[:4] == (4, 200, 1_000, True)
    assert SGLD(steps=999).schedule[:4] == (4, 199, 999, True)
    assert SGLD(steps=100, thin=7, warmup=8).schedule[:4] == (4, 2, 14, True)


def test_posterior_splits_off_warmup(key):
    target = Gaussian(jnp.ones(3))
    engine = SGLD(chains=2, steps=50, thin=5, warmup=20, step_size=0.1, keep_warmup=True)
    states, info = run(engine, target, key)
    cut = engine.schedule.warmup
    warmup, sampling = (
        jax.tree.map(lambda x, part=part: np.asarray(x[:, part]), info)
        for part in (slice(None, cut), slice(cut, None))
    )
    sample = engine.posterior(target, states, Trace(warmup, sampling), key=key)
    assert sample.positions["x"].shape == (2, 6, 3)
    assert sample.warmup_positions is not None
    assert sample.warmup_positions["x"].shape == (2, 4, 3)
    assert set(sample.stats) == {"lp", "grad_norm", "step_size", "nonfinite_at"}
    assert sample.stats["lp"].shape == (2, 6)
    assert sample.log_weights is None


def test_through_infer(key):
    target, n, h = mean_model(key, 23, 3)
    engine = SGLD(chains=2, steps=400, thin=4, step_size=h, batch_size=5)
    posterior = infer(target, engine, key=key, progress=False)
    assert posterior.sample.positions.shape == (2, 80, 3)
    again = infer(target, engine, key=key, progress=False, chunk_steps=7)
    assert_array_equal(again.sample.positions, posterior.sample.positions)
    many = infer(target, engine, key=key, progress=False, vectorised=True)
    assert_allclose(many.sample.positions, posterior.sample.positions, rtol=1e-9)
    with pytest.raises(ValueError, match="at most the number of data rows, 23; got 24"):
        infer(target, SGLD(batch_size=24), key=key)
    steep = SGLD(chains=2, steps=400, thin=4, step_size=1.0)
    with pytest.raises(InferenceError, match="non-finite position"):
        infer(target, steep, key=key, progress=False)


def test_default_step_size_is_found_in_warmup():
    plain = MinibatchGradient(10)
    assert SGLD(batch_size=10).parts == SGMCMC("SGLD", gradient=plain).parts
    assert SGLD().parts.preconditioner == Curvature()
    assert SGLD(step_size=0.1).parts.preconditioner == Identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "`chains` must be at least 1; got 0"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"thin": 0}, "`thin` must be at least 1, or None; got 0"),
        ({"warmup": -1}, "`warmup` must be at least 0, or None; got -1"),
        ({"steps": 10, "warmup": 10}, "`steps` must leave at least one draw"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, or None; got 0"),
        ({"step_size": 0.0}, "`step_size` must be positive and finite, or None; got 0.0"),
        (
            {"step_size": float("nan")},
            "`step_size` must be positive and finite, or None; got nan",
        ),
        (
            {"preconditioner": "adam"},
            "`preconditioner` must be one of 'identity', 'rmsprop', 'fisher', 'scale-adapted', "
            "'curvature', or an instance of AbstractPreconditioner; got 'adam'",
        ),
        ({"batching": "sorted"}, "`batching` must be one of 'reshuffle', .*; got 'sorted'"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        SGLD(**options)


def test_invalid_parts():
    with pytest.raises(ValueError, match="`offset` must be positive and finite; got 0"):
        PolynomialDecay(offset=0)
    with pytest.raises(ValueError, match="`power` must be above 0.5 and at most 1; got 0.5"):
        PolynomialDecay(power=0.5)
    with pytest.raises(ValueError, match="`memory` must be at least 0 and below 1; got 1"):
        RMSprop(memory=1)
    with pytest.raises(ValueError, match="`floor` must be positive and finite; got 0"):
        RMSprop(floor=0)


def test_invalid_targets():
    data = GaussianMean(jnp.zeros((20, 1)))
    with pytest.raises(ValueError, match="at most the number of data rows, 20; got 21"):
        SGLD(batch_size=21).validate(data)
    with pytest.raises(ValueError, match="`batch_size` needs a target .* got 5 with Gaussian"):
        SGLD(batch_size=5, step_size=0.1).validate(Gaussian(jnp.ones(1)))
    for options in ({}, {"step_size": 0.1, "preconditioner": "curvature"}):
        with pytest.raises(ValueError, match=r"found in warm-up.* none; got `warmup=0`"):
            SGLD(warmup=0, **options).validate(data)
        with pytest.raises(ValueError, match="While data grow, `step_size` must be given"):
            SGLD(**options).validate_online(data)


@pytest.mark.parametrize(
    ("batch_size", "batching"), [(10, "iid"), (10, "reshuffle"), (None, "reshuffle")]
)
def test_inflation_of_the_variance_is_measured(batch_size, batching, key):
    """Against the exact stationary variance, for noise of both ways to draw batches."""
    key_y, key_run = jr.split(key)
    target, n, h = mean_model(key_y)
    engine = SGLD(steps=10_000, thin=10, step_size=h, batch_size=batch_size, batching=batching)
    posterior = infer(target, engine, key=key_run, progress=False)
    noise = {"iid": h * n**2 / 20, "reshuffle": 0.0}[batching]
    expected = (1 + noise) / (1 - h * n / 2)
    if batch_size and batching == "reshuffle":
        expected = reshuffled_variance(n, 10, h) * n
    record = posterior.record
    assert_allclose(record.inflation[-1], expected, atol=4.5 * record.inflation_error[-1])
    assert record.inflation_error[-1] < 0.05 * expected
    off = (record.inflation - expected) / record.inflation_error
    assert np.abs(off).max() < 6  # of 41, each of 200 draws
    finding = posterior.diagnose()["spread"]
    assert finding.is_problem == (expected > 1.21)
    if finding.is_problem:
        assert "noise of the minibatches" in finding.remedy
        assert finding.where


def test_draws_of_a_falling_step_size_are_weighted_by_it(key):
    decay = PolynomialDecay(offset=50.0, power=0.6)
    engine = SGLD(chains=2, steps=400, thin=4, warmup=0, step_size=0.2, decay=decay)
    posterior = infer(Gaussian(jnp.ones(2)), engine, key=key, progress=False)
    weights = np.exp(posterior.log_weights)
    expected = (1 + (4 * np.arange(100) + 3) / 50.0) ** -0.6
    assert_allclose(weights, np.tile(expected / expected.sum() / 2, (2, 1)), rtol=1e-6)
    plain = dataclasses.replace(engine, decay=ConstantStep())
    assert infer(Gaussian(jnp.ones(2)), plain, key=key, progress=False).log_weights is None
    x = posterior.sample.positions["x"]
    table = posterior.summary(round_to="none")
    assert_allclose(table["mean"], np.tensordot(weights, x, 2))
