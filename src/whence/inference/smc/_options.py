"""Options that the samplers share: their checks, and what `"auto"` means."""

from typing import Any

METRICS = ("auto", "dense", "diagonal")
# A dense factor costs d^2 a particle and move, and needs many particles a dimension.
_MAX_DENSE = 100
_PARTICLES_PER_DIMENSION = 10


def is_dense(metric: str, dim: int, particles: int) -> bool:
    """Return whether moves are whitened by the whole covariance.

    Args:
        metric: One of `METRICS`.
        dim: Number of dimensions.
        particles: Number of particles.
    """
    if metric == "auto":
        return dim <= _MAX_DENSE and _PARTICLES_PER_DIMENSION * dim <= particles
    return metric == "dense"


def require(condition: bool, argument: str, rule: str, value: Any) -> None:
    """Raise `ValueError` with argument, rule and value unless the condition holds."""
    if not condition:
        raise ValueError(f"`{argument}` must be {rule}; got {value}.")


def require_names(engine: Any, **names: Any) -> None:
    """Raise `ValueError` unless each of some options of an engine is one of its names."""
    for argument, known in names.items():
        value = getattr(engine, argument)
        require(value in known, argument, f"one of {', '.join(known)}", repr(value))
