"""How the step size changes in the course of a run."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...core._convert import number, positive, whole
from ...core._dtype import relaxed
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


class Cyclical(AbstractDecay):
    """`(1 + cos(pi t / period)) / 2`, from 1 to 0 and over again.

    In each cycle large steps without noise look for a mode (exploration), then ever smaller
    ones with noise sample it; only from these are draws made.

    Attributes:
        period: Updates in a cycle.
        exploration: Share of a cycle that looks for a mode.

    References:
        Zhang, Li, Zhang, Chen and Wilson (2020), "Cyclical stochastic gradient MCMC for
        Bayesian deep learning", ICLR, arXiv:1902.03932, equation 1 and algorithm 1.
    """

    period: int = eqx.field(default=10_000, converter=whole("period", least=2))
    exploration: float = eqx.field(
        default=0.5, converter=number("exploration", least=0, below=1)
    )

    def factor(self, counter: Int[Array, ""], dtype) -> Scalar:
        """Return `(1 + cos(pi (t mod period) / period)) / 2`."""
        phase = (counter % self.period).astype(dtype) / self.period
        return (1 + jnp.cos(jnp.pi * phase)) / 2

    def layout(self, block: int) -> tuple[int, int]:
        """Return updates of exploration in a cycle, and draws made of `block` updates each."""
        draws = max(int((1 - self.exploration) * self.period) // block, 1)
        return self.period - draws * block, draws

    def explores(self, counter: Int[Array, ""], block: int) -> Bool[Array, ""]:
        """Whether an update is one of exploration."""
        return counter % self.period < self.layout(block)[0]


class FromOptax(AbstractDecay):
    """Values of a schedule of optax, or of any function of the number of the update.

    Attributes:
        schedule: Takes an int32 scalar; with `step_size=1.0` its value is the step size.
    """

    schedule: Callable

    def factor(self, counter: Int[Array, ""], dtype) -> Scalar:
        """Return the schedule's value."""
        with relaxed():
            return jnp.asarray(self.schedule(counter)).astype(dtype)


def as_decay(value: Any) -> AbstractDecay:
    """Return `decay` as a part; a function is taken for a schedule of optax."""
    if isinstance(value, AbstractDecay):
        return value
    if not callable(value):
        raise ValueError(
            f"`decay` must be an instance of AbstractDecay; got {value!r}. A function of the "
            "number of the update (a schedule of optax) is taken for one."
        )
    return FromOptax(value)
