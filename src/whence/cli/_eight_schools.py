"""Eight schools: does coaching help in a test, and does it help more in some schools?

Each school reports the effect of its coaching programme on SAT-V scores, in points, and
the standard error of that estimate. Try:

    whence check eight_schools.py:target
    whence fit eight_schools.py:target --set draws=4000

References:
    Rubin (1981), "Estimation in parallel randomized experiments", Journal of Educational
    Statistics 6(4), 377-401, table 1. doi:10.3102/10769986006004377.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import whence as wh

SCHOOLS = (
    "Choate",
    "Deerfield",
    "Phillips Andover",
    "Phillips Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St. Paul's",
    "Mt. Hermon",
)
EFFECT = (28, 8, -3, 7, -1, 1, 18, 12)
STANDARD_ERROR = (15, 10, 16, 11, 9, 11, 10, 18)


class EightSchools(wh.Model):
    """Effects that vary between schools around a common mean."""

    mu: jax.Array = wh.latent(dist.Normal(0.0, 5.0))
    tau: jax.Array = wh.latent(dist.HalfCauchy(5.0))
    theta: jax.Array = wh.latent(
        lambda m: dist.Normal(m.mu, m.tau), dims="school", noncentered=True
    )

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)


def target():
    """The posterior of the effects, given what the schools report."""
    y = jnp.asarray(EFFECT, float)
    return wh.condition(
        EightSchools(coords={"school": SCHOOLS}), y, jnp.asarray(STANDARD_ERROR, float)
    )
