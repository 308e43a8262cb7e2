"""State-space models with known truth: dense Gaussian algebra, enumeration, quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import whence as wh


class Level(wh.StateSpaceModel):
    """A level that reverts to 1, seen twice as large."""

    s: jax.Array = wh.latent(dist.LogNormal(-0.5, 0.5))
    r: jax.Array = wh.latent(dist.LogNormal(-0.5, 0.5))

    def initial(self):
        return dist.Normal(0.5, 2.0)

    def transition(self, x, t):
        return dist.Normal(0.9 * x + 0.1, self.s)

    def emission(self, x, t):
        return dist.Normal(2.0 * x, self.r)


# Yearly flow of the Nile at Aswan, 1871 to 1970, in 10^8 m^3 (Cobb 1978).
NILE = np.array(
    [
        1120.0,
        1160.0,
        963.0,
        1210.0,
        1160.0,
        1160.0,
        813.0,
        1230.0,
        1370.0,
        1140.0,
        995.0,
        935.0,
        1110.0,
        994.0,
        1020.0,
        960.0,
        1180.0,
        799.0,
        958.0,
        1140.0,
        1100.0,
        1210.0,
        1150.0,
        1250.0,
        1260.0,
        1220.0,
        1030.0,
        1100.0,
        774.0,
        840.0,
        874.0,
        694.0,
        940.0,
        833.0,
        701.0,
        916.0,
        692.0,
        1020.0,
        1050.0,
        969.0,
        831.0,
        726.0,
        456.0,
        824.0,
        702.0,
        1120.0,
        1100.0,
        832.0,
        764.0,
        821.0,
        768.0,
        845.0,
        864.0,
        862.0,
        698.0,
        845.0,
        744.0,
        796.0,
        1040.0,
        759.0,
        781.0,
        865.0,
        845.0,
        944.0,
        984.0,
        897.0,
        822.0,
        1010.0,
        771.0,
        676.0,
        649.0,
        846.0,
        812.0,
        742.0,
        801.0,
        1040.0,
        860.0,
        874.0,
        848.0,
        890.0,
        744.0,
        749.0,
        838.0,
        1050.0,
        918.0,
        986.0,
        797.0,
        923.0,
        975.0,
        815.0,
        1020.0,
        906.0,
        901.0,
        1170.0,
        912.0,
        746.0,
        919.0,
        718.0,
        714.0,
        740.0,
    ]
)
LEVEL_Y = np.array([1.4, -0.3, 0.9, 2.2, 3.1, 1.7, 2.8, 4.0])


def dense_level(s, r, y):
    """Return log evidence, smoothed means and covariance of `Level`; NaN in y is missing."""
    num = len(y)
    mean, root = [0.5], np.zeros((num, num))
    root[0, 0] = 2.0
    for t in range(1, num):
        mean.append(0.9 * mean[-1] + 0.1)
        root[t] = 0.9 * root[t - 1]
        root[t, t] = s
    seen = ~np.isnan(y)
    return condition_dense(
        np.array(mean),
        root @ root.T,
        2.0 * np.eye(num)[seen],
        r**2 * np.eye(seen.sum()),
        y[seen],
    )


def condition_dense(mean, cov, sight, noise, y):
    """Return log evidence, mean and covariance of x given `y = sight @ x + noise`."""
    total = sight @ cov @ sight.T + noise
    gain = cov @ sight.T @ np.linalg.inv(total)
    log_evidence = multivariate_normal(sight @ mean, total).logpdf(y)
    return log_evidence, mean + gain @ (y - sight @ mean), cov - gain @ sight @ cov


def level_posterior(y, points=90):
    """Return log evidence and posterior means of s and r of `Level`, by quadrature in logs."""
    grid = np.linspace(-3.2, 2.2, points)
    prior = norm(-0.5, 0.5).logpdf(grid)
    logs = (
        np.array([[dense_level(np.exp(a), np.exp(b), y)[0] for b in grid] for a in grid])
        + prior[:, None]
        + prior[None, :]
    )
    total = logsumexp(logs)
    weights = np.exp(logs - total)
    evidence = total + 2 * np.log(grid[1] - grid[0])
    return evidence, (weights.sum(1) @ np.exp(grid), weights.sum(0) @ np.exp(grid))


def mean_path(y):
    """Return the posterior mean of the path of `Level`, parameters integrated out."""
    grid = np.linspace(-3.0, 1.5, 30)
    total, mean = 0.0, 0.0
    for a in grid:
        for b in grid:
            log_z, path, _ = dense_level(np.exp(a), np.exp(b), y)
            weight = np.exp(log_z + norm(-0.5, 0.5).logpdf(a) + norm(-0.5, 0.5).logpdf(b) + 20)
            total, mean = total + weight, mean + weight * path
    return mean / total


class Trend(wh.StateSpaceModel):
    """Position and speed at uneven gaps, with two correlated channels."""

    q: float = 0.5

    def initial(self):
        return dist.MultivariateNormal(jnp.array([1.0, -0.5]), jnp.diag(jnp.array([4.0, 1.0])))

    def transition(self, x, t, gap):
        noise = jnp.array([[gap**3 / 3, gap**2 / 2], [gap**2 / 2, gap]])
        moved = jnp.stack([x[0] + gap * x[1], x[1] - 0.1])
        return dist.MultivariateNormal(moved, self.q * noise)

    def emission(self, x, t, gap):
        cov = jnp.array([[0.5, 0.2], [0.2, 0.3]])
        return dist.MultivariateNormal(jnp.stack([x[0], x[0] + x[1] + 0.3]), cov)


GAPS = np.array([0.0, 1.0, 0.3, 2.0, 0.7])


def dense_trend(q, y):
    """Return log evidence, smoothed means and covariance of `Trend`, states one by one."""
    num = len(y)
    mean = [np.array([1.0, -0.5])]
    maps = np.zeros((num, 2, 2 * num))  # of independent unit noise
    maps[0, :, :2] = np.diag([2.0, 1.0])
    for t in range(1, num):
        g = GAPS[t]
        f = np.array([[1.0, g], [0.0, 1.0]])
        mean.append(f @ mean[-1] + [0.0, -0.1])
        maps[t] = f @ maps[t - 1]
        noise = q * np.array([[g**3 / 3, g**2 / 2], [g**2 / 2, g]])
        maps[t][:, 2 * t : 2 * t + 2] = np.linalg.cholesky(noise)
    root = maps.reshape(2 * num, 2 * num)
    sight = np.kron(np.eye(num), [[1.0, 0.0], [1.0, 1.0]])
    noise = np.kron(np.eye(num), [[0.5, 0.2], [0.2, 0.3]])
    seen = ~np.isnan(y.ravel())
    offset = np.tile([0.0, 0.3], num)
    return condition_dense(
        np.concatenate(mean),
        root @ root.T,
        sight[seen],
        noise[np.ix_(seen, seen)],
        (y.ravel() - offset)[seen],
    )


P0 = np.array([0.5, 0.3, 0.2])
MOVES = np.array([[0.8, 0.15, 0.05], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
RATES = np.array([0.7, 2.5, 6.0])


class Regimes(wh.StateSpaceModel):
    """Counts whose rate depends on a hidden regime; odd times stay where they are more."""

    def initial(self):
        return dist.Categorical(jnp.asarray(P0))

    def transition(self, x, t):
        stay = jnp.where(t % 2 == 1, 0.5, 0.0)
        rows = (1 - stay) * jnp.asarray(MOVES) + stay * jnp.eye(3)
        return dist.Categorical(rows[x])

    def emission(self, x, t):
        return dist.Poisson(jnp.asarray(RATES)[x])


def enumerate_regimes(y):
    """Return log evidence, and the probability of every path, by brute force."""
    from scipy.stats import poisson

    paths = list(itertools.product(range(3), repeat=len(y)))
    logs = []
    for path in paths:
        total = np.log(P0[path[0]])
        for t in range(1, len(y)):
            stay = 0.5 if t % 2 == 1 else 0.0
            rows = (1 - stay) * MOVES + stay * np.eye(3)
            total += np.log(rows[path[t - 1], path[t]])
        for t, value in enumerate(y):
            if not np.isnan(value):
                total += poisson(RATES[path[t]]).logpmf(value)
        logs.append(total)
    total = logsumexp(logs)
    return total, np.array(paths), np.exp(np.array(logs) - total)


class Volatility(wh.StateSpaceModel):
    """Stochastic volatility (Taylor, 1982)."""

    phi: jax.Array = wh.latent(dist.Uniform(-1, 1))
    sigma: jax.Array = wh.latent(dist.HalfNormal(1.0))
    beta: jax.Array = wh.latent(dist.HalfNormal(1.0))

    def initial(self):
        return dist.Normal(0.0, self.sigma / jnp.sqrt(1 - self.phi**2))

    def transition(self, x, t):
        return dist.Normal(self.phi * x, self.sigma)

    def emission(self, x, t):
        return dist.Normal(0.0, self.beta * jnp.exp(x / 2))
