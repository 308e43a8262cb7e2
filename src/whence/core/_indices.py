"""Indices that data hold, compared with the axes that a program uses them on.

JAX takes another entry where an index is beyond its axis, and the last ones for -1, without a
word: a row then belongs to a group that is not its own. So the operations of a program are
gone through before it is run: what follows from data alone must be within its axis where it
is an index.

An index beyond its axis may still do no harm: what is read there is left out by a mask. So
where one is found, the program is run with and without NaN in the place of what is read.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import keystr, tree_leaves_with_path

from ._cache import is_data, remembered
from ._code import named_arrays
from ._flat import position_shapes
from ._target import AbstractDescribedTarget, AbstractTarget, NamesArrays
from ._types import Position
from ._walk import Known, Place, Seen, Walk, content


def all_of(target: AbstractTarget, position: Position) -> Any:
    """Return log density and derived values: what `check_indices` looks into by default."""
    if not isinstance(target, AbstractDescribedTarget):
        return target.log_density(position)
    return target.log_density(position), target.variables(target.constrain(position))


def check_indices(
    target: AbstractTarget, function: Callable[[Any, Position], Any] = all_of
) -> None:
    """Raise if a target holds an index beyond the axis that it is used on, or a negative one.

    Of indices that code itself holds (`theta[8]`) negative ones count from the end.

    Args:
        target: The target; arrays in it are data.
        function: Of target and position, and uses them; without arrays of its own.

    Raises:
        ValueError: Naming the array, the value and the length of the axis.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(target)):
        return
    shapes = position_shapes(target)
    (places, found), _ = remembered(_ranges, function, target, shapes)
    if found is None:
        return
    judged = None
    for i, (place, seen) in enumerate(zip(places, jax.device_get(found(target)))):
        if not seen.count:
            continue
        if not place.certain:
            if judged is None:
                judged, _ = remembered(_judge, function, target, shapes, len(places))
            if not judged(target, i):
                continue
        raise ValueError(_message(place, seen, target))


def leaf_name(target: Any, path: str) -> str:
    """Return the name of an array in a target for messages.

    Args:
        target: The target; it knows best if it is a `NamesArrays`.
        path: Path of the leaf, with dots.
    """
    if isinstance(target, NamesArrays):
        return target.leaf_name(path)
    return f"`{path}` of the target"


def _flat(data: Any) -> list[tuple[str, Any]]:
    return [
        (keystr(path, simple=True, separator="."), leaf)
        for path, leaf in tree_leaves_with_path(eqx.filter(data, is_data))
    ]


def _traced(function, data, moving):
    """Return the operations of `function`, paths of data and names of constants by content."""
    static = eqx.filter(data, is_data, inverse=True)
    call = lambda d, m: function(eqx.combine(d, static), m)
    closed = jax.make_jaxpr(call)(eqx.filter(data, is_data), moving)
    constants = {content(value): name for name, value in named_arrays((function, data))}
    return closed, [path for path, _ in _flat(data)], constants


def _ranges(function, data, moving):
    """Return where data are indices, and a compiled function that looks how they are."""
    closed, paths, constants = _traced(function, data, moving)
    places: list[Place] = []

    def look(leaves):
        walk = Walk(constants)
        known = [Known(v, frozenset([p])) for p, v in zip(paths, leaves)]
        inputs = [*known, *[None] * (len(closed.jaxpr.invars) - len(known))]
        walk.run(closed, inputs)
        places[:] = walk.places
        return walk.seen

    leaves = [leaf for _, leaf in _flat(data)]
    looked = jax.make_jaxpr(look)(leaves)
    if not places:
        return (), None
    kept, used = dce_jaxpr(looked.jaxpr, [True] * len(looked.jaxpr.outvars))
    run = jax.jit(lambda values: eval_jaxpr(kept, looked.consts, *values))

    def found(data):
        values = [leaf for (_, leaf), wanted in zip(_flat(data), used) if wanted]
        flat = run(values)
        return [Seen(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

    return tuple(places), found


def _judge(function, data, moving, number):
    """Return whether the value of `function` depends on what is read beyond an axis."""
    closed, paths, constants = _traced(function, data, moving)

    draw = np.random.default_rng(0).uniform
    others = [draw(-1.0, 1.0, s.shape).astype(s.dtype) for s in jax.tree.leaves(moving)]

    @jax.jit
    def run(leaves, marked):
        walk = Walk(constants, marked)
        known = [Known(v, frozenset([p])) for p, v in zip(paths, leaves)]
        outs = walk.run(closed, [*known, *(Known(v, None) for v in others)])
        return [out.value for out in outs if out is not None]

    def judged(data, place):
        leaves = [leaf for _, leaf in _flat(data)]
        plain, marked = (
            jax.device_get(run(leaves, np.arange(number) == at)) for at in (-1, place)
        )
        return any(
            np.isnan(np.asarray(a, float)).any() or np.asarray(a).tobytes() != b.tobytes()
            for a, b in zip(plain, marked)
        )

    return judged


def _message(place: Place, seen: Seen, data: Any) -> str:
    if not place.sources:
        value = seen.value - place.length if seen.value < 0 else seen.value
        return (
            f"An index in the code must be from {-place.length} to {place.most} for an axis of "
            f"length {place.length}; got {value}. (JAX would read another one silently.)"
        )
    leaves = dict(_flat(data))
    entry = {s: _entry(leaves.get(s), place, seen) for s in place.sources}
    whole = [s for s in entry if s not in leaves or leaves[s].dtype.kind in "iu"]
    sources = whole or list(entry)
    if len(sources) > 1:  # the one that holds the value where it was seen, if there is one
        sources = [s for s in sources if entry[s].startswith(" at")] or sources
    named = " and ".join(leaf_name(data, s) if s in leaves else s for s in sources)
    got = f"{seen.value}{entry[sources[0]] if len(sources) == 1 else ''}"
    more = f" and {seen.count - 1} more" if seen.count > 1 else ""
    hint = "Count from 0, and see that there is an entry for each."
    if seen.value < 0:
        hint = "Where -1 marks what is missing, leave these rows out or give them a group."
    several = place.length - place.most
    start = f", of which {several} are taken at once" if several > 1 else ""
    return (
        f"{named} must give indices from 0 to {place.most} for an axis of length "
        f"{place.length}{start}; got {got}{more}. {hint} (JAX would read another entry without "
        "a word.)"
    )


def _entry(leaf, place: Place, seen: Seen) -> str:
    """Return where in an array the entry is that an index came from, if that can be told."""
    if leaf is None:
        return ""
    array = np.asarray(leaf)
    same = np.flatnonzero(array == seen.value)
    if array.size != place.size and not same.size:
        return ""
    flat = int(seen.place) if array.size == place.size else int(same[0])
    at = tuple(int(i) for i in np.unravel_index(flat, array.shape))
    where = f" at index {at[0] if len(at) == 1 else at}" if at else ""
    value = array[at]
    return where if value == seen.value else f", made of {value}{where}"
