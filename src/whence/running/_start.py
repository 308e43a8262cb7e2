"""Where a run begins, if its user says so: found and checked before it is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from ..core._begin import beginning, members
from ..core._cache import compiled
from ..core._engine import AbstractProcedure
from ..core._flat import flat_view, position_shapes
from ..core._start import find_start
from ..core._stream import Streamed
from ..core._target import SamplesPrior, Unconstrains, latent_names
from ..core._tree import named_leaves
from ..core._types import Position, PRNGKey
from ..posterior._posterior import Posterior
from ._manifest import MOST
from ._program import shapes_of


def choose_start(
    target: Any, procedure: AbstractProcedure, start: Any, key: PRNGKey
) -> tuple[PyTree, dict[str, str]]:
    """Return the positions at which a run begins, and what its manifest says of them.

    Args:
        target: The target.
        procedure: The engine.
        start: As for `infer`.
        key: Of the run.

    Raises:
        ValueError: If the engine does not begin at positions, or there is no such start; what
            is wrong is named.
    """
    if start is None:
        return None, {}
    number, shapes = members(procedure.schedule), position_shapes(target)
    blank = jax.tree.map(lambda s: np.zeros((number, *s.shape), s.dtype), shapes)
    with beginning(blank, np.int32(0), procedure.schedule) as given:
        shapes_of(target, procedure, key)
    if not given.asked:
        raise ValueError(
            f"`start` must be left out for {procedure.name}, which does not begin at positions."
        )
    key = jr.fold_in(key, MOST)  # no replica has this number
    values, said = _values(target, start, number, key)
    keys = jr.split(key, number)
    found = compiled(_search, target, values, keys).call(target, values, keys)
    positions, is_finite, reached = jax.tree.map(np.asarray, found)
    shown = lambda x: np.array2string(x, precision=5, threshold=8)
    for name, wanted in values.items():
        tolerance = 1e-3 if wanted.dtype == np.float32 else 1e-6
        near = np.abs(reached[name] - wanted) <= tolerance * np.maximum(1.0, np.abs(wanted))
        if not near.all():
            outside = wanted[np.argwhere(~near)[0][0]]
            raise ValueError(
                f"`start[{name!r}]` must lie inside the support of its prior; got "
                f"{shown(outside)}."
            )
    if not is_finite.all():
        at = int(np.argmin(is_finite))
        where = ", ".join(f"{n} = {shown(x[at])}" for n, x in reached.items())
        raise ValueError(
            f"`start` must have a finite log density; that of chain {at} is not, at {where}."
        )
    coupled = procedure.schedule.ensemble == ("particle", number) and number > 1
    if coupled and all(bool((x == x[:1]).all()) for x in jax.tree.leaves(positions)):
        raise ValueError(
            f"`start` must differ between the {number} particles of {procedure.name}, which "
            "stay together where they are at one point; give a posterior, or 'prior'."
        )
    return positions, {"start": said}


def _values(target, start, number: int, key: PRNGKey) -> tuple[dict[str, np.ndarray], str]:
    """Return values by name, with an axis of chains, and where they are from, in words."""
    is_prior = isinstance(start, str) and start == "prior"
    needs: Any = SamplesPrior if is_prior else Unconstrains
    if not isinstance(target, needs):
        method = "sample_prior_position" if is_prior else "unconstrain"
        raise ValueError(
            f"`start` needs a target with `{method}`; got {type(target).__name__}."
        )
    if is_prior:
        return {}, "prior"
    reached = jax.eval_shape(lambda at: _at(target, at), position_shapes(target))
    names = ", ".join(latent_names(target) or reached)
    if isinstance(start, Posterior):
        if missing := [name for name in reached if name not in start]:
            raise ValueError(
                f"`start` must have the latents {names}; the posterior has no {missing[0]!r}. "
                "Give the values of some latents as a dict."
            )
        chosen = _choose(start, number, key)
        each: list[Any] = [{n: np.asarray(start[n])[at] for n in reached} for at in chosen]
    else:
        listed = isinstance(start, Sequence) and not isinstance(start, str)
        each = [start] * number if isinstance(start, Mapping) else list(start) if listed else []
        if not each or not all(isinstance(one, Mapping) and one for one in each):
            raise ValueError(
                "`start` must be values by name, as `{'mu': 0.0}`, or one such dict for each "
                f"chain, a posterior, or 'prior'; got {start!r}."
            )
        if len(each) != number or any(set(one) != set(each[0]) for one in each):
            raise ValueError(
                f"`start` must be one dict for each of {number} chains, all of the same "
                f"latents; got {len(each)} of {[sorted(one) for one in each]}."
            )
    if unknown := [name for name in each[0] if name not in reached]:
        raise ValueError(
            f"`start` must name latents that have no fixed value, {names}; got {unknown[0]!r}."
        )
    stacked = {
        n: np.stack([_value(n, one[n], reached[n].shape) for one in each]) for n in each[0]
    }
    is_fit = isinstance(start, Posterior)
    return (
        stacked,
        f"posterior of {start.engine}" if is_fit else f"values of {', '.join(stacked)}",
    )


def _choose(posterior: Posterior, number: int, key: PRNGKey) -> list[tuple[int, int]]:
    """Return chain and draw of some draws of a posterior, different ones if it has so many."""
    shape = (posterior.num_chains, posterior.num_draws)
    weights = posterior.log_weights
    flat = (np.ones(shape) if weights is None else np.exp(np.asarray(weights, float))).ravel()
    again = bool((flat > 0).sum() < number)
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))
    chosen = rng.choice(flat.size, number, replace=again, p=flat / flat.sum())
    return [(int(i) // shape[1], int(i) % shape[1]) for i in chosen]


def _value(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.broadcast_to(np.asarray(value, jnp.result_type(float)), shape)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not np.isfinite(array).all():
        raise ValueError(
            f"`start[{name!r}]` must be finite numbers of shape {shape}; got {value!r}."
        )
    return array


def _at(target: Any, position: Position) -> dict[str, Array]:
    """Return the values of the latents at a position, by name."""
    draw, names = target.constrain(position), latent_names(target)
    values = target.variables(draw) if names else named_leaves(draw)
    return {name: values[name] for name in names or values}


def _search(target, values, keys):
    """Find a position of finite density for each chain; return also what it stands for.

    Args:
        target: The target.
        values: Values by name, `(chain, ...)`; of none, positions are drawn from the prior.
        keys: One for each chain.
    """
    whole: Any = target
    if isinstance(target, Streamed):
        whole = target.at_hand()

    def one(pair):
        own, key = pair

        def attempt(key):
            position = _filled(target, own, key)
            return position, jnp.isfinite(whole.log_density(position))

        zeros, form = flat_view(whole)
        position, is_finite = find_start(attempt, form(zeros), key=key)
        return position, is_finite, _at(target, position)

    return jax.lax.map(one, (values, keys))


def _filled(target: Any, values: dict[str, Array], key: PRNGKey) -> Position:
    """Return a position with some values given; elsewhere it is one of `target.init`.

    Where a value is in unconstrained space depends on latents before it, whose values depend
    on those before them: as many rounds as there are latents settle them all.
    """
    if not values:
        return target.sample_prior_position(key=key)

    def settle(_, position):
        draw: Any = _at(target, position) | values
        if not latent_names(target):
            form = jax.tree.structure(jax.eval_shape(target.constrain, position))
            draw = form.unflatten([draw[name] for name in known])
        old, new = named_leaves(position), named_leaves(target.unconstrain(draw))
        apart = set(old) == set(known)  # each leaf of a position belongs to one latent
        leaves = [new[n] if n in values or not apart else old[n] for n in old]
        leaves = [x.astype(like.dtype) for x, like in zip(leaves, old.values())]
        return jax.tree.unflatten(jax.tree.structure(position), leaves)

    position = target.init(key=key)
    known = tuple(_at(target, position))
    rounds = 1 if len(values) == len(known) else len(known)
    return jax.lax.fori_loop(0, rounds, settle, position)
