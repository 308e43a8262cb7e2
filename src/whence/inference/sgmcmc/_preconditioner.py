"""Diagonal preconditioners: one step size per coordinate."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...core._convert import flag, number, one_of, positive

Vector = Float[Array, " dim"]
Count = Int[Array, ""]

# Of lengths of rows: the least in one look, and the weight of the newest, if longer.
LEAST, NEWEST, LONGER = 0.1, 0.05, 0.5


class AbstractPreconditioner(eqx.Module):
    """A diagonal matrix `G`, learned from the gradients, that multiplies the step size.

    Attributes:
        frozen: Whether `G` is learned in warm-up only; then it biases nothing.
        gamma: Whether the derivative of `G` belongs into the drift; `SGLD` alone can.
    """

    frozen: eqx.AbstractVar[bool]
    gamma: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def init(self, position: Vector) -> PyTree:
        """Return the state before the first update."""

    @abc.abstractmethod
    def update(self, state: PyTree, gradient: Vector) -> PyTree:
        """Return the state after a gradient of the log density was seen.

        Args:
            state: From `init` or the last update.
            gradient: At the present position.
        """

    @abc.abstractmethod
    def diagonal(self, state: PyTree) -> Vector | None:
        """Return the diagonal of `G`; None for all ones."""

    def root(self, state: PyTree) -> Vector | float:
        """Return the root of the diagonal of `G`."""
        diagonal = self.diagonal(state)
        return 1.0 if diagonal is None else jnp.sqrt(diagonal)

    @abc.abstractmethod
    def second_moment(self, state: PyTree) -> Vector | None:
        """Return the mean square of the gradients, which is mostly their noise, if known."""


class Identity(AbstractPreconditioner):
    """The same step size for all coordinates."""

    frozen: bool = eqx.field(default=False, init=False)
    gamma: bool = eqx.field(default=False, init=False)

    def init(self, position: Vector) -> None:
        """Return no state."""

    def update(self, state: None, gradient: Vector) -> None:
        pass

    def diagonal(self, state: None) -> None:
        pass

    def second_moment(self, state: None) -> None:
        pass


class AbstractMeanSquare(AbstractPreconditioner):
    """What is learned is a running mean of squared gradients, by coordinate.

    Attributes:
        memory: Weight of the past in the running mean, in [0, 1).
        floor: Added so that nothing is divided by zero; positive.
    """

    memory: eqx.AbstractVar[float]
    floor: eqx.AbstractVar[float]

    def init(self, position: Vector) -> Vector:
        """Return negative values, which `update` reads as no gradient seen."""
        return jnp.full_like(position, -1.0)

    def update(self, state: Vector, gradient: Vector) -> Vector:
        """Return the new mean square."""
        # From zero, as in papers, the first steps would be ten times too long.
        mixed = self.memory * state + (1 - self.memory) * gradient**2
        return jnp.where(state < 0, gradient**2, mixed)

    def second_moment(self, state: Vector) -> Vector:
        return jnp.maximum(state, 0)


class RMSprop(AbstractMeanSquare):
    """`1 / (sqrt(v) + floor)`, with `v` a running mean of squared gradients.

    The step size is then in units of a coordinate's own scale: near a mode with full
    gradients `v` is the precision `a` and `G` is `1 / sqrt(a)`. Like published codes this
    leaves out the derivative of `G` with respect to the position, so the draws are right
    only if `v` does not follow the position: if the noise of the minibatch makes most of
    the gradient, or if `1 / (1 - memory)` updates are many autocorrelation times. With
    `gamma=True` it is added, as the paper has it, for one product with the Hessian of the
    batch per update; its diagonal is estimated with one random vector of signs.

    Attributes:
        memory: Weight of the past in the running mean, in [0, 1).
        floor: Added to the root, in units of the gradient; positive.
        gamma: Whether the term `Gamma` of the derivative of `G` is added; with `SGLD` only.

    References:
        Li, Chen, Carlson and Carin (2016), "Preconditioned stochastic gradient Langevin
        dynamics for deep neural networks", AAAI, algorithm 1.
    """

    memory: float = eqx.field(default=0.99, converter=number("memory", least=0, below=1))
    floor: float = eqx.field(default=1e-5, converter=positive("floor"))
    gamma: bool = eqx.field(default=False, converter=flag("gamma"))
    frozen: bool = eqx.field(default=False, init=False)

    def diagonal(self, state: Vector) -> Vector:
        """Return `1 / (sqrt(v) + floor)`; 0, so that nothing moves, before any gradient."""
        seen = state >= 0
        return jnp.where(seen, 1 / (jnp.sqrt(jnp.where(seen, state, 1)) + self.floor), 0)


class Fisher(AbstractMeanSquare):
    """`1 / (v + floor)`, with `v` the mean square of gradients in warm-up; then frozen.

    At the mode that is the diagonal of the Fisher information, times rows per batch row where
    batches make most of the gradient: `G` is proportional to the variances that the
    posterior would have without correlations, and the step size takes up the factor.

    Attributes:
        memory: Weight of the past in the running mean, in [0, 1).
        floor: Added to the mean square; positive.

    References:
        Ahn, Korattikara and Welling (2012), "Bayesian posterior sampling via stochastic
        gradient Fisher scoring", ICML, arXiv:1206.6380.
    """

    memory: float = eqx.field(default=0.99, converter=number("memory", least=0, below=1))
    floor: float = eqx.field(default=1e-5, converter=positive("floor"))
    frozen: bool = eqx.field(default=True, init=False)
    gamma: bool = eqx.field(default=False, init=False)

    def diagonal(self, state: Vector) -> Vector:
        """Return `1 / (v + floor)`; 0 before any gradient."""
        return jnp.where(state >= 0, 1 / (jnp.maximum(state, 0) + self.floor), 0)


class Curvature(AbstractPreconditioner):
    """`1 / c`, with `c` the length of the row of the Hessian, of batches on the way in.

    Rows are those of the Hessian in units `sqrt(G)`, in which all come to have length 1:
    latents in dollars and in millionths are then alike. Products of it with random signs
    estimate lengths, beginning with units of 1; far from a mode curvature is another, so
    that the mean (of logarithms) follows for the first half of warm-up, and is then frozen.

    References:
        Dauphin, de Vries and Bengio (2015), "Equilibrated adaptive learning rates for
        non-convex optimization", NIPS, arXiv:1502.04390.
        Bradley and Murray (2011), "Matrix-free approximate equilibration", arXiv:1110.2805.
    """

    frozen: bool = eqx.field(default=True, init=False)
    gamma: bool = eqx.field(default=False, init=False)

    def init(self, position: Vector) -> tuple[Vector, Count]:
        """Return ones, and the number of products seen."""
        return jnp.ones_like(position), jnp.zeros((), jnp.int32)

    def update(self, state: tuple[Vector, Count], gradient: Vector) -> tuple[Vector, Count]:
        """Return the state as it is: gradients do not tell."""
        return state

    def turned(
        self, state: tuple[Vector, Count], product: Vector, slope: Vector
    ) -> tuple[Vector, Count]:
        """Return the state after one more product.

        Args:
            state: From before.
            product: Of the Hessian in present units with a vector of signs.
            slope: In these units, as far as two batches agree on it.
        """
        diagonal, count = state
        size = jnp.abs(product)
        # Products may be small by chance, or where it is steep and curvature is yet to come.
        least = jnp.where(slope > 1, 1, LEAST)
        length = jnp.where(jnp.isfinite(size) & (size > 0), jnp.maximum(size, least), 1)
        share = jnp.maximum(1 / (1 + count.astype(size.dtype) / 4), NEWEST)
        share = jnp.where(length > 1, jnp.maximum(share, LONGER), share)
        return diagonal / length**share, count + 1

    def diagonal(self, state: tuple[Vector, Count]) -> Vector:
        return state[0]

    def second_moment(self, state: tuple[Vector, Count]) -> None:
        pass


class ScaleAdapted(AbstractPreconditioner):
    """`1 / sqrt(V)`, with a mean square `V` whose memory finds its own length; then frozen.

    With `SGHMC` and `subtract_noise=True` this is the sampler of the reference: `step_size` is
    its epsilon, `friction * step_size` its alpha. A running mean of the gradient `g` decides
    the memory `tau` of `V`: long where gradients are mostly noise. After warm-up nothing is
    learned, or the chain would have no invariant law.

    References:
        Springenberg, Klein, Falkner and Hutter (2016), "Bayesian optimization with robust
        Bayesian neural networks", NIPS, section 4.
    """

    frozen: bool = eqx.field(default=True, init=False)
    gamma: bool = eqx.field(default=False, init=False)

    def init(self, position: Vector) -> tuple[Vector, Vector, Vector]:
        """Return `tau`, `g` and `V`, all ones."""
        return jnp.ones_like(position), jnp.ones_like(position), jnp.ones_like(position)

    def update(
        self, state: tuple[Vector, Vector, Vector], gradient: Vector
    ) -> tuple[Vector, Vector, Vector]:
        """Return `tau`, `g` and `V` after one more gradient."""
        tau, g, v = state
        rate = 1 / (tau + 1)
        tau = tau - tau * g**2 / (v + jnp.finfo(v.dtype).tiny) + 1
        return tau, g + rate * (gradient - g), v + rate * (gradient**2 - v)

    def diagonal(self, state: tuple[Vector, Vector, Vector]) -> Vector:
        """Return `1 / sqrt(V)`."""
        return 1 / (jnp.sqrt(state[2]) + jnp.finfo(state[2].dtype).tiny)

    def second_moment(self, state: tuple[Vector, Vector, Vector]) -> Vector:
        return state[2]


WORDS = {
    "identity": Identity,
    "rmsprop": RMSprop,
    "fisher": Fisher,
    "scale-adapted": ScaleAdapted,
    "curvature": Curvature,
}


def as_preconditioner(value: Any) -> AbstractPreconditioner | None:
    """Return `preconditioner` as a part; a word stands for one as it comes."""
    if value is None:
        return None
    found = one_of("preconditioner", WORDS, kind=AbstractPreconditioner)(value)
    return WORDS[found]() if isinstance(found, str) else found
