"""Paths as latents: the controlled family, particles and predictions against closed forms."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

import whence as wh
from whence.core._family import bound
from whence.core._flat import flat_view
from whence.inference.smc._filter import run_filter
from whence.inference.variational import Amortised, MeanField
from whence.inference.variational._batch import Batch
from whence.inference.variational._final import log_weights as batch_weights
from whence.inference.variational._flat import layout_of
from whence.models import fbm
from whence.models.fbm._path import between
from whence.testing import check_engine

TIMES = np.array([0.4, 1.0, 1.3, 2.0])
Y = np.array([0.5, -0.3, 0.2, 0.9])


class Walk(fbm.FractionalSDE):
    """`dX = -theta X dt + sigma dB` from `first`, seen with noise."""

    noise: fbm.FractionalNoise
    theta: Any = eqx.field(kw_only=True)
    sigma: Any = eqx.field(kw_only=True)
    first: float = eqx.field(default=1e-9, kw_only=True)
    error: float = eqx.field(default=0.1, kw_only=True)

    def initial(self):
        return dist.Normal(jnp.zeros(1), self.first)

    def drift(self, t, x):
        return -self.theta * x

    def diffusion(self, t, x):
        return self.sigma

    def observe(self, x):
        return dist.Normal(x[0], self.error)


class Unscaled(Walk):
    sigma: Any = wh.latent(dist.LogNormal(0.0, 0.5))


class Pair(fbm.FractionalSDE):
    """Two components with an H each that pull at each other, both seen."""

    noise: fbm.FractionalNoise

    def initial(self):
        return dist.Normal(jnp.array([1.0, -1.0]), jnp.array([0.5, 0.2]))

    def drift(self, t, x):
        return jnp.array([[-0.5, 0.4], [0.2, -1.0]]) @ x + jnp.array([0.3, 0.0])

    def diffusion(self, t, x):
        return jnp.array([0.7, 0.2])

    def observe(self, x):
        return dist.Normal(x, jnp.array([0.1, 0.2])).to_event(1)


class Growth(fbm.FractionalSDE):
    """Logistic growth whose noise grows with the state; counts are seen."""

    noise: fbm.FractionalNoise

    def initial(self):
        return dist.Normal(jnp.ones(1), 0.1)

    def drift(self, t, x):
        return x * (1 - x / 4)

    def diffusion(self, t, x):
        return 0.4 * x

    def observe(self, x):
        return dist.Poisson(5 * jnp.exp(x[0] - 1))


class Heavy(Walk):
    """Seen with errors that are now and then large: not concave far out."""

    theta: Any = 0.0
    sigma: Any = 1.0

    def observe(self, x):
        return dist.StudentT(2.0, x[0], 0.05)


class Turning(fbm.FractionalSDE):
    """The noise itself, with an H that rises; beside it an integral over time."""

    noise: fbm.FractionalNoise = fbm.FractionalNoise(kind="II")

    def initial(self):
        return dist.Normal(jnp.zeros(2), 1e-9)

    def drift(self, t, x):
        return jnp.array([0.0, 1.0]) * t**2

    def diffusion(self, t, x):
        return jnp.array([1.0, 0.0])

    def observe(self, x):
        return dist.Normal(x[0], 0.1)

    def hurst(self, t):
        return 0.3 + 0.2 * t


def moving_kernel(model, times, s, t):
    """Covariance of the noise with an H that varies, by its definition; `s <= t`."""
    bank = model.noise.bank(times[-1] - times[0], len(times), jnp.stack([s, t]) * 0.2 + 0.3)
    g, (w, v) = np.asarray(bank.rates), np.asarray(bank.weights * bank.scales[None])
    total = g[:, None] + g[None, :]
    with np.errstate(invalid="ignore"):
        shared = np.where(total == 0, s, -np.expm1(-total * s) / total)
    return w @ (shared * np.exp(-g * (t - s))[None]) @ v


def family_of(target, family):
    """Return a family for a target, and the flat position it is of."""
    like, unravel = flat_view(target)
    return bound(family, target, layout_of(target)), like, unravel


def log_weights(target, family, params, num, key, also=lambda position: None):
    """Return log weights of draws, these, and what else is asked of them, by one program."""
    made, like, unravel = family_of(target, family)

    def one(noise):
        flat = made.transform(params, noise)
        position = unravel(flat)
        log_weight = target.log_density(position) - made.log_prob(params, noise)
        return log_weight, flat, also(position)

    noise = made.noise(like, num, key=key)
    return jax.jit(jax.vmap(one))(noise)


def start(target, family):
    made, like, _ = family_of(target, family)
    return made.init(like)


def shaken(params, size=0.3):
    """Parameters that are nothing special."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(jr.key(9), len(leaves))
    moved = [v + size * jr.normal(k, v.shape, v.dtype) for v, k in zip(leaves, keys)]
    return jax.tree.unflatten(treedef, moved)


def as_path(model):
    """The same model with its path as a latent."""
    return dataclasses.replace(model, exact=False)


def test_optimal_control_is_the_posterior(key):
    """Every draw of the noise has the weight of Kalman's evidence; missing data too."""
    model = Walk(fbm.FractionalNoise(0.3), theta=0.0, sigma=1.3, first=0.7, steps=15)
    y = np.where([True, False, True, True], Y, np.nan)
    exact, target = wh.condition(model, y, TIMES), wh.condition(as_path(model), y, TIMES)
    family = fbm.ControlledPath()
    states = lambda position: target.constrain(position).states[:, 0]
    begin = start(target, family)
    logs, _, states = log_weights(target, family, begin, 300, key, states)
    assert_allclose(logs, exact.log_density({}), atol=1e-9)
    law = exact.constrain({}).smooth(exact.y, exact.inputs[0], exact.inputs[0])
    mean, variance = np.asarray(law.mean[:, 0]), np.asarray(law.variance[:, 0])
    assert np.all(np.abs(states.mean(0) - mean) < 5 * np.sqrt(variance / 300))
    assert np.all(np.abs(states.var(0) / variance - 1) < 5 * np.sqrt(2 / 300))


def test_control_of_several_components_and_series(key):
    """Weights are the same for all draws; off Kalman's evidence by the steps of Heun's rule."""
    model = Pair(fbm.FractionalNoise(np.array([0.3, 0.8]), "II", horizon=1.6), steps=60)
    y = np.random.default_rng(0).normal(size=(3, 4, 2))
    y[1, 2, 0] = y[2, 3] = np.nan
    exact, target = wh.condition(model, y, TIMES), wh.condition(as_path(model), y, TIMES)
    assert exact.rows == target.rows == 3
    family = fbm.ControlledPath()
    logs, positions, _ = log_weights(target, family, start(target, family), 20, key)
    assert np.std(logs) < 1e-8
    assert_allclose(logs[0], exact.log_density({}), atol=2e-3)
    # One by one, by a filter that knows one series.
    each = exact.log_likelihood({})
    for i in (1, 2):
        one = wh.condition(model, y[i], TIMES)
        assert_allclose(each[i], one.log_density({}), rtol=1e-9)
    rows = jnp.array([2, 0])

    @jax.jit
    def by_rows(flat):
        position = flat_view(target)[1](flat)
        both = target.log_joint_rows(target.at_rows(position, rows), rows)[1]
        joint = target.log_joint_rows(position, jnp.arange(3))[1]
        return both, joint, target.log_density(position)

    both, joint, whole = by_rows(positions[0])
    assert_allclose(both, joint[rows], rtol=1e-9)
    assert_allclose(joint.sum(), whole, rtol=1e-9)


def test_bridge():
    """Standard deviations of fractional Brownian motion between 0 and an observation of 0."""

    def middle(hurst):
        walk = Walk(fbm.FractionalNoise(hurst), theta=0.0, sigma=1.0, start=0.0)
        return walk.smooth(jnp.zeros(1), jnp.array([2.0]), jnp.array([1.0])).scale[0, 0]

    found = jax.jit(jax.vmap(middle))(jnp.array([0.3, 0.7, 0.9]))
    # Largest error of the approximation at H = 0.9: 0.017.
    assert np.all(np.abs(found - np.array([0.7897, 0.5854, 0.3632])) < [0.01, 0.01, 0.018])


def test_published_bridge_and_its_start(key):
    """log Z of the published approximation, and what a start that knows no data costs."""
    noise = fbm.FractionalNoise(
        0.9, horizon=6.0, nodes=5, span=(0.3, 120.0), zero=False, weights="l2", normalize="mvn"
    )
    model = Walk(noise, theta=0.0, sigma=1.0, start=0.0, steps=20, exact=False)
    target = wh.condition(model, np.zeros(1), np.array([2.0]))
    family = fbm.ControlledPath()
    params = start(target, family)
    logs, positions, _ = log_weights(target, family, params, 4_000, key)
    assert_allclose(logs, -1.311, atol=5e-4)
    # E_p(start) log p(y | start) = log Z - KL(p(start), p(start | y)): moments of the latter.
    first = np.asarray(positions[:, :6])  # the state's own number does not matter
    mean, cov = first.mean(0), np.cov(first.T)
    kl = 0.5 * (np.linalg.slogdet(cov)[1] - 6 + np.trace(np.linalg.inv(cov)))
    kl += 0.5 * mean @ np.linalg.solve(cov, mean)
    assert_allclose(-1.311 - kl, -1.408, atol=0.02)


def test_density_is_that_of_the_draw(key):
    """With all networks at work, `log_prob` is the change of variables, `score` its slope."""
    model = Growth(fbm.FractionalNoise(0.7), steps=4)
    target = wh.condition(model, np.array([4, 6]), np.array([0.5, 1.0]))
    encoder = lambda key: eqx.nn.MLP(2, 3, 4, 1, key=key)
    family = fbm.ControlledPath(width=5, encoder=encoder)
    made, like, _ = family_of(target, family)
    params = shaken(made.init(like))
    noise = jax.tree.map(lambda v: v[0], made.noise(like, 1, key=key))
    flat = noise["path"].ravel()
    put = lambda z: {"parameters": None, "path": z.reshape(noise["path"].shape)}

    @jax.jit
    def found(z):
        jacobian = jax.jacfwd(lambda z: made.transform(params, put(z)))(z)
        both = jax.value_and_grad(lambda z: made.log_prob(params, put(z)))(z)
        return jacobian, *both, made.score(params, put(z))

    jacobian, own, slope, score = map(np.asarray, found(flat))
    base = -0.5 * flat @ flat - 0.5 * flat.size * np.log(2 * np.pi)
    assert_allclose(own, base - np.linalg.slogdet(jacobian)[1], rtol=1e-8)
    slope = np.linalg.solve(jacobian.T, slope)
    # The score is by position, where density by noise changes through the Jacobian alone.
    assert_allclose(score, slope, rtol=1e-6, atol=1e-8)


def test_weights_hold_the_martingale(key):
    """Any control: the mean weight of draws is the evidence (Girsanov)."""
    model = Walk(fbm.FractionalNoise(0.7), theta=0.0, sigma=1.0, first=0.5, error=0.5, steps=10)
    exact, target = wh.condition(model, Y, TIMES), wh.condition(as_path(model), Y, TIMES)
    family = fbm.ControlledPath(width=4, discrete=False)
    params = shaken(start(target, family), 0.1)
    logs, *_ = log_weights(target, family, params, 4_000, key)
    ratio = np.exp(np.asarray(logs) - float(exact.log_density({})))
    assert np.std(ratio) > 0.05
    # In continuous time the control alone leaves something over, and no outlier breaks it.
    heavy = wh.condition(Heavy(model.noise, steps=10), Y, TIMES)
    plain = fbm.ControlledPath(width=0, discrete=False)
    logs, *_ = log_weights(heavy, plain, start(heavy, plain), 50, key)
    assert np.all(np.isfinite(logs))
    assert np.std(logs) > 0.05
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(4_000)


def test_equation_that_is_not_linear(key):
    """Importance sampling by the control and a particle filter agree on the evidence."""
    times = np.array([0.0, 0.5, 1.0, 1.5])
    target = wh.condition(
        Growth(fbm.FractionalNoise(0.7), steps=12), np.array([4, 7, 11, 30]), times
    )
    family = fbm.ControlledPath(width=0)
    logs, *_ = log_weights(target, family, start(target, family), 1_000, key)
    weights = np.exp(np.asarray(logs) - np.max(logs))
    assert weights.sum() ** 2 / (weights @ weights) > 500  # the control is a good proposal
    estimate = np.log(weights.mean()) + np.max(logs)
    sequence = target.sequence
    draw = sequence.constrain({})
    run = lambda k: (
        run_filter(wh.ParticleFilter(400), sequence, draw, key=k)[0].log_evidence.value
    )
    found = np.exp(np.asarray(jax.jit(jax.vmap(run))(jr.split(key, 60))) - estimate)
    error = np.hypot(found.std() / np.sqrt(60), weights.std() / weights.mean() / np.sqrt(1_000))
    assert abs(found.mean() - 1) < 5 * error


def test_particles_against_the_filter(key):
    model = Walk(fbm.FractionalNoise(0.8), theta=0.0, sigma=1.0, first=1.0, error=0.5, steps=8)
    exact, target = wh.condition(model, Y, TIMES), wh.condition(as_path(model), Y, TIMES)
    draw = target.sequence.constrain({})

    def run(k):
        cloud, _ = run_filter(wh.ParticleFilter(300), target.sequence, draw, key=k)
        # One state after the other, and the path that their noise makes.
        keys = jr.split(k, len(TIMES))
        path = [target.sequence.initial(draw, key=keys[0])]
        for i in range(1, len(TIMES)):
            at = jnp.asarray(i), target.sequence.datum(i)
            path.append(target.sequence.transition(draw, path[-1], *at, key=keys[i]))
        path = jnp.stack(path)
        own = target.constrain(target.sequence.join({}, path)).states
        return cloud.log_evidence.value, own, path[:, :1]

    logs, own, states = jax.jit(jax.vmap(run))(jr.split(key, 100))
    ratio = np.exp(np.asarray(logs) - float(exact.log_density({})))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 10
    assert_allclose(own, states, rtol=1e-9)
    # The same law without a latent path.
    filtered = wh.filter(exact, wh.ParticleFilter(2_000), key=key)
    last = exact.constrain({}).smooth(exact.y, exact.inputs[0], exact.inputs[0][-1:])
    assert abs(filtered.mean[-1, 0] - last.loc[0, 0]) < 5 * float(last.scale[0, 0]) / 20


def test_predictions_of_a_path(key):
    """States between points of the grid and beyond it have the law of the moving kernel."""
    times = np.array([0.0, 1.0, 2.0])
    at = np.array([2.9, 0.3, 0.42, 2.0, 1.4])  # two within one step, one beyond
    target = wh.condition(Turning(steps=4), np.zeros(3), times)
    every = np.concatenate([at, times[1:]])

    def one(key):
        keys = jr.split(key)
        draw = target.constrain(target.sample_prior_position(key=keys[0]))
        bank, _ = draw.basis()
        plan, white = draw.plan, draw.hidden["step_noise"]
        path = draw.path()
        new = between(draw, bank, plan.grid, path, white, jnp.asarray(at), keys[1])
        return jnp.concatenate([new, path[0][plan.at[1:]]]), path

    count = 6_000
    drawn, (x, y) = jax.jit(jax.vmap(one))(jr.split(key, count))
    pairs = [(min(s, t), max(s, t)) for s in every for t in every]
    want = [moving_kernel(target.model, times, s, t) for s, t in pairs]
    want, noise = np.reshape(want, (7, 7)), np.asarray(drawn[..., 0])
    error = np.sqrt((want**2 + np.outer(np.diag(want), np.diag(want))) / count)
    assert np.all(np.abs(noise.T @ noise / count - want) < 5 * error)
    assert_allclose(noise[:, 3], noise[:, -1], atol=1e-9)  # a point of the grid is known
    # On the grid it is the sum of its processes, with the weights of each time.
    own = target.model.noise.bank(2.0, 3, 0.3 + 0.2 * target.model.plan.grid)
    total = jnp.sum(own.weights[None] * y[:, :, 0], axis=-1)
    assert_allclose(x[..., 0], total, atol=1e-8)
    # Without noise Heun's rule is the trapezoidal one, from the last point before.
    before = [[0, 0.5, 1, 1.5, 2, 2.9], [0, 0.3], [0, 0.3, 0.42], [0, 0.5, 1, 1.5, 2]]
    before += [[0, 0.5, 1, 1.4], [0, 0.5, 1], [0, 0.5, 1, 1.5, 2]]
    sums = [np.trapezoid(np.square(p), p) for p in before]
    assert_allclose(drawn[..., 1], np.tile(sums, (count, 1)), atol=1e-7)


def test_hurst_that_varies(key):
    draw = wh.condition(Turning(steps=40), np.zeros(2), np.array([0.0, 2.0])).model
    # Variance t^(2 H(t)), where a change of H without its own term would miss by a lot.
    made = draw.simulate(np.array([0.0, 1.0, 2.0]), key=key, paths=3_000, steps=40)
    t = np.array([1.0, 2.0])
    want = t ** (2 * (0.3 + 0.2 * t))
    assert_allclose(made[:, 1:, 0].var(0), want, rtol=5 * np.sqrt(2 / 3_000) + 0.01)


def test_parameters_and_paths_together(key):
    """A fit with sigma unknown: the same posterior as with the path integrated out."""
    model = Unscaled(fbm.FractionalNoise(0.7), theta=0.0, steps=4, first=1.0, error=0.3)
    exact, target = wh.condition(model, Y, TIMES), wh.condition(as_path(model), Y, TIMES)
    grid = jnp.linspace(-4, 3, 400)
    logs = jax.vmap(lambda s: exact.log_density({"sigma": s}))(grid)
    weights = np.exp(logs - logs.max())
    mean = weights @ grid / weights.sum()
    engine = wh.BBVI(
        fbm.ControlledPath(parameters=MeanField()), steps=500, samples=5, draws=500
    )
    fit = wh.infer(target, engine, key=key, progress=False)
    log_evidence = np.log(weights.sum() * (grid[1] - grid[0])) + logs.max()
    gap = log_evidence - fit.record.elbo_final
    assert -0.05 < gap < 0.15  # what a normal law of log sigma leaves
    error = fit.record.elbo_final_error
    assert error < 0.03
    ratios = fit.record.log_weights_is.ravel()
    assert abs(np.log(np.mean(np.exp(ratios))) - log_evidence) < 0.05
    sigma = np.log(fit.variables["sigma"]).mean()
    assert abs(sigma - mean) < 0.15


@pytest.mark.slow
def test_fits_go_on_bit_for_bit(key):
    """In chunks and after a stop, with networks and an encoder, as without."""
    model = Growth(fbm.FractionalNoise(0.7), steps=2)
    target = wh.condition(model, np.array([4, 6]), np.array([0.5, 1.0]))
    family = fbm.ControlledPath(width=4, linear=False)
    engine = wh.BBVI(family, steps=8, samples=2, draws=10)
    check_engine(engine, target, key=key, only="resume")


class Flat(eqx.Module):
    """An encoder of the data of a series, its times left out."""

    network: eqx.nn.MLP

    def __call__(self, y, times=None):
        return self.network(y)


def test_encoder_of_several_series(key):
    """Trained on some series an encoder serves others; so does an existing `Amortised`."""
    noise = fbm.FractionalNoise(0.7)
    model = Walk(noise, theta=0.0, sigma=1.0, first=1.0, error=0.3, steps=3, exact=False)
    times = jnp.asarray(TIMES)
    series = jax.jit(jax.vmap(lambda k: model.predict(times, key=k)))
    y, other = np.asarray(series(jr.split(jr.key(1), 60))).reshape(2, 30, 4)
    target, held = wh.condition(model, y, TIMES), wh.condition(model, other, TIMES)
    exact = wh.condition(dataclasses.replace(model, exact=True), other, TIMES)
    encoder = lambda key: Flat(eqx.nn.MLP(4, 8, 16, 1, key=key))
    family = fbm.ControlledPath(linear=False, encoder=encoder)
    engine = wh.BBVI(family, steps=250, samples=2, draws=10)
    fit = wh.infer(target, engine, key=key, progress=False)
    found = engine.bound(held, fit.record, key=1, samples=50)
    evidence = float(exact.log_density({}))
    # Before training noise is at its prior: at least nine tenths of the way are made.
    bank = target.model.noise.bank(1.6, 4)
    variance = 1.0 + np.asarray(bank.covariance(times - 0.4, times - 0.4))
    before = norm(0.0, 0.3).logpdf(other).sum() - 30 * variance.sum() / (2 * 0.3**2)
    assert before + 0.9 * (evidence - before) < found < evidence


def test_batches_of_series_add_up(key):
    """Log weights of the same draws, in two batches, have the mean of that of all series."""
    model = Unscaled(fbm.FractionalNoise(0.7), theta=0.0, steps=3, exact=False)
    y = np.random.default_rng(2).normal(size=(4, 4))
    y[1, 2] = np.nan
    target = wh.condition(model, y, TIMES)
    encoder = lambda key: Flat(eqx.nn.MLP(4, 3, 4, 1, key=key))
    family = fbm.ControlledPath(MeanField(), linear=False, encoder=encoder, width=4)
    whole, like, _ = family_of(target, family)
    params = shaken(whole.init(like))
    noise = whole.noise(like, 2, key=key)

    @jax.jit
    def log_weight(rows, path):
        batch = Batch.of(target, family, params, rows)
        found = batch_weights(batch, noise | {"path": path}).total
        own = jax.vmap(lambda n: batch.family.score(params, n))(noise | {"path": path})
        return found, batch.scale, jnp.sum(own)

    first, second = jnp.array([0, 2]), jnp.array([3, 1])
    halves = [log_weight(rows, noise["path"][:, rows]) for rows in (first, second)]

    @jax.jit
    def of_all(noise):
        total = batch_weights(Batch.of(target, family, params, None), noise).total
        return total, jnp.sum(jax.vmap(lambda n: whole.score(params, n))(noise))

    every, score = of_all(noise)
    assert_allclose((halves[0][0] + halves[1][0]) / 2, every, rtol=1e-9)
    assert_allclose((halves[0][2] + halves[1][2]) / 2, score, rtol=1e-9)
    plain = wh.BBVI(fbm.ControlledPath(MeanField()), batch_size=2)
    with pytest.raises(ValueError, match="`batch_size` must be None for a `ControlledPath`"):
        wh.infer(target, plain, key=key)


@pytest.mark.slow
def test_fit_by_batches_of_series(key):
    model = Unscaled(fbm.FractionalNoise(0.7), theta=0.0, steps=3, exact=False)
    target = wh.condition(model, np.random.default_rng(2).normal(size=(4, 4)), TIMES)
    encoder = lambda key: Flat(eqx.nn.MLP(4, 3, 4, 1, key=key))
    family = fbm.ControlledPath(MeanField(), encoder=encoder, width=4)
    engine = wh.BBVI(family, steps=2, samples=1, draws=2, batch_size=2)
    fit = wh.infer(target, engine, key=key, progress=False)
    assert np.isfinite(fit.record.elbo_final)


@pytest.mark.slow
def test_nuts_draws_paths(key):
    """Mean and spread of log sigma are those with the path integrated out."""
    model = Unscaled(fbm.FractionalNoise(0.7), theta=0.5, steps=10, first=1.0, error=0.3)
    exact, target = wh.condition(model, Y, TIMES), wh.condition(as_path(model), Y, TIMES)
    grid = jnp.linspace(-4, 3, 400)
    logs = jax.vmap(lambda s: exact.log_density({"sigma": s}))(grid)
    weights = np.exp(logs - logs.max()) / np.sum(np.exp(logs - logs.max()))
    mean = weights @ grid
    engine = wh.NUTS(warmup=500, draws=1_000, chains=4)
    fit = wh.infer(target, engine, key=key, progress=False)
    summary = fit.summary(var_names=["sigma"])
    draws = np.log(fit.variables["sigma"])
    error = draws.std() / np.sqrt(float(summary["ess_bulk"].iloc[0]))
    assert abs(draws.mean() - mean) < 5 * error + 0.01  # of Heun's rule
    assert_allclose(draws.std(), np.sqrt(weights @ (grid - mean) ** 2), rtol=0.15)


@pytest.mark.slow
def test_path_of_rows(key):
    """An encoder by row, and batches of series: the path is a local latent like others."""
    model = Walk(fbm.FractionalNoise(0.7), theta=0.0, sigma=1.0, steps=3, exact=False)
    target = wh.condition(model, np.zeros((30, 4)), TIMES)
    number = 2 * sum(int(np.prod(site.shape[1:])) for site in target.free)
    rows = Amortised(lambda key: Flat(eqx.nn.MLP(4, number, 8, 1, key=key)))
    engine = wh.BBVI(rows, steps=300, samples=1, draws=10, batch_size=10)
    fit = wh.infer(target, engine, key=key, progress=False)
    evidence = wh.condition(dataclasses.replace(model, exact=True), np.zeros((30, 4)), TIMES)
    assert np.mean(fit.record.elbo[-50:]) < float(evidence.log_density({}))
    assert np.mean(fit.record.elbo[-50:]) > np.mean(fit.record.elbo[:20]) + 30


def test_predictions_given_data(key):
    """At the times of the data and at new ones, of several series."""
    model = Growth(fbm.FractionalNoise(0.7), steps=4)
    y = np.array([[4, 6], [5, 9], [3, 3]])
    target = wh.condition(model, y, np.array([0.5, 1.0]))
    new = target.new_inputs((np.array([1.2, 0.7, 0.9]),), {})

    def both(key):
        draw = target.constrain(target.sample_prior_position(key=key))
        at_new = target.predict_given(draw, new, key=key)["y"]
        return draw.states, target.predict_given(draw, None, key=key)["y"], at_new

    states, old, at_new = jax.jit(jax.vmap(both))(jr.split(key, 500))
    assert old.shape == (500, *y.shape)
    assert at_new.shape == (500, *y.shape[:-1], 3)
    # Counts at the old times are those of the states of the same draws.
    rest = np.asarray(old) - 5 * np.exp(np.asarray(states)[..., 0] - 1)
    scale = np.sqrt(5 * np.exp(np.asarray(states)[..., 0] - 1))
    z = (rest / scale).reshape(500, -1).mean(0) * np.sqrt(500)
    assert np.all(np.abs(z) < 5)
    with pytest.raises(ValueError, match="beyond the tables"):
        target.new_inputs((np.array([5.0]),), {})
    target.new_inputs((np.array([0.6, 0.7]),), {})  # as many as the old


def test_what_is_refused():
    walk = Unscaled(fbm.FractionalNoise(0.7), theta=0.0)
    target = wh.condition(walk, Y, TIMES)
    run = lambda t, f: wh.infer(t, wh.BBVI(f, steps=5), key=0, progress=False)
    with pytest.raises(ValueError, match="is integrated out"):
        run(target, fbm.ControlledPath())
    path = wh.condition(as_path(walk), Y, TIMES)
    with pytest.raises(ValueError, match=r"`parameters` must be a family .*\(sigma\)"):
        run(path, fbm.ControlledPath())
    with pytest.raises(ValueError, match="`parameters` must be an instance"):
        fbm.ControlledPath(parameters="mean field")
    with pytest.raises(ValueError, match="`encoder` must be a function of a key"):
        fbm.ControlledPath(encoder=eqx.nn.MLP(1, 1, 1, 1, key=jr.key(0)))
    with pytest.raises(ValueError, match="must be 'II'"):
        wh.condition(Turning(noise=fbm.FractionalNoise()), Y, TIMES)
    with pytest.raises(ValueError, match=r"Several series are \('series', 4\)"):
        wh.condition(walk, np.zeros((4, 2)), np.array([0.0, 1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="has no path"):
        target.constrain(target.init(key=jr.key(0))).path()
    with pytest.raises(ValueError, match="takes no datum more"):
        wh.ParticleFilter(10).update(
            wh.ParticleFilter(10).start(
                wh.condition(Growth(walk.noise), np.array([4, 6]), np.array([0.5, 1.0])), key=0
            ),
            1.0,
        )
