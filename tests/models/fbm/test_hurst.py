"""H from exact fractional Brownian motion by maximum likelihood of the approximation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from whence.models import fbm


class Seen(fbm.FractionalSDE):
    """Noise itself, seen with a small error."""

    noise: fbm.FractionalNoise
    error: Any = 0.01

    def initial(self):
        return dist.Normal(jnp.zeros(1), 1e-3)

    def drift(self, t, x):
        return jnp.zeros(1)

    def diffusion(self, t, x):
        return 1.0

    def observe(self, x):
        return dist.Normal(x[0], self.error)


def estimates(hurst, count, replicates, key):
    """Return the best H of each series by the approximation and by the exact likelihood."""
    times = np.linspace(0.0, 1.0, count)
    noise = fbm.FractionalNoise(hurst)
    clean = np.asarray(noise.sample(times, key=key, paths=replicates))
    y = clean + 0.01 * np.random.default_rng(7).normal(size=clean.shape)
    grid = np.clip(hurst + np.linspace(-0.08, 0.08, 33), 0.01, 0.99)
    row = lambda h: jax.vmap(
        lambda y: Seen(fbm.FractionalNoise(h)).log_likelihood(y, jnp.asarray(times))
    )(jnp.asarray(y))
    ours = np.asarray(jax.jit(lambda g: jax.lax.map(row, g))(jnp.asarray(grid)))
    exact = []
    for h in grid:
        s, t = times[:, None], times[None, :]
        cov = 0.5 * (s ** (2 * h) + t ** (2 * h) - np.abs(s - t) ** (2 * h))
        factor = np.linalg.cholesky(cov + 1e-4 * np.eye(count) + 1e-6)
        z = np.linalg.solve(factor, y.T)
        exact.append(-0.5 * np.sum(z**2, axis=0) - np.log(np.diag(factor)).sum())
    best = lambda logs: grid[np.argmax(logs, axis=0)]
    return best(ours), best(np.stack(exact))


def test_estimates_agree_with_the_exact_likelihood(key):
    """On the same series: no bias beyond a cell of the grid of 0.005."""
    ours, exact = estimates(0.3, 64, 12, key)
    assert np.abs(ours - exact).max() <= 0.0151
    assert abs(np.mean(ours - exact)) < 0.005


# Mean and standard deviation over 40 series of 256 times with the exact likelihood.
TABLE = [(0.1, 0.099, 0.010), (0.3, 0.300, 0.009), (0.5, 0.501, 0.009), (0.7, 0.701, 0.011),
         (0.9, 0.901, 0.014)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("hurst", "mean", "deviation"), TABLE)
def test_table_of_estimates(hurst, mean, deviation, key):
    ours, exact = estimates(hurst, 256, 40, key)
    error = deviation * np.sqrt(2 / 40)  # two tables of 40 series each
    assert abs(ours.mean() - mean) < 2 * error + 0.0025  # half a cell of the grid
    assert abs(np.mean(ours - exact)) < 0.004


def test_normals_of_single_precision(key):
    """Moments of a million, in 5 standard errors, and none of them infinite."""
    from whence.models.fbm._exact import normals

    x = np.asarray(normals(key, (2, 500_000), jnp.dtype("float32")), np.float64)
    assert x.dtype == np.float64
    assert np.all(np.isfinite(x))
    assert abs(x.mean()) < 5e-3
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / 1e6)
    assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / 1e6)
    assert abs(np.mean(x[0] * x[1])) < 5 / np.sqrt(5e5)
