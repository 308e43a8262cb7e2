"""Evidence of known problems by tempering with default settings."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh

pytestmark = pytest.mark.usefixtures("standard")

# Germination of seeds on 21 plates (Crowder, 1978): germinated, of, seed, root extract.
GERMINATED = np.array([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15])
GERMINATED = np.append(GERMINATED, [32, 3])
SEEDS = np.array([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30])
SEEDS = np.append(SEEDS, [51, 7])
KIND = np.repeat([0.0, 1.0], [11, 10])
EXTRACT = np.repeat([0.0, 1.0, 0.0, 1.0], [5, 6, 5, 5])

# A Brownian path seen with noise at 20 of 30 times (TensorFlow Probability's inference gym).
NOISY = np.full(30, np.nan)
NOISY[:10] = [0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845, -0.1484156,
              -0.3250906, -0.22957903, -0.44110894, -0.09830782]  # fmt: skip
NOISY[20:] = [-0.8786016, -0.83736074, -0.7384849, -0.8939254, -0.7774566, -0.70238715,
              -0.87771565, -0.51853573, -0.6948214, -0.6202789]  # fmt: skip


class Germination(wh.Model):
    """Binomial counts with a random effect of each plate."""

    tau: jax.Array = wh.latent(dist.Gamma(0.01, 0.01))
    a: jax.Array = wh.latent(dist.Normal(0.0, 10.0), shape=(4,))
    b: jax.Array = wh.latent(
        lambda m: dist.Normal(0.0, m.tau**-0.5), shape=(21,), noncentered=True
    )

    def likelihood(self, x, n):
        return dist.Binomial(n, logits=x @ self.a + self.b)


class Brownian(wh.StateSpaceModel):
    """Unknown scales of steps and of noise."""

    step: jax.Array = wh.latent(dist.LogNormal(0.0, 2.0))
    noise: jax.Array = wh.latent(dist.LogNormal(0.0, 2.0))

    def initial(self):
        return dist.Normal(0.0, self.step)

    def transition(self, x, t):
        return dist.Normal(x, self.step)

    def emission(self, x, t):
        return dist.Normal(x, self.noise)


def _off(target, engine, exact, key):
    posterior = wh.infer(target, engine, key=key)
    error = posterior.log_evidence_error
    return posterior, error, abs(posterior.log_evidence - exact)


def test_brownian_scales(key):
    # By quadrature over both log scales; the path is integrated out.
    engine = wh.TemperedSMC(particles=1024)
    _, error, off = _off(wh.condition(Brownian(), NOISY), engine, 1.18775, key)
    assert error < 0.15
    assert off < 4.5 * error


@pytest.mark.slow
def test_brownian_path_with_default_settings(key):
    target = wh.condition(Brownian(exact=False), NOISY)
    _, error, off = _off(target, wh.TemperedSMC(), 1.18775, key)
    assert error < 0.3
    assert off < 4.5 * error


@pytest.mark.slow
def test_germination_of_seeds_with_default_settings(key):
    # By quadrature over log tau and the effects, importance sampling of the coefficients.
    x = np.stack([np.ones(21), KIND, EXTRACT, KIND * EXTRACT], axis=1)
    target = wh.condition(Germination(), GERMINATED, x, SEEDS)
    _, error, off = _off(target, wh.TemperedSMC(), -73.407, key)
    assert error < 0.3
    assert off < 4.5 * np.hypot(error, 0.01)


@pytest.mark.slow
def test_many_wells_with_default_settings(key):
    def log_density(x):
        a, b = x[:16], x[16:]
        return jnp.sum(-(a**4) + 6 * a**2 + a / 2 - b**2 / 2)

    target = wh.from_log_density(log_density, jnp.zeros(32))
    posterior, error, off = _off(target, wh.TemperedSMC(), 164.69568, key)
    assert error < 0.5
    assert off < 4.5 * error
    x = jax.tree.leaves(posterior.sample.positions)[0][0]
    right = np.exp(np.asarray(posterior.log_weights[0])) @ (np.asarray(x)[:, :16] > 0)
    assert abs(right.mean() - 0.844307) < 0.03
