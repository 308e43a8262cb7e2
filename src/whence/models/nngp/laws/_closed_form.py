"""Laws of the scale with closed forms: inverse gamma, Jeffreys, a point."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betainc, gammaincc, gammaln
from jaxtyping import Array

from ....core._types import Scalar
from .._parameter import Number, Parameter, parameter
from ._abstract_law import AbstractLaw
from ._quadrature import log_likelihood
from ._student_t import StudentT


def _log_gamma_ratio(start: Array, step: float) -> Array:
    """Return `log Gamma(start + step) - log Gamma(start)`, without cancellation.

    From 100 on by Stirling's series, whose next term is below 1e-17 there.
    """
    large = jnp.maximum(start, 100.0)

    def rest(a):
        return 1 / (12 * a) - 1 / (360 * a**3) + 1 / (1260 * a**5)

    change = (large - 0.5) * jnp.log1p(step / large) + step * jnp.log(large + step) - step
    series = change + rest(large + step) - rest(large)
    small = jnp.minimum(start, 100.0)
    return jnp.where(start >= 100, series, gammaln(small + step) - gammaln(small))


class InverseGamma(AbstractLaw):
    """Density proportional to `v^(-shape - 1) exp(-scale / v)`: the process is Student's t.

    With `2 shape` degrees of freedom and scale matrix `scale / shape` times the kernel.

    Args:
        shape: Half the degrees of freedom; the mean of v exists above 1.
        scale: Of v (numpyro's `rate`); the mean is `scale / (shape - 1)`.
    """

    shape: Parameter
    scale: Parameter

    def __init__(self, shape: Number, scale: Number):
        self.shape, self.scale = parameter("shape", shape), parameter("scale", scale)

    def _updated(self, size, quadratic):
        return self.shape + size / 2, self.scale + quadratic / 2

    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        shape, scale = self._updated(size, quadratic)
        # Differences of like terms: with a shape of 1e6 each term alone is near 1e7.
        log_ratio = jnp.log1p(quadratic / (2 * self.scale))
        gammas = _log_gamma_ratio(self.shape, size / 2)
        return gammas - size / 2 * jnp.log(self.scale) - shape * log_ratio

    def posterior(self, size: int, quadratic: Scalar) -> dist.InverseGamma:
        return dist.InverseGamma(*self._updated(size, quadratic))

    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> dist.MultivariateStudentT:
        shape, scale = self._updated(size, quadratic)
        return dist.MultivariateStudentT(2 * shape, loc, jnp.sqrt(scale / shape) * scale_tril)

    def marginals(self, size: int, quadratic: Scalar, loc: Array, scale: Array) -> StudentT:
        shape, rate = self._updated(size, quadratic)
        return StudentT(2 * shape, loc, jnp.sqrt(rate / shape) * scale)

    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        # (q / n) (shape / scale) has the F distribution with n and 2 shape degrees of freedom.
        return betainc(self.shape, size / 2, self.scale / (self.scale + quadratic / 2))

    def tail(self) -> Scalar:
        return self.shape


class Jeffreys(AbstractLaw):
    """`1 / v`, improper: no parameter; needs an observation other than zero.

    The evidence is defined up to a constant factor, the same for all data.
    """

    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        """Return the log of the integral of `v^(-n/2 - 1) exp(-q / (2 v))`."""
        return gammaln(size / 2) - size / 2 * jnp.log(quadratic / 2)

    def posterior(self, size: int, quadratic: Scalar) -> dist.InverseGamma:
        """Return the law of v given observations, inverse gamma."""
        _check_observed(size)
        return dist.InverseGamma(size / 2, quadratic / 2)

    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> dist.MultivariateStudentT:
        """Return `N(loc, v L L')` mixed over the posterior of v: n degrees of freedom."""
        _check_observed(size)
        factor = jnp.sqrt(quadratic / size)
        return dist.MultivariateStudentT(float(size), loc, factor * scale_tril)

    def marginals(self, size: int, quadratic: Scalar, loc: Array, scale: Array) -> StudentT:
        _check_observed(size)
        return StudentT(float(size), loc, jnp.sqrt(quadratic / size) * scale)

    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        """Return NaN: an improper law says nothing before the observations."""
        return jnp.full_like(quadratic, jnp.nan)

    def tail(self) -> Scalar:
        """Return 0: before any observation no moment exists."""
        return jnp.zeros(())


def _check_observed(size: int) -> None:
    if size < 1:
        raise ValueError("`Jeffreys()` is improper: it needs at least 1 observation; got 0.")


class PointMass(AbstractLaw):
    """A known scale: the Gaussian process itself.

    Args:
        value: v.
    """

    value: Parameter

    def __init__(self, value: Number = 1.0):
        self.value = parameter("value", value)

    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        """Return `-n/2 log v - q / (2 v)`."""
        return log_likelihood(jnp.log(self.value), size, quadratic)

    def posterior(self, size: int, quadratic: Scalar) -> dist.Delta:
        return dist.Delta(self.value)

    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(loc, scale_tril=jnp.sqrt(self.value) * scale_tril)

    def marginals(self, size: int, quadratic: Scalar, loc: Array, scale: Array) -> dist.Normal:
        return dist.Normal(loc, jnp.sqrt(self.value) * scale)

    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        return gammaincc(size / 2, quadratic / (2 * self.value))

    def tail(self) -> Scalar:
        """Return infinity: all moments exist."""
        return jnp.asarray(jnp.inf)
