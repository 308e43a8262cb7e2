"""Options that the samplers share: their checks, and what `"auto"` means."""

from typing import Any

from ._kernels import KERNELS
from ._resampling import SCHEMES

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


def require_common(engine: Any) -> None:
    """Raise `ValueError` unless the options that all samplers have are possible."""
    require(engine.particles >= 2, "particles", "at least 2", engine.particles)
    threshold, moves = engine.threshold, engine.moves
    require(0.0 <= threshold <= 1.0, "threshold", "between 0 and 1", threshold)
    require(moves is None or moves >= 1, "moves", "at least 1 or None", moves)
    require(engine.max_moves >= 1, "max_moves", "at least 1", engine.max_moves)
    require(engine.max_steps >= 2, "max_steps", "at least 2", engine.max_steps)
    require_names(engine, kernel=KERNELS, resampling=SCHEMES, metric=METRICS)
