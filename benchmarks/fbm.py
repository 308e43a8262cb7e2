"""Speed of the family `fbm`: exact paths against NumPy, evidence and gradient of a long series.

    uv run python benchmarks/fbm.py

Processor time of the process, best of several, in one run: ratios hold on a loaded machine too.
"""

import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from whence.models import fbm
from whence.models.fbm._exact import regular_paths

PATHS, LENGTH, LONG = 256, 1024, 10_000


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


def main():
    """Print the figures."""
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
