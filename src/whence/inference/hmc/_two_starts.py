"""Two starts a chain: what one of them leads to is judged by what the other leads to.

Some starts lead into a minor mode or onto a plateau that a chain does not leave, and nothing
there tells. So a chain follows one start for a tenth of warm-up and another for as long, and
goes on from the first unless the second has led far higher. Chains know nothing of each other.
Where both have arrived in one mode, or in modes of like height, the first is kept: chains are
as dispersed as they were.
"""

import math
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool

from ._adapt import Adaptation, last_window_end, pauses
from ._transition import Chain

_SHARE = 0.1  # of warm-up, for each start
_LEAST_STEPS = 20  # fewer say nothing about where a start leads


class Start(eqx.Module):
    """Where a start has led to, and what was learned on the way."""

    chain: Chain
    adaptation: Adaptation


def steps_each(warmup: int) -> int:
    """Return how many steps each start is followed for; 0 if there is no second one."""
    steps = int(_SHARE * warmup)
    return steps if steps >= _LEAST_STEPS else 0


def pauses_of_two(warmup: int) -> tuple[int, ...]:
    """Return the steps where windows may end, counted from either start, or starts change."""
    alone, each, stop = pauses(warmup), steps_each(warmup), last_window_end(warmup)
    if not each:
        return alone
    again = (at + each for at in alone if at + each < stop)
    ends = (at for at in alone if at < each or at >= stop)
    return tuple(sorted({each, 2 * each, *again, *ends}))


def swapped(now: Start, other: Start, index: int, warmup: int) -> tuple[Start, Start]:
    """Return the start to go on from before step `index`, and the other. In NumPy.

    Args:
        now: The start that is followed.
        other: The other one, of which nothing is known at first.
        index: One of `pauses_of_two(warmup)`.
        warmup: Steps of warm-up.
    """
    each = steps_each(warmup)
    is_time = index == each or (index == 2 * each and not is_higher(now.chain, other.chain))
    return (other, now) if each and is_time else (now, other)


def is_higher(new: Chain, old: Chain) -> bool:
    """Whether a chain is higher than another by more than chains in one mode differ.

    Log densities of draws from a normal law have a standard deviation of `sqrt(dim / 2)`.
    """
    dim = len(new.position)
    gain: Any = new.log_density - old.log_density
    return bool(gain > 5.0 * (1.0 + math.sqrt(dim)))


def own_index(index: Array, warmup: int, is_told: Bool[Array, ""]) -> Array:
    """Return the number of a step, counted from the start that is followed. Traced."""
    each = steps_each(warmup)
    return index - each * ((index >= each) & ~is_told).astype(index.dtype)
