"""What a point estimate maximises, as a function of a position."""

from typing import Literal

import jax.numpy as jnp

from ...core._target import AbstractDataTarget, AbstractTarget, HasJacobian
from ...core._types import Position, Scalar

Objective = Literal["posterior", "likelihood", "unconstrained"]


def check_objective(objective: str, target: AbstractTarget) -> None:
    """Raise `ValueError` if the target cannot give the objective."""
    if objective == "likelihood" and not isinstance(target, AbstractDataTarget):
        raise ValueError(
            "`objective='likelihood'` needs a target that tells prior and likelihood apart, "
            f"such as one made by `whence.condition`; got {type(target).__name__}."
        )
    if objective == "posterior" and not isinstance(target, HasJacobian):
        raise ValueError(
            "`objective='posterior'` needs a target that knows the log-Jacobian of its "
            f"`constrain`, by a method `log_jacobian(position)`; {type(target).__name__} has "
            "none. Give it one, or maximise the density of positions: "
            "`objective='unconstrained'`."
        )


def evaluate(objective: str, target: AbstractTarget, position: Position) -> Scalar:
    """Return the objective at a position, in nats."""
    if objective == "unconstrained":
        return jnp.asarray(target.log_density(position))
    if objective == "likelihood":
        assert isinstance(target, AbstractDataTarget)
        return jnp.sum(jnp.asarray(target.log_likelihood(position)))
    assert isinstance(target, HasJacobian)
    return target.log_density(position) - target.log_jacobian(position)
