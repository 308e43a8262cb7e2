"""Speed of the family `fbm`: paths against NumPy, evidence of a long series, training.

The training step of a bridge is compared with the published recipe, made again with diffrax.

    uv run python benchmarks/fbm.py

Processor time of the process, best of several, in one run: ratios hold on a loaded machine too.
"""

import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.core._family import bound
from whence.core._flat import flat_view
from whence.inference.variational import TotalDerivative
from whence.inference.variational._flat import layout_of
from whence.models import fbm
from whence.models.fbm._exact import regular_paths
from whence.models.fbm._path import bank_steps
from whence.models.fbm._sde import _simulated

PATHS, LENGTH, LONG = 256, 1024, 10_000
MANY, STEPS = 10_000, 1_000  # of Heun's rule
BATCH, BRIDGE, WIDTH = 32, 200, 64  # of the training step


def best(function, repeats=9):
    """Return the least processor and wall time of a call, in ms, after one that compiles."""
    function()
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        found.append((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
    return tuple(min(column) for column in zip(*found))


def numpy_paths(hurst, dtype, rng):
    """Batched Davies and Harte: the white noise of a path, its transform, and back."""
    k = np.arange(LENGTH + 1)
    power = lambda x: np.abs(x) ** (2 * hurst)
    row = 0.5 * (power(k + 1.0) - 2 * power(k) + power(k - 1.0))
    root = np.sqrt(np.fft.rfft(np.concatenate([row, row[1:-1][::-1]])).real).astype(dtype)
    noise = rng.standard_normal((PATHS, 2 * LENGTH), dtype=dtype)
    increments = np.fft.irfft(root * np.fft.rfft(noise))[:, :LENGTH]
    return np.cumsum(increments, axis=1) * dtype(1 / LENGTH) ** dtype(hurst)


class Line(fbm.FractionalSDE):
    """A fractional Ornstein-Uhlenbeck process seen with noise."""

    theta: jax.Array
    sigma: jax.Array
    noise: fbm.FractionalNoise

    def drift(self, t, x):
        return -self.theta * x

    def diffusion(self, t, x):
        return self.sigma

    def observe(self, x):
        return dist.Normal(x[0], 0.1)


def numpy_heun(factor, decay, weights, dtype, rng):
    """Heun's rule through the bank, vectorised over paths."""
    x, y, h = np.zeros(MANY, dtype), np.zeros((MANY, len(decay)), dtype), dtype(1 / STEPS)
    for _ in range(STEPS):
        new = decay * y + rng.standard_normal(y.shape, dtype=dtype) @ factor.T
        moved = (new - y) @ weights
        guess = x - h * x + moved
        x, y = x - h * (x + guess) / 2 + moved, new
    return x


def training_step():
    """Return a function that makes one gradient of a bridge, as `BBVI` does."""
    noise = fbm.FractionalNoise(0.7, nodes=5, span=(0.1, 40.0), zero=False, weights="l2")
    line = Line(noise, jnp.asarray(0.0), jnp.asarray(1.0), start=0.0, steps=BRIDGE, exact=False)
    target = wh.condition(line, np.zeros(1), np.array([2.0]))
    family = bound(fbm.ControlledPath(linear=False, width=WIDTH), target, layout_of(target))
    like, unravel = flat_view(target)
    params = family.init(like)
    density = jax.vmap(lambda x: target.log_density(unravel(x)))

    @jax.jit
    def step(params, key):
        noise = family.noise(like, BATCH, key=key)
        return TotalDerivative().estimate(family, params, density, noise)

    return lambda: jax.block_until_ready(step(params, jr.key(0)))


def published_step():
    """Return the same by the published recipe: Milstein's scheme and a Brownian tree."""
    import diffrax
    import equinox as eqx

    rates = jnp.geomspace(0.05, 20.0, 5)
    weights = jnp.ones(5) / 5
    net = eqx.nn.MLP(8, 1, WIDTH, 2, jnp.tanh, key=jr.key(0))

    def control(net, t, z):
        return net(jnp.concatenate([jnp.array([jnp.sin(t), jnp.cos(t)]), z[:6]]))[0]

    def drift(t, z, net):
        u = control(net, t, z)
        y = z[1:6]
        move = -rates * y
        x = weights @ move + jnp.sum(weights) * u
        return jnp.concatenate([x[None], move + u, 0.5 * u[None] ** 2])

    def diffusion(t, z, net):
        return jnp.concatenate([jnp.sum(weights)[None], jnp.ones(5), jnp.zeros(1)])[:, None]

    def loss(net, key):
        key_start, key_path = jr.split(key)
        tree = diffrax.VirtualBrownianTree(0.0, 2.0, 2.0 / BRIDGE / 2, (1,), key_path)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, tree))
        start = jnp.concatenate([jnp.zeros(1), jr.normal(key_start, (5,)), jnp.zeros(1)])
        solution = diffrax.diffeqsolve(
            terms, diffrax.StratonovichMilstein(), 0.0, 2.0, 2.0 / BRIDGE, start, args=net
        )
        end = solution.ys[-1]
        return 0.5 * (end[0] / 0.1) ** 2 + end[6]

    @eqx.filter_jit
    def step(net, key):
        total = lambda net: jnp.mean(jax.vmap(lambda k: loss(net, k))(jr.split(key, BATCH)))
        return eqx.filter_value_and_grad(total)(net)

    return lambda: jax.block_until_ready(jax.tree.leaves(step(net, jr.key(0))))


def paths_and_training():
    """Print the figures of Heun's rule and of the training step."""
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            line = Line(fbm.FractionalNoise(0.7), jnp.ones((), dtype), jnp.ones((), dtype))
            bank = line.noise.bank(1.0)
            at = jnp.asarray(np.array([0.0, 1.0], dtype))
            run = lambda: _simulated(line, at, jr.key(0), MANY, STEPS)
            ours = best(lambda: jax.block_until_ready(run()), 3)
            decay, factor = bank_steps(bank, jnp.asarray([1 / STEPS], dtype))
            arrays = (np.asarray(v, dtype) for v in (factor[0], decay[0], bank.weights))
            parts, rng = tuple(arrays), np.random.default_rng(0)
            theirs = best(lambda: numpy_heun(*parts, dtype, rng), 3)
            print(
                f"Heun's rule, {MANY} paths of {STEPS} steps, {np.dtype(dtype).name}: "
                f"{ours[0]:.0f} ms, NumPy {theirs[0]:.0f} ms of processor "
                f"({theirs[0] / ours[0]:.2f} times)"
            )
    ours, theirs = best(training_step(), 5), best(published_step(), 5)
    print(
        f"Training step of a bridge, batch {BATCH}, {BRIDGE} steps, width {WIDTH}, float32: "
        f"{ours[0]:.0f} ms, published recipe {theirs[0]:.0f} ms of processor "
        f"({theirs[0] / ours[0]:.1f} times)"
    )


def main():
    """Print the figures."""
    paths_and_training()
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            rng, key = np.random.default_rng(0), jr.key(0)
            paths = jax.jit(lambda key, h: regular_paths(key, h, LENGTH, 1 / LENGTH, PATHS))
            hurst = jnp.asarray(0.3, dtype)
            ours = best(lambda: jax.block_until_ready(paths(key, hurst)))
            theirs = best(lambda: numpy_paths(0.3, dtype, rng))
            print(
                f"{PATHS} exact paths of {LENGTH}, {np.dtype(dtype).name}: {ours[0]:.1f} ms, "
                f"NumPy {theirs[0]:.1f} ms of processor ({theirs[0] / ours[0]:.2f} times); "
                f"wall {ours[1]:.1f} and {theirs[1]:.1f} ms ({theirs[1] / ours[1]:.2f} times)"
            )
    with jax.enable_x64(True):
        even = np.linspace(0.0, 1.0, LONG)
        shake = np.random.default_rng(0).uniform(-0.4, 0.4, LONG) / LONG
        shake[[0, -1]] = 0

        def evidence(p, times, y):
            noise = fbm.FractionalNoise(p[2], nodes=6)
            return Line(noise, p[0], p[1]).log_likelihood(y, times)

        both = jax.jit(jax.value_and_grad(evidence))
        for name, times in (("even", even), ("uneven", even + shake)):
            arguments = jnp.array([1.3, 0.7, 0.3]), jnp.asarray(times), jnp.sin(9 * even)
            cpu, wall = best(lambda a=arguments: jax.block_until_ready(both(*a)), 5)
            print(
                f"Evidence and gradient, {LONG} {name} times, 6 nodes: {cpu:.0f} ms of "
                f"processor, {wall:.0f} ms wall"
            )


if __name__ == "__main__":
    main()
