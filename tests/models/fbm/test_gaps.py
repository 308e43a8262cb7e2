"""Times that are close together, and far apart, in one series."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import whence as wh
from whence.models import fbm


class Seen(fbm.FractionalSDE):
    """The noise itself, seen with errors."""

    noise: fbm.FractionalNoise = fbm.FractionalNoise(0.3)
    unit: float = eqx.field(default=1.0, kw_only=True)

    def initial(self):
        return dist.Normal(jnp.zeros(1), 1e-3)

    def drift(self, t, x):
        return 0.0 * x

    def diffusion(self, t, x):
        return self.unit**-0.3

    def observe(self, x):
        return dist.Normal(x[0], 0.1)


@pytest.mark.parametrize("unit", [1.0, 1e-9, 86400.0])
def test_rates_for_close_times_serve_wide_gaps(unit):
    t, h = np.array([0.0, 1.0, 1.0 + 1e-5, 1.0 + 2e-5, 2.0, 10.0]), 0.3
    y = np.array([0.05, 0.6, 0.62, 0.55, -0.4, 1.5])
    power = lambda x: np.abs(x) ** (2 * h)
    cov = (power(t[:, None]) + power(t) - power(t[:, None] - t)) / 2
    exact = multivariate_normal(cov=cov + 1e-6 + 0.01 * np.eye(len(t))).logpdf(y)
    target = wh.condition(Seen(unit=unit), y, unit * t)
    found = jax.jit(lambda: target.log_density({}))()
    # The approximation of the noise is good to 5% of a variance: half of that a datum.
    assert abs(found - exact) < 0.025 * len(t)
