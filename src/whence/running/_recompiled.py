"""A remark on loops that compile again and again because a number of the model changes."""

import math
import warnings
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import numpy as np
from jax.tree_util import keystr, tree_leaves, tree_leaves_with_path, tree_structure

from ..core._cache import is_data
from ..core._results import InferenceWarning

TIMES = 3  # compilations of one structure, at the last of which the user is told
_MOST = 256
_SEEN: dict[Hashable, list[dict[str, int | float]]] = {}


def note_compilation(target: Any, engine: Any) -> None:
    """Warn at the third compilation of targets that differ in plain numbers only.

    Args:
        target: What a program was compiled for.
        engine: The engine; another one, or another setting, is a program of its own.
    """
    static = eqx.filter(target, is_data, inverse=True)
    numbers, others = {}, []
    for path, leaf in tree_leaves_with_path(static):
        name = keystr(path, simple=True, separator=".")
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            numbers[name] = leaf
        else:
            others.append((name, leaf))
    arrays = tree_leaves(eqx.filter(target, is_data))
    shapes = [(np.shape(x), str(x.dtype)) for x in arrays]
    key = (tree_structure(static), *others, *shapes, repr(engine))
    try:
        hash(key)
    except TypeError:
        return
    if len(_SEEN) > _MOST:
        _SEEN.clear()
    seen = _SEEN.setdefault(key, [])
    seen.append(numbers)
    values = {n: list(dict.fromkeys(x[n] for x in seen if n in x)) for n in numbers}
    changed = {n: v for n, v in values.items() if len(v) > 1}
    if len(seen) == TIMES and changed:
        name = max(changed, key=lambda n: len(changed[n]))
        shown = ", ".join(f"{x:g}" if math.isfinite(x) else str(x) for x in changed[name])
        warnings.warn(
            f"The same model was compiled {TIMES} times because `{name}` changed ({shown}): "
            "Python numbers are part of the program. Make it an array, as "
            f"`jnp.asarray({changed[name][-1]!r})`, if it decides no shape: arrays are data, "
            "and other values compile nothing.",
            InferenceWarning,
            stacklevel=7,
        )
