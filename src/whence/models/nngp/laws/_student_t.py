"""Student's t for single numbers, with probabilities and quantiles."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betainc


class StudentT(dist.StudentT):
    """As numpyro's, whose `cdf` and `icdf` need another library.

    Args:
        df: Degrees of freedom, positive.
        loc: Locations.
        scale: Scales (not standard deviations), positive.
    """

    def cdf(self, value):
        """Return the distribution function."""
        z = (jnp.asarray(value) - jnp.asarray(self.loc)) / jnp.asarray(self.scale)
        ratio = z**2 / jnp.asarray(self.df)
        between, beyond = _masses(self.df, ratio)
        return jnp.where(
            ratio < 1, 0.5 + jnp.sign(z) * between, jnp.where(z < 0, beyond, 1 - beyond)
        )

    def icdf(self, q):
        """Return quantiles, by bisection in the logarithm of the distance from the location."""
        # Not the shape of the batch: one number of degrees of freedom has one quantile.
        q = jnp.asarray(q, jnp.result_type(float))
        return self.loc + self.scale * _standard_quantile(q, jnp.asarray(self.df, q.dtype))


@jax.jit
def _standard_quantile(q, df):
    q, df = jnp.broadcast_arrays(q, df)
    tail = jnp.minimum(q, 1 - q)
    low = jnp.full(q.shape, -40.0, q.dtype)
    # Beyond the scale the tail falls like a power of the distance.
    high = 10 - jnp.log(jnp.maximum(tail, jnp.finfo(q.dtype).tiny)) / df

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        ratio = jnp.exp(2 * middle) / df
        between, beyond = _masses(df, ratio)
        short = jnp.where(ratio < 1, between < jnp.abs(q - 0.5), beyond > tail)
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = jax.lax.fori_loop(0, 80, halve, (low, high))
    distance = jnp.where(tail < 0.5, jnp.exp((low + high) / 2), 0.0)
    distance = jnp.where(tail > 0, distance, jnp.inf)
    return jnp.sign(q - 0.5) * distance


def _masses(df, ratio):
    """Return the mass between the location and a point, and beyond it, on one side.

    Near the location the first is exact to rounding, far from it the second.
    """
    between = betainc(0.5, df / 2, ratio / (1 + ratio)) / 2
    beyond = betainc(df / 2, 0.5, 1 / (1 + ratio)) / 2
    return between, beyond
