"""Linear equations against dense Gaussian algebra, paths against closed forms, bad input."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, special
from scipy.linalg import expm

import whence as wh
from whence.models import fbm


class Tracker(fbm.FractionalSDE):
    theta: Any = wh.latent(dist.LogNormal(0.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))
    noise: fbm.FractionalNoise = fbm.FractionalNoise(hurst=wh.latent(dist.Beta(2, 2)))

    def drift(self, t, x):
        return -self.theta * x

    def diffusion(self, t, x):
        return self.sigma

    def observe(self, x):
        return dist.Normal(x[0], 0.1)


class Coupled(fbm.FractionalSDE):
    """Two components that pull at each other, each seen, and their sum."""

    pull: Any
    noise: fbm.FractionalNoise

    def initial(self):
        return dist.Normal(jnp.array([1.0, -1.0]), jnp.array([0.5, 0.2]))

    def drift(self, t, x):
        return self.pull @ x + jnp.array([0.3, 0.0])

    def diffusion(self, t, x):
        return jnp.array([0.7, 0.2])

    def observe(self, x):
        mean = jnp.array([x[0], x[1], x[0] + x[1] - 1.0])
        return dist.Normal(mean, jnp.array([0.1, 0.2, 0.3])).to_event(1)


PULL = jnp.array([[-1.0, 0.4], [0.2, -2.5]])
TIMES = np.array([0.0, 0.003, 0.2, 0.9, 1.0, 1.7, 3.0])


def dense(model, times, sigma, a, c, mean, scale):
    """Return mean `(time, x)` and covariance of X at the times, by exponentials of matrices."""
    bank, d = model.noise.bank(times[-1] - times[0], len(times)), len(mean)
    rates, scales = np.asarray(bank.rates), np.asarray(bank.scales)
    weights = np.broadcast_to(np.asarray(bank.weights), (d, len(rates)))
    size = d * (1 + len(rates))
    f, b = np.zeros((size, size)), np.zeros((size, d))
    f[:d, :d] = a
    p = np.zeros((size, size))
    p[:d, :d] = np.diag(scale**2)
    for i in range(d):
        y = slice(d + i * len(rates), d + (i + 1) * len(rates))
        f[i, y], f[y, y] = -sigma[i] * weights[i] * rates, -np.diag(rates)
        b[i, i], b[y, i] = sigma[i] * weights[i] @ scales, scales
        p[y, y] = bank.stationary()
    means, states, moves = [np.concatenate([mean, np.zeros(size - d)])], [p], []
    drive = np.concatenate([c, np.zeros(size - d)])
    for gap in np.diff(times):
        # Panels that halve towards 0, where the fast rates live.
        edges = gap * np.concatenate([[0.0], 2.0 ** -np.arange(14.0, -1, -1)])
        q, u = np.zeros((size, size)), np.zeros(size)
        for low, high in zip(edges, edges[1:]):
            for x, w in zip(*np.polynomial.legendre.leggauss(12)):
                e = expm(f * ((high - low) * (x + 1) / 2 + low))
                q += w * (high - low) / 2 * (e @ b) @ (e @ b).T
                u += w * (high - low) / 2 * e @ drive
        moves.append(expm(f * gap))
        means.append(moves[-1] @ means[-1] + u)
        states.append(moves[-1] @ states[-1] @ moves[-1].T + q)
    n = len(times)
    full = np.zeros((n, d, n, d))
    for i in range(n):
        on = states[i]
        for j in range(i, n):
            on = on if j == i else moves[j - 1] @ on
            full[j, :, i, :] = on[:d, :d]
            full[i, :, j, :] = on[:d, :d].T
    return np.stack(means)[:, :d], full.reshape(n * d, n * d)


@pytest.fixture(scope="module")
def coupled():
    noise = fbm.FractionalNoise(np.array([0.3, 0.8]))
    model = Coupled(noise, PULL)
    mean, covariance = dense(
        model, TIMES, [0.7, 0.2], np.asarray(PULL), np.array([0.3, 0]), np.array([1.0, -1.0]),
        np.array([0.5, 0.2]),
    )  # fmt: skip
    see = np.array([[1.0, 0], [0, 1], [1, 1]])
    h = np.kron(np.eye(len(TIMES)), see)
    y_mean = mean @ see.T + np.array([0, 0, -1.0])
    noise_variance = np.tile([0.01, 0.04, 0.09], len(TIMES))
    y_cov = h @ covariance @ h.T + np.diag(noise_variance)
    y = y_mean + np.random.default_rng(1).normal(size=y_mean.shape)
    return model, y, mean, covariance, h, y_mean.ravel(), y_cov


@pytest.fixture(scope="module")
def holes():
    seen = np.ones((len(TIMES), 3), bool)
    seen[1, 0] = seen[3] = seen[4, 2] = False
    return seen


def gaussian(y, mean, cov):
    z = np.linalg.solve(np.linalg.cholesky(cov), y - mean)
    return -0.5 * z @ z - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]


def test_filters_smoother_and_deletion_are_dense_gaussian_algebra(coupled, holes):
    model, y, mean, covariance, h, y_mean, y_cov = coupled
    s = holes.ravel()
    part = np.ix_(s, s)
    want = gaussian(y.ravel()[s], y_mean[s], y_cov[part])
    times, seen = jnp.asarray(TIMES), jnp.asarray(holes)
    got = jax.jit(lambda m, y: m.log_likelihood(y, times, seen))(model, jnp.asarray(y))
    assert_allclose(got, want, rtol=1e-9)
    parallel = Coupled(model.noise, PULL, parallel=True)
    got = jax.jit(lambda m, y: m.log_likelihood(y, times, seen))(parallel, jnp.asarray(y))
    assert_allclose(got, want, rtol=1e-9)

    inverse = np.linalg.inv(y_cov[part])
    weighted = inverse @ (y.ravel()[s] - y_mean[s])
    precision = np.diag(inverse)
    rest = 0.5 * (np.log(precision / (2 * np.pi)) - weighted**2 / precision)
    got, at = jax.jit(
        lambda m, y: (
            m.log_density_given_rest(y, times, seen),
            (lambda d: (d.mean, d.variance))(m.smooth(y, times, times[::-1], seen)),
        )
    )(model, jnp.asarray(y))
    assert_allclose(np.asarray(got)[holes], rest, rtol=1e-8)
    gain = covariance @ h[s].T
    assert_allclose(at[0][::-1].ravel(), mean.ravel() + gain @ weighted, rtol=1e-8, atol=1e-10)
    left = np.diag(covariance - gain @ inverse @ gain.T)
    assert_allclose(at[1][::-1].ravel(), left, rtol=1e-7, atol=1e-12)


def test_predictions_given_data_have_the_conditional_law(key):
    """Between, at and beyond observations: mean and covariance of 4,000 draws, in 5 errors."""

    class Moved(Tracker):  # everything has a mean
        def initial(self):
            return dist.Normal(jnp.ones(1), 0.2)

        def drift(self, t, x):
            return 0.7 - self.theta * x

        def observe(self, x):
            return dist.Normal(x[0] - 3.0, 0.1)

    model = Moved(theta=1.0, sigma=0.8, noise=fbm.FractionalNoise(0.75))
    times = np.array([0.0, 0.5, 0.6, 2.0])
    at = np.array([3.5, 0.25, 0.5])
    every = np.array([0.0, 0.25, 0.5, 0.6, 2.0, 3.5])
    bank = model.noise.bank(2.0, 4)
    held = Tracker(theta=1.0, sigma=0.8, noise=fbm.FractionalNoise(0.75, horizon=2.0))
    assert_allclose(held.noise.bank(count=len(every)).weights, bank.weights)
    mean, cov = dense(held, every, [0.8], -1.0, np.full(1, 0.7), np.ones(1), np.full(1, 0.2))
    old, new = [0, 2, 3, 4], [5, 1, 2]
    y = np.array([0.5, 0.1, -0.4, 1.0]) - 3.0
    inverse = np.linalg.inv(cov[np.ix_(old, old)] + 0.01 * np.eye(4))
    gain = cov[np.ix_(new, old)] @ inverse
    left = cov[np.ix_(new, new)] - gain @ cov[np.ix_(old, new)] + 0.01 * np.eye(3)
    draw = lambda k: model.predict_given(
        jnp.asarray(y), (jnp.asarray(times),), (jnp.asarray(at),), key=k
    )
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(key, 4000)))
    centre = mean[new, 0] - 3.0 + gain @ (y + 3.0 - mean[old, 0])
    assert np.all(np.abs(drawn.mean(0) - centre) < 5 * np.sqrt(np.diag(left) / 4000))
    spread = np.sqrt((left**2 + np.outer(np.diag(left), np.diag(left))) / 4000)
    assert np.all(np.abs(np.cov(drawn.T) - left) < 5 * spread)


def stationary_fou(tau, theta, h):
    """Covariance of a stationary fractional Ornstein-Uhlenbeck process, sigma 1."""
    x = theta * tau
    series = sum(  # 1F2(1; H + 1/2, H + 1; x^2 / 4)
        (x**2 / 4) ** n / (special.poch(h + 0.5, n) * special.poch(h + 1, n)) for n in range(60)
    )
    value = special.gamma(2 * h + 1) * np.cosh(x) - x ** (2 * h) * series
    return value / (2 * theta ** (2 * h))


@pytest.mark.parametrize(("h", "variance"), [(0.9, 0.675899), (0.2, 0.455029)])
def test_fractional_ornstein_uhlenbeck(h, variance):
    """Closed form, spectral integral and the system that the filter runs on."""
    r = lambda tau: stationary_fou(tau, 1.0, h)
    if h > 0.5:
        front = special.gamma(2 * h + 1) * np.sin(np.pi * h) / np.pi
        weight = lambda x: np.cos(0.7 * x) / (1 + x**2)
        low = integrate.quad(weight, 0, 1, weight="alg", wvar=(1 - 2 * h, 0))[0]
        high = integrate.quad(
            lambda x: x ** (1 - 2 * h) / (1 + x**2), 1, np.inf, weight="cos", wvar=0.7
        )[0]
        assert_allclose(r(0.7), front * (low + high), rtol=1e-8)
    started = lambda s, t: (
        r(t - s) - np.exp(-t) * r(s) - np.exp(-s) * r(t) + np.exp(-s - t) * r(0.0)
    )
    assert_allclose(started(2.0, 2.0), variance, atol=1e-6)
    model = Tracker(theta=1.0, sigma=1.0, noise=fbm.FractionalNoise(h))
    times = np.array([0.0, 0.8, 2.0])
    _, cov = dense(model, times, [1.0], -1.0, np.zeros(1), np.zeros(1), np.zeros(1))
    want = [[started(0.8, 0.8), started(0.8, 2.0)], [started(0.8, 2.0), started(2.0, 2.0)]]
    assert_allclose(cov[1:, 1:], want, atol=0.012 * variance)


class Growth(fbm.FractionalSDE):
    """`dX = X dB` has the solution `X_0 exp(B)` in the sense of Stratonovich."""

    noise: fbm.FractionalNoise

    def initial(self):
        return dist.Normal(jnp.ones(1), jnp.zeros(1))

    def drift(self, t, x):
        return jnp.zeros(1)

    def diffusion(self, t, x):
        return x

    def observe(self, x):
        return dist.Normal(x[0], 0.1)


def test_paths(key):
    """Heun's rule against `exp(B)`; Runge-Kutta's against a linear equation."""
    at, paths = jnp.array([0.0, 0.4, 1.0]), 2000
    noise = fbm.FractionalNoise(0.7)
    # Itô's solution would differ by half of the squared diffusivity: 0.5 at H = 1/2.
    even = fbm.FractionalNoise(0.5)
    log = np.log(Growth(even).simulate(at, key=key, paths=paths, steps=150)[:, 1:, 0])
    bank = even.bank(1.0)
    want = np.asarray(
        bank.covariance(at[1:, None] + 0 * at[None, 1:], at[None, 1:] + 0 * at[1:, None])
    )
    assert np.all(np.abs(log.mean(0)) < 5 * np.sqrt(np.diag(want) / paths))
    error = np.sqrt((want**2 + np.outer(np.diag(want), np.diag(want))) / paths)
    assert np.all(np.abs(log.T @ log / paths - want) < 5 * error + 0.01 * want)

    linear = Tracker(theta=2.0, sigma=0.5, noise=noise)
    x = np.asarray(linear.simulate(at, key=key, paths=paths, steps=40)[:, :, 0])
    _, want = dense(linear, np.asarray(at), [0.5], -2.0, np.zeros(1), np.zeros(1), np.ones(1))
    error = np.sqrt((want**2 + np.outer(np.diag(want), np.diag(want))) / paths)
    assert np.all(np.abs(x.T @ x / paths - want) < 5 * error + 0.01 * want)


class Tide(Growth):
    flow: float = 1.0
    turn: float = 1.0

    def drift(self, t, x):
        return self.flow * jnp.sin(t) * jnp.ones(1)

    def diffusion(self, t, x):
        return jnp.cos(self.turn * t)


def test_equations_that_change_with_time(key):
    """Of what depends on time alone Heun's rule is the trapezoidal one, noise by noise."""
    noise, times = fbm.FractionalNoise(0.5, horizon=2.0), np.array([0.0, 1.0, 2.0])
    draw = lambda *v: Tide(noise, *v).simulate(times, key=key, paths=4, steps=2)[:, :, 0]
    both, shaken, walk = draw(1.0, 1.0), draw(0.0, 1.0), draw(0.0, 0.0)
    want = np.sin(times) @ [0.5, 1.0, 0.5]
    assert_allclose((both - shaken)[:, 2], np.full(4, want), rtol=1e-9)
    want = 1.0 + np.diff(walk, axis=1) @ (np.cos(times)[:-1] + np.cos(times)[1:]) / 2
    assert_allclose(shaken[:, 2], want, rtol=1e-9)


def test_evidence_is_differentiable_and_grids_with_holes_are_shared():
    times = np.delete(np.linspace(0.0, 3.0, 31), [4, 5, 17])
    y = jnp.sin(jnp.asarray(times))

    def evidence(p, times):
        noise = fbm.FractionalNoise(p[2])
        return Tracker(theta=p[0], sigma=p[1], noise=noise).log_likelihood(y, times)

    p = jnp.array([1.3, 0.7, 0.3])
    both = jax.jit(jax.value_and_grad(evidence))
    value, slope = both(p, jnp.asarray(times))
    for i in range(3):
        step = jnp.zeros(3).at[i].set(1e-5)
        up, down = both(p + step, jnp.asarray(times)), both(p - step, jnp.asarray(times))
        assert_allclose(slope[i], (up[0] - down[0]) / 2e-5, rtol=1e-5)
    # Times a hair apart from the grid take the other way, and nothing jumps.
    moved = times.copy()
    moved[1:-1] += 1e-9 * np.sin(40 * times[1:-1])
    assert_allclose(both(p, jnp.asarray(moved))[0], value, rtol=1e-6)


def test_posterior_is_calibrated(key):
    """Ranks of H and sigma among the weights of a grid are uniform: 200 simulated series."""
    h, sigma = np.linspace(0.05, 0.95, 19), np.geomspace(0.3, 3.0, 13)
    times = jnp.asarray(np.linspace(0.0, 1.0, 13))
    grid = jnp.asarray(np.stack(np.meshgrid(h, sigma, indexing="ij"), -1).reshape(-1, 2))
    make = lambda p: Tracker(theta=0.5, sigma=p[1], noise=fbm.FractionalNoise(p[0]))
    which = np.random.default_rng(5).integers(0, len(grid), 200)

    @jax.jit
    def simulate(ps, keys):
        ys = jax.vmap(lambda p, k: make(p).predict(times, key=k))(ps, keys)
        row = lambda p: jax.vmap(lambda y: make(p).log_likelihood(y, times))(ys)
        return jax.lax.map(row, grid)

    logs = np.asarray(simulate(grid[which], jax.random.split(key, 200))).T
    weights = np.exp(logs - logs.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    for column in (0, 1):
        values = np.asarray(grid[:, column])
        truth = values[which][:, None]
        below = np.sum(weights * (values[None] < truth), axis=1)
        equal = np.sum(weights * (values[None] == truth), axis=1)
        rank = below + np.random.default_rng(6).uniform(size=200) * equal
        # Kolmogorov's distance; false alarm once in 10,000 for each of the two.
        distance = np.abs(np.sort(rank) - (np.arange(200) + 0.5) / 200).max()
        assert distance < 2.23 / np.sqrt(200), (column, distance)


def test_equations_that_are_refused_or_keep_their_path():
    class Bent(Tracker):
        def drift(self, t, x):
            return -self.theta * x**3

    class Seasonal(Tracker):
        def drift(self, t, x):
            return jnp.sin(t) - self.theta * x

    class Scaled(Tracker):
        def diffusion(self, t, x):
            return self.sigma * x

    class Counted(Tracker):
        def observe(self, x):
            return dist.Poisson(jnp.exp(x[0]))

    class Curved(Tracker):
        def observe(self, x):
            return dist.Normal(x[0] ** 2, 0.1)

    class Fuzzy(Tracker):
        def observe(self, x):
            return dist.Normal(x[0], 0.1 + x[0] ** 2)

    class Long(Tracker):
        def drift(self, t, x):
            return jnp.zeros(2)

    class Mixed(Tracker):
        def diffusion(self, t, x):
            return self.sigma * jnp.eye(1)

    class Seen(Tracker):
        def observe(self, x):
            return x[0]

    data = np.zeros(3), np.arange(3.0)
    for model in (Bent, Seasonal, Scaled, Counted, Curved, Fuzzy):
        assert wh.condition(model(), *data).model.plan.form == "path"
        with pytest.raises(ValueError, match="no exact likelihood|path is integrated out"):
            model(theta=1.0, sigma=1.0, noise=fbm.FractionalNoise()).log_likelihood(*data)
    for model, said in {
        Long: r"`drift` of Long must return shape \(1,\)",
        Mixed: "`diffusion` of Mixed must be diagonal",
        Seen: "`observe` of Seen must return a numpyro distribution",
    }.items():
        with pytest.raises(ValueError, match=said):
            wh.condition(model(), *data)


@pytest.mark.parametrize(
    ("y", "times", "said"),
    [
        (np.zeros(3), [0.0, 2.0, 1.0], "not sorted: 2.0 is followed by 1.0"),
        (np.zeros(3), [0.0, 1.0, 1.0], "repeat: 1.0"),
        (np.zeros(3), [0.0, 1.0, np.nan], "`times` must be finite"),
        (np.zeros(3), [0.0, 1.0], "one row for each of the 2 times"),
        (np.full(3, np.nan), [0.0, 1.0, 2.0], "All 3 numbers of `y` are missing"),
        (np.array([1.0, np.inf, 0.0]), [0.0, 1.0, 2.0], "finite or NaN"),
        (np.array([1.0, np.nan]), [0.0, 1.0], "One time has no horizon"),
        (np.zeros((3, 2)), [0.0, 1.0, 2.0], r"`y` must have shape \(3,\)"),
    ],
)
def test_data_that_are_refused(y, times, said):
    with pytest.raises(ValueError, match=said):
        wh.condition(Tracker(), y, np.asarray(times))


def test_noise_that_does_not_fit_the_times_is_named():
    times, y = np.linspace(0.0, 1.0, 101), np.zeros(101)
    with pytest.raises(ValueError, match="too coarse for these times") as refused:
        wh.condition(Tracker(noise=fbm.FractionalNoise(0.3, span=(0.05, 20))), y, times)
    (wider,) = re.findall(r"`span` of the noise to (\S+) or more", str(refused.value))
    wider = fbm.FractionalNoise(0.3, span=(0.01, float(wider)), weights="l2")
    wh.condition(Tracker(noise=wider), y, times)  # as advised
    with pytest.raises(ValueError, match="`horizon` of the noise must be at least"):
        wh.condition(Tracker(noise=fbm.FractionalNoise(0.3, horizon=0.4)), y, times)
    poor = fbm.FractionalNoise(0.1, nodes=4, span=(1.0, 300.0), weights="l2")
    with pytest.warns(wh.InferenceWarning, match="approximated poorly"):
        wh.condition(Tracker(noise=poor), y, times)
    close = np.sort(np.append(times, 0.50001))
    fixed = fbm.FractionalNoise(0.3, span=(0.01, 500.0))
    with pytest.warns(wh.InferenceWarning, match="1 of 101 gaps"):
        wh.condition(Tracker(noise=fixed), np.zeros(102), close)
    # Left to itself the noise gets rates for the closest times, and is right there.
    noise = wh.condition(Tracker(noise=fbm.FractionalNoise(0.3)), np.zeros(102), close)
    lag = jnp.array(1e-5)
    found = noise.model.noise.bank(1.0, 102).covariance(lag, lag)
    assert_allclose(found, 1e-5**0.6, rtol=0.02)
    with pytest.raises(ValueError, match="one for each of the 1 components"):
        wh.condition(Tracker(noise=fbm.FractionalNoise(np.array([0.3, 0.4]))), y, times)
    with pytest.raises(ValueError, match="not be before the start, 0.5"):
        wh.condition(Tracker(start=0.5), y, times)
    path = Tracker(theta=1.0, sigma=0.8, noise=fbm.FractionalNoise(0.3), exact=False, steps=50)
    wh.condition(path, y, times)
    loud = dataclasses.replace(path, sigma=8.0)
    with pytest.warns(wh.InferenceWarning, match="too coarse for the noise of") as warned:
        wh.condition(loud, y, times)
    (steps,) = re.findall(r"`steps=(\d+)`", str(warned[0].message))
    wh.condition(dataclasses.replace(loud, steps=int(steps)), y, times)  # as advised
    with pytest.warns(wh.InferenceWarning, match="too coarse for the noise of"):
        wh.condition(dataclasses.replace(loud, steps=int(steps) // 2), y, times)


def test_missing_numbers_and_forecasts(coupled, holes):
    """NaN is what was not observed: whole rows leave, single numbers are skipped."""
    model, y, *_ = coupled
    target = wh.condition(model, np.where(holes, y, np.nan), TIMES)
    assert target.y.shape == (6, 3)
    assert target.inputs[1].sum() == holes.sum()
    with pytest.raises(ValueError, match="2 horizons after it"):
        target.new_inputs((np.array([7.0]),), {})
    target.new_inputs((np.array([6.0]),), {})
    with pytest.raises(ValueError, match="must be from the start"):
        target.new_inputs((np.array([-0.1]),), {})
    later = wh.condition(model, np.where(holes, y, np.nan), TIMES + 5.0)
    later.new_inputs((np.array([5.0, 11.0]),), {})
    with pytest.raises(ValueError, match="2 horizons after it, 11: beyond"):
        later.new_inputs((np.array([11.1]),), {})
    # Within a program, and of rates that no series can follow, there is no number.
    at = jnp.array([7.0, 6.0])
    both = lambda a, at: (
        (c := Coupled(model.noise, a * PULL)).smooth(target.y, target.inputs[0], at).mean,
        c.log_likelihood(target.y, target.inputs[0]),
    )
    beyond, fast = jax.jit(both)(1.0, at)[0], jax.jit(both)(1e9, at - 1.0)[1]
    assert np.isnan(beyond).all()
    assert np.isnan(fast)
    seen = wh.condition(Tracker(), np.zeros(3), np.arange(3.0), np.array([True, False, True]))
    assert seen.inputs[0].tolist() == [0.0, 2.0]
    single = wh.condition(Tracker(), np.ma.masked_invalid([1.0, np.nan, 2.0]), np.arange(3.0))
    assert single.y.tolist() == [1.0, 2.0]
    assert single.inputs[0].tolist() == [0.0, 2.0]
