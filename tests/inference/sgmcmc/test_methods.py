"""Stochastic-gradient samplers by name: their laws, resuming, checks, and what they refuse."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core._target import AbstractTarget
from whence.diagnostics import diagnose
from whence.inference.sgmcmc import (
    ControlVariate,
    Curvature,
    Cyclical,
    Fisher,
    FromOptax,
    Identity,
    MinibatchGradient,
    RMSprop,
    ScaleAdapted,
    StructuredGradient,
)
from whence.inference.sgmcmc._stein import stein_discrepancy
from whence.inference.sgmcmc._tuning import (
    Tuning,
    chosen,
    inflation_by_noise,
    largest_stable,
    look,
)
from whence.testing import GaussianMean


class Gaussian(AbstractTarget):
    """A Gaussian around zero."""

    precision: jax.Array

    def init(self, *, key):
        return jr.normal(key, self.precision.shape[:1], self.precision.dtype)

    def log_density(self, position):
        return -0.5 * position @ self.precision @ position

    def constrain(self, position):
        return position


def run(engine, target, key, chains=None):
    """States and records of all chains, vmapped, without checks."""
    keys = jr.split(key, chains or engine.chains)

    @jax.jit
    def program(target, keys):
        def chain(key):
            def body(state, index):
                return engine.step(target, state, index, key=jr.fold_in(key, index))

            indices = jnp.arange(engine.schedule.steps, dtype=jnp.int32)
            return jax.lax.scan(body, engine.init(target, key=key), indices)

        return jax.vmap(chain)(keys)

    engine.validate(target)
    states, info = program(target, keys)
    assert_array_equal(states.nonfinite_at, -1)
    return states, jax.tree.map(lambda x: np.asarray(x[:, engine.schedule.warmup :]), info)


# -- preconditioners ---------------------------------------------------------------


def test_scale_adapted_updates():
    """The numbers of a scalar with gradients 2, -1, 3, computed by hand."""
    part = ScaleAdapted()
    state = part.init(jnp.zeros(1))
    for gradient, expected in [
        (2.0, (1.0, 1.5, 2.5)),
        (-1.0, (1.1, 0.25, 1.75)),
        (3.0, (2.0607142857, 1.5595238095, 5.2023809524)),
    ]:
        state = part.update(state, jnp.asarray([gradient]))
        assert_allclose(np.ravel(state), expected, rtol=1e-10)
    assert_allclose(part.diagonal(state), 5.2023809524**-0.5, rtol=1e-10)
    assert_allclose(part.second_moment(state), 5.2023809524, rtol=1e-10)


def test_scale_adapted_sampler_is_that_of_the_reference(key):
    """Its update, in the reference's own variables, with `V` as it is frozen."""
    precision, epsilon, alpha = jnp.diag(jnp.asarray([4.0, 0.25])), 0.3, 0.1
    engine = wh.SGHMC(
        steps=9,
        thin=1,
        warmup=4,
        step_size=epsilon,
        friction=alpha / epsilon,
        preconditioner="scale-adapted",
        subtract_noise=True,
    )
    assert engine.preconditioner == ScaleAdapted()
    target = Gaussian(precision)
    state = engine.init(target, key=key)
    frozen = None
    for i in range(9):
        step_key = jr.fold_in(key, i)
        new, info = engine.step(target, state, jnp.asarray(i, jnp.int32), key=step_key)
        if i >= 4:
            v2 = np.asarray(state.scale[2])
            frozen = v2 if frozen is None else frozen
            assert_array_equal(v2, frozen)
            m = v2**-0.5
            theta = np.asarray(state.position)
            v = epsilon * np.sqrt(m) * np.asarray(state.momentum)
            theta = theta + v
            noise = jr.normal(jr.split(jr.fold_in(step_key, 0))[1], (2,))
            q = 2 * epsilon**2 * alpha * m - epsilon**4
            v = (1 - alpha) * v - epsilon**2 * m * (np.asarray(precision) @ theta)
            v = v + np.sqrt(np.maximum(q, 0)) * noise
            assert_allclose(new.position, theta, rtol=1e-10)
            assert_allclose(epsilon * np.sqrt(m) * new.momentum, v, rtol=1e-10)
            assert_allclose(info.stats["clamped"], np.mean(q < 0))
        state = new
    assert frozen is not None


def test_drift_of_rmsprop(key):
    """`Gamma` makes the law right where `G` follows the position: here `1 / (1 + |x|)`."""
    target, exact = Gaussian(jnp.eye(1)), {}
    absolute, cube = np.sqrt(2 / np.pi), 2 * np.sqrt(2 / np.pi)
    exact = {True: 1.0, False: (1 + cube) / (1 + absolute)}
    for gamma, variance in exact.items():
        part = RMSprop(memory=0.0, floor=1.0, gamma=gamma)
        engine = wh.SGLD(steps=6_000, thin=20, warmup=600, step_size=0.05, preconditioner=part)
        x = run(engine, target, key, chains=1_000)[1].position[..., 0]
        # Chains forget in about 40 updates; a thousand of them run for 5,400.
        error = np.sqrt(2 * 3 / (1_000 * 5_400 / 60))
        assert_allclose((x**2).mean(), variance, rtol=4.5 * error + 0.02)


def test_drift_of_rmsprop_is_the_derivative(key):
    """One update in one dimension, where a vector of signs is exact, whatever they are."""
    part = RMSprop(memory=0.9, floor=0.1, gamma=True)
    engine = wh.SGLD(steps=4, thin=1, warmup=0, step_size=0.1, preconditioner=part)
    target = Gaussian(3.0 * jnp.eye(1))
    state = dataclasses.replace(engine.init(target, key=key), scale=jnp.asarray([4.0]))
    x = state.position[0]
    g = lambda x: 1 / (jnp.sqrt(0.9 * 4.0 + 0.1 * (3 * x) ** 2) + 0.1)
    step = jax.jit(lambda key: engine.step(target, state, jnp.int32(0), key=key)[0])
    for i in range(8):
        noise = jr.normal(jr.split(jr.fold_in(jr.fold_in(key, i), 0))[1], (1,))
        move = -0.3 * g(x) * x + jnp.sqrt(0.2 * g(x)) * noise
        new = step(jr.fold_in(key, i))
        assert_allclose(new.position, x + move + 0.1 * jax.grad(g)(x), rtol=1e-10)


def test_fisher_is_the_inverse_mean_square_and_then_frozen(key):
    target = Gaussian(jnp.diag(jnp.asarray([25.0, 0.04])))
    engine = wh.SGMCMC("SGLD", steps=4_000, warmup=2_000, thin=10, preconditioner=Fisher())
    states, info = run(engine, target, key)
    # The mean square of an exact gradient is the precision; here over some ten independent
    # values, so that a factor of 5 is beyond chance. Precisions are 625 apart.
    assert_allclose(np.log(states.scale / np.asarray([[25.0, 0.04]])), 0, atol=np.log(5))
    part = Fisher()
    state = part.update(part.update(part.init(jnp.zeros(1)), jnp.ones(1)), 3 * jnp.ones(1))
    assert_allclose(state, 0.99 * 1 + 0.01 * 9)
    assert_allclose(part.diagonal(state), 1 / (state + 1e-5))
    assert_array_equal(part.diagonal(part.init(jnp.zeros(2))), 0)
    short = dataclasses.replace(engine, steps=2_500)
    assert_array_equal(run(short, target, key)[0].scale, states.scale)


# -- step sizes ---------------------------------------------------------------------


def test_step_size_found(key):
    """Curvature and noise of a Gaussian mean: `N` and `N^2 / b` times the scatter."""
    n, b = 400, 20
    y = jr.normal(key, (n, 3))
    y = (y - y.mean(0)[None]) / y.std(0)[None]
    target = GaussianMean(y, prior_sd=1e3)
    engine = wh.SGMCMC("SGLD", gradient=MinibatchGradient(b, "iid"), steps=4_000)
    engine = dataclasses.replace(engine, preconditioner="identity")
    states, info = run(engine, target, key)
    assert_allclose(states.tuning.curvature, n, rtol=1e-3)
    variance = n**2 / b
    # The largest of three estimates from some hundreds of pairs of batches.
    found = jax.vmap(lambda tuning: tuning.variance)(states.tuning)
    assert_allclose(found, variance, rtol=0.4)
    h = info.stats["step_size"]
    assert_array_equal(h, h[:, :1] * np.ones_like(h))
    assert_allclose(h[:, 0], 0.1 / (states.tuning.curvature + found))
    damped = dataclasses.replace(engine, integrator="BAOA")
    stats = run(damped, target, key)[1].stats
    inflation = stats["step_size"] * variance / (2 * stats["friction"])
    assert_allclose(inflation, 0.05, rtol=0.4)
    assert (stats["step_size"] * stats["friction"] < 0.6).all()


def test_step_size_found_for_reshuffled_batches():
    """Where noise adds up to nothing over an epoch, longer steps are right to 5%, too."""
    n, m = 400.0, 20
    variance = n * m  # of the gradient, by batches of a twentieth
    noise = jnp.full(1, variance)
    zero = jnp.zeros(())
    known = Tuning(jnp.ones(1), jnp.asarray(n), noise, zero, jnp.int32(1), zero)
    h, _ = chosen(known, None, "E", m)
    independent, _ = chosen(known, None, "E", 0)
    assert h > 5 * independent
    # Exactly, in the mean over an epoch: errors of its batches have correlation -1 / (m - 1).
    rho, covariance = 1 - h * n, variance * (np.eye(m) * m - 1) / (m - 1)

    def spread(steps):
        weights = rho ** np.arange(steps - 1, -1, -1.0)
        of_batches = weights @ covariance[:steps, :steps] @ weights
        return h**2 * of_batches + 2 * h * (weights**2).sum()

    end = spread(m) / (1 - rho ** (2 * m))
    mean = np.mean([rho ** (2 * j) * end + spread(j) for j in range(1, m + 1)])
    assert_allclose(mean * n, 1.05 / (1 - h * n / 2), rtol=0.02)
    theory = inflation_by_noise(float(h), 1.0, variance, n, "E", m)
    assert_allclose(theory, 0.05, rtol=1e-6)
    # With a momentum it takes no friction that grows with the noise, and is faster for it.
    slow, fast = (chosen(known, None, "BAOA", epoch) for epoch in (0, m))
    assert fast[0] / fast[1] > 5 * slow[0] / slow[1]
    assert_allclose(inflation_by_noise(*fast, variance, n, "BAOA", m), 0.05, rtol=1e-6)
    assert_allclose(inflation_by_noise(*slow, variance, n, "BAOA", 0), 0.05, rtol=1e-6)


def test_power_iteration_finds_the_largest_curvature():
    matrix = jnp.asarray([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 30.0]])
    product = lambda direction, i: (jnp.zeros(3), -matrix @ direction)
    start = Tuning.start(jnp.zeros(3), key=jr.key(0))
    plain, _ = look(start, product, Identity(), None, 30, key=jr.key(1))
    assert_allclose(plain.curvature, np.linalg.eigvalsh(matrix)[-1], rtol=1e-6)
    root = jnp.asarray([3.0, 1.0, 0.1])
    scaled = np.diag(root) @ matrix @ np.diag(root)
    part, scale = Curvature(), (root**2, jnp.int32(9))
    found, after = look(start, product, part, scale, 200, key=jr.key(1))
    assert_array_equal(after[0], scale[0])  # nothing is learned but on the way in
    assert_allclose(found.curvature, np.linalg.eigvalsh(scaled)[-1], rtol=1e-6)
    for word in ("E", "BAOA", "oBAD"):
        h, friction = chosen(plain, None, word, 0)
        assert h < 0.5 * largest_stable(plain.curvature, overdamped=word == "E")
        assert chosen(plain, 7.0, word, 0)[1] == 7.0 or word == "E"


# -- laws ---------------------------------------------------------------------------


def shards(n=400, parts=4, dim=4):
    """A Gaussian mean under a flat prior; shards differ in their means, alike in columns."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(n, dim)) + np.repeat(np.linspace(-2, 2, parts), n // parts)[:, None]
    return (y - y.mean(0)) / y.std(0)


@pytest.mark.parametrize("local_steps", [1, 50])
@pytest.mark.parametrize("surrogate", ["none", "laplace"])
def test_variance_of_federated_langevin_dynamics(local_steps, surrogate, key):
    """Closed form: noise within shards, and between them unless it is taken away."""
    n, parts, b, y = 400, 4, 10, shards()
    target = GaussianMean(jnp.asarray(y), prior_sd=1e6)
    a, h = float(n), 0.2 / n
    means = y.reshape(parts, -1, y.shape[1]).mean(1)
    within = n**2 / b * (y.reshape(parts, -1, y.shape[1]).var(1)).mean(0)
    between = n**2 * (means**2).mean(0)
    rho = 1 - h * a
    variance = (2 * h + h**2 * within) / (2 * h * a - h**2 * a**2)
    if surrogate == "none":
        variance = variance + between / a**2 * (1 - rho**local_steps) / (1 + rho**local_steps)
    engine = wh.FederatedSGLD(
        shards=parts,
        batch_size=b,
        local_steps=local_steps,
        surrogate=surrogate,
        step_size=h,
        steps=30_000 if local_steps > 1 else 12_000,
        warmup=1_000,
        thin=50 if local_steps > 1 else 10,  # near the end of a visit, as the formula has it
        chains=64,
    )
    x = run(engine, target, key)[1].position
    # Visits are shared by all columns; draws forget in a visit, or in ten updates.
    squares = (x**2).mean(-1) / variance.mean()
    error = squares.std() / np.sqrt(squares.size)
    assert error < 0.007
    assert_allclose(squares.mean(), 1, atol=4.5 * error)


def test_structured_marginals(key):
    """Independent, of variance `1 / precision_ii`, inflated by the step and the histories."""
    precision = np.array([[2.0, 1.2, 0.5], [1.2, 1.5, 0.3], [0.5, 0.3, 1.0]])
    h = 0.02
    engine = wh.StructuredSGMCMC(
        groups="coordinates",
        step_size=h,
        steps=40_000,
        warmup=12_000,
        thin=100,
        history=200,
        every=50,
    )
    x = run(engine, Gaussian(jnp.asarray(precision)), key, chains=32)[1].position.reshape(-1, 3)
    diagonal = np.diag(precision)
    variance = 1 / diagonal
    for _ in range(50):  # variances of the others make the noise of the gradient
        noise = precision**2 @ variance - diagonal**2 * variance
        variance = (1 + h * noise / 2) / (1 - h * diagonal / 2) / diagonal
    assert_allclose(variance, (0.5165, 0.6825, 1.0120), atol=6e-4)
    # Chains forget in 100 updates of 28,000, so that an error of 1.5% is to be expected.
    assert_allclose(x.var(0), variance, rtol=0.07)
    correlation = np.corrcoef(x.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.05
    truth = np.linalg.inv(precision).diagonal()
    assert (x.var(0) < 0.8 * truth)[0]


def test_thermostat_takes_the_noise_of_batches_away(key):
    y = np.repeat([1.0, -1.0], 100)[:, None] * np.ones((1, 20))
    rng = np.random.default_rng(1)
    y = rng.permuted(y, axis=0)  # columns independent of one another
    target = GaussianMean(jnp.asarray(y), prior_sd=1e6)
    h, friction = 0.005, 5.0
    settings = {"batch_size": 10, "steps": 15_000, "warmup": 6_000, "thin": 10}
    settings |= {"step_size": h, "friction": friction}
    with_heat = run(wh.SGHMC(**settings, batching="iid"), target, key)[1]
    variance = 200**2 / 10
    wide = with_heat.position.var() * 200
    assert wide > 1 + 0.7 * h * variance / (2 * friction)
    total = friction + h * variance / 2  # what the thermostat adds is `h V / 2`
    for integrator, narrower in (("BADODAB", 0.0), ("SGNHT", h * total / 2)):
        heated = run(wh.SGNHT(**settings, integrator=integrator), target, key)[1]
        assert_allclose(heated.position.var() * 200, 1 - narrower, atol=0.04)
        assert_allclose(heated.stats["friction"].mean(), total, rtol=0.1)
        # The first word ends between two halves of a kick, after friction.
        assert_allclose(heated.stats["kinetic"].mean(), 1, atol=0.02 if narrower else 0.05)


def test_cycles(key):
    target = Gaussian(jnp.eye(3))
    engine = wh.CyclicalSGLD(
        chains=3, steps=1_000, cycles=5, exploration=0.6, thin=8, step_size=0.1, warmup=150
    )
    part = Cyclical(200, 0.6)
    assert engine.parts.decay == part
    assert part.layout(8) == (120, 10)
    assert engine.schedule[:4] == (3, 10, 50, True)
    states, info = run(engine, target, key)
    last = np.arange(127, 200, 8) % 200  # the last update of each draw
    expected = 0.1 * (1 + np.cos(np.pi * last / 200)) / 2
    assert_allclose(info.stats["step_size"][0].reshape(4, 10), np.tile(expected, (4, 1)))
    # In the exploration of a cycle there is no noise: it goes downhill, to the mode.
    first = dataclasses.replace(engine, steps=1_000, warmup=0)
    start = engine.init(target, key=key)
    state, _ = first.step(target, start, jnp.asarray(0, jnp.int32), key=key)
    path = np.asarray(start.position)
    for i in range(120):
        path = path * (1 - 0.1 * (1 + np.cos(np.pi * i / 200)) / 2)
    for i in range(120, 128):
        h = 0.1 * (1 + np.cos(np.pi * i / 200)) / 2
        noise = jr.normal(jr.split(jr.fold_in(key, i))[1], (3,))
        path = path * (1 - h) + np.sqrt(2 * h) * np.asarray(noise)
    assert_allclose(state.position, path, rtol=1e-9)
    posterior = wh.infer(target, engine, key=key, progress=False)
    weights = np.exp(posterior.log_weights)
    assert_allclose(weights[0, :10] / weights[0, 0], expected / expected[0], rtol=1e-6)
    again = wh.infer(target, engine, key=key, progress=False, chunk_steps=7)
    assert_array_equal(again.sample.positions, posterior.sample.positions)


def test_schedule_of_optax(key):
    engine = wh.SGHMC(
        chains=1,
        steps=40,
        warmup=0,
        thin=1,
        step_size=1.0,
        friction=1.0,
        decay=optax.linear_schedule(0.1, 0.02, 40),
    )
    assert isinstance(engine.decay, FromOptax)
    _, info = run(engine, Gaussian(jnp.eye(2)), key)
    assert_allclose(info.stats["step_size"][0], 0.1 - 0.08 * np.arange(40) / 40, rtol=1e-6)
    with pytest.raises(
        ValueError, match="`decay` must be an instance of AbstractDecay; got 'co"
    ):
        wh.SGHMC(decay="cosine")


# -- running ------------------------------------------------------------------------


ADAPTED = {"preconditioner": ScaleAdapted(), "subtract_noise": True}
ENGINES = {
    "BAOAB": lambda: wh.SGMCMC("BAOAB", gradient=ControlVariate(5, refresh=7)),
    "control variate": lambda: wh.SGMCMC("OBABO", gradient=ControlVariate(5)),
    "adapted": lambda: wh.SGHMC(
        batch_size=5, preconditioner=ScaleAdapted(), subtract_noise=True
    ),
    "SGNHT": lambda: wh.SGNHT(batch_size=5, preconditioner=RMSprop()),
    "federated": lambda: wh.FederatedSGLD(shards=(4, 16), batch_size=3, local_steps=3),
    "structured": lambda: wh.StructuredSGMCMC(batch_size=5, keep=0.5, every=3),
}


@pytest.mark.parametrize("name", ENGINES)
def test_resumed_runs_are_the_same_to_the_last_bit(name, key, tmp_path):
    target = GaussianMean.simulate(20, key=key)
    engine = dataclasses.replace(ENGINES[name](), chains=2, steps=120, thin=3)
    assert wh.infer(target, engine, key=key, progress=False).num_draws == 32
    whole = wh.infer(target, engine, key=key, progress=False, store=tmp_path / "whole")
    shorter = wh.Until(max_draws=11)
    wh.infer(target, engine, key=key, progress=False, store=tmp_path / "part", until=shorter)
    rest = wh.extend(tmp_path / "part", target, draws=21, progress=False)
    assert_array_equal(rest["theta"], whole["theta"])


def test_unstable_step_size_is_told_with_the_largest_stable_one(key):
    target = GaussianMean.simulate(20, key=key)
    for engine, limit in [
        (wh.SGMCMC("SGLD", step_size=1.0, steps=2_000), 2 / 20.25),
        (wh.SGMCMC("BAOA", step_size=1.0, steps=2_000), 2 / 20.25**0.5),
    ]:
        with pytest.raises(wh.InferenceError) as error:
            wh.infer(target, engine, key=key, progress=False)
        message = str(error.value)
        assert re.search(r"the largest curvature is 20\.[23]", message)
        assert f"stable for a `step_size` below {limit:.3g}; it was 1" in message


def test_what_engines_refuse():
    data, plain = GaussianMean(jnp.zeros((20, 1))), Gaussian(jnp.eye(2))
    for engine, target, message in [
        (wh.SGHMC(batch_size=21), data, "at most the number of data rows, 20; got 21"),
        (wh.SGHMC(batch_size=5), plain, "`batch_size` needs a target .* got 5 with Gaussian"),
        (wh.FederatedSGLD(), plain, "`shards` needs a target whose likelihood"),
        (
            wh.SGNHT(warmup=0),
            plain,
            "`step_size=None` is found in warm-up, .* and there is none",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.validate(target)
    with pytest.raises(ValueError, match="`step_size` must be given and the gradient be that"):
        wh.SGHMC().validate_online(plain)
    with pytest.raises(ValueError, match="`gamma=True` needs the integrator 'SGLD'"):
        wh.SGHMC(preconditioner=RMSprop(gamma=True))
    with pytest.raises(ValueError, match="`subtract_noise` needs a preconditioner"):
        wh.SGHMC(subtract_noise=True)
    with pytest.raises(ValueError, match="`cycles` must leave at least two updates"):
        wh.CyclicalSGLD(steps=10, cycles=6)
    with pytest.raises(ValueError, match="`gradient` must be an instance of AbstractGradient"):
        wh.SGMCMC(gradient="plain")


# -- what is told of a run ----------------------------------------------------------


def findings(engine, target, key):
    posterior = wh.infer(target, engine, key=key, progress=False)
    return posterior.record, posterior.diagnose()


def test_checks_of_a_run_that_is_well(key):
    target = GaussianMean.simulate(100, dim=30, key=key)
    engine = wh.SGMCMC("BAOA", gradient=ControlVariate(20), steps=20_000, thin=10)
    record, report = findings(engine, target, key)
    for code in ("step", "noise", "halving", "kinetic", "metropolis", "stein", "spread"):
        assert not report[code].is_problem, str(report[code])
    assert_allclose(record.largest_stable, 2, rtol=1e-3)  # in units of curvature
    assert record.noise_ratio < 1e-9  # all rows have one curvature
    assert abs(record.halving - 1) < 5 * record.halving_error
    assert abs(record.kinetic - 1) < 5 * record.kinetic_error
    assert record.acceptance > 0.8


def test_checks_of_a_step_that_is_too_large(key):
    """Against closed forms, of `SGLD` with exact gradients at half the stable step."""
    target = Gaussian(jnp.eye(5))
    engine = wh.SGMCMC("SGLD", step_size=1.2, steps=20_000, thin=5)
    record, report = findings(engine, target, key)
    inflation = lambda h: 1 / (1 - h / 2)
    assert_allclose(record.inflation[-1], inflation(1.2), atol=5 * record.inflation_error[-1])
    ratio = inflation(0.6) / inflation(1.2)
    assert_allclose(record.halving, ratio, atol=5 * record.halving_error)
    assert report["halving"].is_problem
    assert report["spread"].is_problem
    assert report["step"].is_problem
    assert_allclose(report["step"].value, 0.6, rtol=1e-3)
    rng = np.random.default_rng(0)  # the acceptance of MALA from such draws
    x = rng.normal(size=(4_000, 5)) * inflation(1.2) ** 0.5
    y = (1 - 1.2) * x + np.sqrt(2.4) * rng.normal(size=x.shape)
    ahead, back = ((b - (1 - 1.2) * a) ** 2 / 4.8 for a, b in ((x, y), (y, x)))
    ratio = ((x**2 - y**2) / 2 + ahead - back).sum(1)
    accepted = np.exp(np.minimum(ratio, 0))
    assert_allclose(record.acceptance, accepted.mean(), atol=5 * accepted.std() / 20**0.5)
    assert record.acceptance < 0.9
    # Two hundred draws are few for a kernel in five dimensions.
    assert record.stein_p < 0.02
    sure = dataclasses.replace(record, stein_p=0.001)
    draws = {"x": np.random.default_rng(0).normal(size=(4, 100))}
    judged = diagnose(draws, {}, engine="SGMCMC", method="unadjusted", record=sure)
    assert judged["stein"].is_problem


def test_checks_of_noisy_batches(key):
    n, b = 200, 10
    y = np.random.default_rng(0).normal(size=(n, 10))
    y = (y - y.mean(0)) / y.std(0)
    target = GaussianMean(jnp.asarray(y), prior_sd=1e6)
    engine = wh.SGHMC(
        batch_size=b, batching="iid", step_size=0.02, friction=10.0, steps=8_000, thin=8
    )
    record, report = findings(engine, target, key)
    assert_allclose(record.noise_ratio, 0.02 * n**2 / b / 20, rtol=0.5)
    assert report["noise"].is_problem
    assert report["kinetic"].is_problem
    assert record.kinetic > 1.5
    assert "SGNHT" in report["kinetic"].remedy
    # With this little friction there is less noise to be had than the batches make.
    clamped = dataclasses.replace(engine, **ADAPTED, step_size=1.0, friction=0.1)
    record, report = findings(clamped, target, key)
    assert record.clamped > 0.9
    assert report["clamped"].is_problem


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_stein_discrepancy(shift):
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(4, 50, 3)) + shift
    noise = rng.normal(size=draws.shape)
    for gradients in (-draws, -draws + noise):  # noise that is independent adds none
        value, p = stein_discrepancy(draws, gradients, 1.0)
        assert (p < 0.01) == (shift > 0)
        assert abs(value) < 0.05 or shift > 0


def test_stein_discrepancy_against_the_definition():
    """The kernel's derivatives by differentiation."""
    rng = np.random.default_rng(3)
    draws, gradients = rng.normal(size=(1, 5, 2)), rng.normal(size=(1, 5, 2))
    x, s = draws[0] / draws[0].std(0), gradients[0] * draws[0].std(0)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    c = np.median(squares[~np.eye(5, dtype=bool)])
    kernel = lambda a, b: (1 + jnp.sum((a - b) ** 2) / c) ** -0.5
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i == j:
                continue
            a, b = jnp.asarray(x[i]), jnp.asarray(x[j])
            mixed = jax.jacfwd(jax.grad(kernel, 0), 1)(a, b)
            total += s[i] @ s[j] * kernel(a, b) + jnp.trace(mixed)
            total += s[i] @ jax.grad(kernel, 1)(a, b) + s[j] @ jax.grad(kernel, 0)(a, b)
    assert_allclose(stein_discrepancy(draws, gradients, 1.0)[0], total / 20, rtol=1e-9)


def test_checks_can_be_left_out(key):
    target = GaussianMean.simulate(20, key=key)
    record, report = findings(wh.SGHMC(steps=2_000, thin=2, checks=0.0), target, key)
    assert record.halving is None
    codes = {finding.code for finding in report}
    assert "halving" not in codes
    assert "kinetic" in codes
    structured = StructuredGradient(groups="coordinates")
    record, report = findings(wh.SGMCMC("SGLD", gradient=structured, steps=2_000), target, key)
    assert record.stein is None  # it is not the target that is sampled
