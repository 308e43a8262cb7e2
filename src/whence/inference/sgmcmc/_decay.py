"""How the step size falls in the course of a run."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...core._convert import number, positive
from ...core._types import Scalar


class AbstractDecay(eqx.Module):
    """A factor on the step size, as a function of the number of the update."""

    @abc.abstractmethod
    def factor(self, counter: Int[Array, ""], dtype) -> Scalar:
        """Return the factor at update `counter`, counted from 0; 1 at the start.

        Args:
            counter: Number of the update.
            dtype: Type of the result.
        """


class ConstantStep(AbstractDecay):
    """The same step size throughout: a stationary chain with a bias that does not vanish."""

    def factor(self, counter: Int[Array, ""], dtype) -> Scalar:
        return jnp.ones((), dtype)


class PolynomialDecay(AbstractDecay):
    """`(1 + t / offset) ** -power`, whose bias vanishes in the limit of a long run.

    With step size `h` this is the sequence `a (b + t) ** -power` with `b = offset` and
    `a = h * offset ** power`. Draws late in the run are more strongly correlated.

    Attributes:
        offset: Updates after which the decay sets in.
        power: In (0.5, 1], so that the steps add up to infinity and their squares do not.

    References:
        Welling and Teh (2011), "Bayesian learning via stochastic gradient Langevin
        dynamics", ICML, equation 2 and section 5.
    """

    offset: float = eqx.field(default=1_000.0, converter=positive("offset"))
    power: float = eqx.field(default=0.55, converter=number("power", above=0.5, most=1))

    def factor(self, counter: Int[Array, ""], dtype) -> Scalar:
        """Return `(1 + counter / offset) ** -power`."""
        return (1 + counter.astype(dtype) / self.offset) ** -self.power
