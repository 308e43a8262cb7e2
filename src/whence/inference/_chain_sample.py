"""What chains of flat positions hand back: the same for every engine that runs chains."""

from typing import Any

from ..core._engine import Sample, Schedule, Trace
from ..core._flat import position_shapes
from ..core._target import AbstractTarget
from ..core._tree import unravel


def chain_schedule(
    chains: int,
    warmup: int,
    draws: int,
    *,
    pauses: tuple[int, ...] = (),
    homogeneous: bool = False,
) -> Schedule:
    """Return the schedule of independent chains, of which any number of draws can be made."""
    steps = warmup + draws
    return Schedule(chains, warmup, steps, True, pauses, homogeneous=homogeneous)


def chain_sample(
    target: AbstractTarget, trace: Trace, method: Any, *, keep_warmup: bool, record: Any = None
) -> Sample:
    """Return the draws of a trace of flat positions, those of warm-up if they are kept."""
    draws, warmup = trace.sampling, trace.warmup if keep_warmup else None
    assert draws is not None  # the loop asks only once there are draws
    like = position_shapes(target)
    return Sample(
        positions=unravel(draws.position, like),
        stats=draws.stats,
        method=method,
        warmup_positions=None if warmup is None else unravel(warmup.position, like),
        warmup_stats=None if warmup is None else warmup.stats,
        record=record,
    )
