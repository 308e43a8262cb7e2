"""Linear regressions as tasks, whose losses are quadratic: closed forms in NumPy."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from whence.models import niw

MU, SIGMA, NOISE = np.array([1.0, -0.5]), np.array([[0.6, 0.2], [0.2, 0.3]]), 0.3


def tasks(number, points=5, seed=0):
    """Return inputs, data and weights of linear tasks."""
    rng = np.random.default_rng(seed)
    theta = rng.multivariate_normal(MU, SIGMA, number)
    x = rng.normal(size=(number, points, 2))
    y = np.einsum("tpi,ti->tp", x, theta) + NOISE * rng.normal(size=(number, points))
    return x, y, theta


def model(covariance="full", mean=None, **settings):
    """Return a model whose network is linear, without bias."""
    net = eqx.nn.Linear(2, 1, use_bias=False, key=jr.key(0))
    if mean is not None:
        net = eqx.tree_at(lambda n: n.weight, net, jnp.asarray(mean)[None])
    return niw.NIWMeta(net, niw.Gaussian(NOISE), covariance=covariance, **settings)


def quadratics(x, y, noise=NOISE):
    """Return minima and curvatures of the tasks' losses."""
    a = np.einsum("tpi,tpj->tij", x, x) / noise**2
    b = np.linalg.solve(a, np.einsum("tpi,tp->ti", x, y)[..., None] / noise**2)[..., 0]
    return b, a


def type_two(b, a, rounds=3_000):
    """Return (mu, Sigma) of the largest marginal likelihood, by expectation maximisation."""
    mu, sigma = b.mean(0), np.cov(b.T)
    for _ in range(rounds):
        p = np.linalg.inv(sigma)
        v = np.linalg.inv(a + p)
        m = np.einsum("tij,tj->ti", v, np.einsum("tij,tj->ti", a, b) + p @ mu)
        mu = m.mean(0)
        sigma = v.mean(0) + (m - mu).T @ (m - mu) / len(m)
    return mu, sigma


def gibbs(b, a, prior, sweeps, seed=0):
    """Return draws of (mu, Sigma) given quadratic tasks under a `NIW` prior."""
    from scipy import stats

    rng = np.random.default_rng(seed)
    n, d = b.shape
    mean0, scale0 = np.asarray(prior.mean), np.asarray(prior.scale)
    strength0, df0 = float(prior.strength), float(prior.df)
    mu, sigma, out = b.mean(0), np.cov(b.T), []
    pull = np.einsum("tij,tj->ti", a, b)
    for _ in range(sweeps):
        p = np.linalg.inv(sigma)
        v = np.linalg.inv(a + p)
        m = np.einsum("tij,tj->ti", v, pull + p @ mu)
        theta = m + np.einsum("tij,tj->ti", np.linalg.cholesky(v), rng.normal(size=(n, d)))
        strength = strength0 + n
        centre = (strength0 * mean0 + theta.sum(0)) / strength
        gaps = theta - theta.mean(0)
        off = theta.mean(0) - mean0
        scale = scale0 + gaps.T @ gaps + strength0 * n / strength * np.outer(off, off)
        sigma = stats.invwishart(df0 + n, scale).rvs(random_state=rng)
        mu = rng.multivariate_normal(centre, sigma / strength)
        out.append((mu, sigma))
    return tuple(map(np.array, zip(*out)))
