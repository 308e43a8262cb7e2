"""What an update is made of, what a chain carries, and the evaluation of a force."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._types import Position, PRNGKey, Scalar
from ._decay import AbstractDecay
from ._gradient import AbstractGradient, Space, Vector
from ._integrator import Force, evaluations, is_cached, looks_at
from ._preconditioner import AbstractPreconditioner
from ._tuning import Tuning

APART = 2**20  # a number that no update of a block has, for keys


class Learned(eqx.Module):
    """What is learned from gradients on the way, and what the last one said.

    Attributes:
        epoch: State of the gradient estimate.
        scale: State of the preconditioner.
        drift: See `Terms`.
        noise_variance: See `Terms`.
    """

    epoch: PyTree
    scale: PyTree
    drift: Vector | None
    noise_variance: Vector | None


class Parts(eqx.Module):
    """What an update is made of.

    Attributes:
        word: From `word_of`.
        gradient: The estimator.
        preconditioner: One step size per coordinate.
        decay: How the step size changes.
        friction: None if it follows from the step size.
        subtract_noise: Whether the noise of the gradient is taken off that of friction.
    """

    word: str
    gradient: AbstractGradient
    preconditioner: AbstractPreconditioner
    decay: AbstractDecay
    friction: float | None = None
    subtract_noise: bool = False

    @property
    def overdamped(self) -> bool:
        """Whether there is no momentum."""
        return self.word == "E"

    @property
    def shows_density(self) -> bool:
        """Whether the log density of a draw is estimated on the way."""
        return self.gradient.shows_density and looks_at(self.word) is not None

    @property
    def draws_starts(self) -> bool:
        """Whether a draw is where the last update started, and not where it ended."""
        return looks_at(self.word) == "start"

    @property
    def streamed(self) -> int:
        """Rows of data per update, if none but those of the batch are needed; else 0."""
        sees = self.gradient.batch_size or 0
        return sees * len(evaluations(self.word)) if self.gradient.streams else 0

    @property
    def sites(self) -> int:
        """Processes with data rows of their own; 0 if this one has all."""
        return getattr(self.gradient, "sites", 0)

    def unlearned(self, flat: Vector, epoch: PyTree, scale: PyTree) -> Learned:
        """Return what is known at the start of a block."""
        drift = jnp.zeros_like(flat) if self.preconditioner.gamma else None
        return Learned(
            epoch, scale, drift, jnp.zeros_like(flat) if self.subtract_noise else None
        )

    def evaluate(
        self,
        space: Space,
        adapting: Bool[Array, ""],
        counter: Int[Array, ""],
        key: PRNGKey,
        flat: Vector,
        number: int,
        learned: Learned,
    ) -> tuple[Force, Learned]:
        """Return the force at a position, and what is learned from it.

        Args:
            space: The target density.
            adapting: Whether a preconditioner that is frozen after warm-up still learns.
            counter: Number of the update.
            key: Of its gradients.
            flat: The position.
            number: Of this evaluation in the update.
            learned: From before.
        """
        counter = counter * len(evaluations(self.word)) + (number + is_cached(self.word))
        key = jr.fold_in(key, number) if number else key
        learn, diagonal = self.preconditioner.update, self.preconditioner.diagonal

        def found(x):
            estimate = self.gradient.estimate(space, x, learned.epoch, counter, key=key)
            return estimate[1], (jnp.asarray(estimate[0]).astype(flat.dtype), estimate[2])

        drift = None
        if self.preconditioner.gamma:
            # One random vector of signs for the diagonal of the derivative of `G`.
            signs = jr.rademacher(jr.fold_in(key, APART), flat.shape, flat.dtype)
            gradient, turned, rest = jax.jvp(found, (flat,), (signs,), has_aux=True)
            of_gradient = lambda g: diagonal(learn(learned.scale, g))
            drift = signs * jax.jvp(of_gradient, (gradient,), (turned,))[1]
        else:
            gradient, rest = found(flat)
        scale = learn(learned.scale, gradient)
        if self.preconditioner.frozen:
            keep = lambda new, old: jnp.where(adapting, new, old)
            scale = jax.tree.map(keep, scale, learned.scale)
        noise = self.preconditioner.second_moment(scale) if self.subtract_noise else None
        return Force(rest[0], gradient), Learned(rest[1], scale, drift, noise)

    def product(
        self, space: Space, epoch: Any, first: Int[Array, ""], key: PRNGKey, flat: Vector
    ):
        """Return a function of a direction and a number.

        It returns the gradient at `flat` by the batch `first` plus the number, and the product
        of that batch's Hessian with the direction.
        """

        def of(direction: Vector, i: Int[Array, ""] | int) -> tuple[Vector, Vector]:
            found = lambda x: self.gradient.estimate(
                space, x, epoch, first + i, key=jr.fold_in(key, i)
            )[1]
            return jax.jvp(found, (flat,), (direction,))

        return of


class SGMCMCState(eqx.Module):
    """What the next step needs.

    Attributes:
        position: The present position; the last finite one if the chain has stopped.
        momentum: Flat; empty for overdamped dynamics.
        thermostat: See `Motion`.
        force: See `Motion`.
        epoch: State of the gradient estimate.
        scale: State of the preconditioner.
        tuning: State of the search for a step size and units; None if there is none.
        nonfinite_at: Number of the first update that left the finite numbers; -1 if none
            did, and -2 if no start with a finite log density was found.
    """

    position: Position
    momentum: Float[Array, " momenta"]
    thermostat: Scalar
    force: Force | None
    epoch: PyTree
    scale: PyTree
    tuning: Tuning | None
    nonfinite_at: Int[Array, ""]
