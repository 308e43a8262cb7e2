"""A program gone through operation by operation, to see the indices that data hold.

What follows from data alone is known, whatever the arithmetic that leads there. Loops,
branches and compiled functions inside are gone through as well.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}
_BLOCKS = {"scan", "while", "cond"}


class Place(NamedTuple):
    """An index of one axis.

    Attributes:
        sources: What it follows from: paths of data, names of constants; nothing if code
            itself holds it.
        length: Length of the axis.
        most: The largest index allowed.
        certain: Whether what is read there cannot be marked.
        size: How many indices there are.
    """

    sources: tuple[str, ...]
    length: int
    most: int
    certain: bool
    size: int


class Seen(NamedTuple):
    """How often an index was beyond its axis; value and place of the first."""

    count: Any
    value: Any
    place: Any


class Known(NamedTuple):
    """A value at hand.

    Attributes:
        value: The value.
        sources: What it follows from; None if also from what moves.
        columns: The values that it was joined of along the last axis, one entry each.
        is_sign: Whether it says where something is below zero.
    """

    value: Any
    sources: frozenset[str] | None
    columns: tuple["Known", ...] = ()
    is_sign: bool = False


def content(array: Any) -> Any:
    """Return what arrays of the same numbers share, whatever their type."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        return None
    array = np.asarray(array)
    return array.shape, tuple(array.reshape(-1)[:64].tolist())


class Walk:
    """Goes through operations with the values that are known, and keeps what indices were.

    `marked` says at which places what is read beyond the axis becomes NaN; None where only
    what follows from data is known. Indices that code itself holds count outside of loops and
    branches: there the first and the last step may be beyond an axis.
    """

    def __init__(
        self, constants: dict, marked: Any = None, first: int = 0, is_inner: bool = False
    ):
        self.constants = constants
        self.marked = marked
        self.first = first
        self.is_inner = is_inner
        self.places: list[Place] = []
        self.seen: list[Seen] = []

    def run(self, jaxpr: Any, inputs: Sequence[Known | None]) -> Sequence[Known | None]:
        constants = [Known(v, self._named(v)) for v in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs]))
        read = lambda v: Known(v.val, frozenset()) if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [read(v) for v in eqn.invars])))
        return [read(v) for v in jaxpr.outvars]

    def _named(self, value):
        name = None if isinstance(value, Tracer) else self.constants.get(content(value))
        return frozenset() if name is None else frozenset([name])

    def _equation(self, eqn, inputs) -> Sequence[Known | None]:
        kind = eqn.primitive.name
        if kind in _BLOCKS and _reads(eqn):
            return getattr(self, f"_{kind}")(eqn, inputs)
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if kind in _CALLS and inner is not None:
            return self.run(inner, inputs)
        mark = None
        if is_index(kind):
            inputs, mark = self._indexed(eqn, inputs)
        return self._bound(eqn, inputs, mark)

    def _bound(self, eqn, inputs, mark=None):
        asks = eqn.effects or "callback" in eqn.primitive.name
        if any(k is None for k in inputs) or (asks and self.marked is None):
            return [None] * len(eqn.outvars)
        sources = None if asks else _union(inputs)
        with eqn.ctx.manager:
            out = eqn.primitive.bind(
                *(k.value for k in inputs), **eqn.primitive.get_bind_params(eqn.params)
            )
        out = list(out) if eqn.primitive.multiple_results else [out]
        if mark is not None:
            out = [mark(x) for x in out]
        kind = eqn.primitive.name
        if kind == "select_n" and sources and (inputs[0].is_sign or not inputs[0].sources):
            out = [_as_given(out[0], *(k.value for k in inputs))]
        known: list[Known | None] = [Known(x, sources) for x in out]
        if (
            kind == "lt"
            and isinstance(eqn.invars[1], Literal)
            and np.all(eqn.invars[1].val == 0)
        ):
            known = [Known(out[0], sources, is_sign=True)]
        if kind == "concatenate":
            last = eqn.params["dimension"] == out[0].ndim - 1
            if last and all(k.value.shape[-1] == 1 for k in inputs):
                known = [Known(out[0], sources, tuple(inputs))]
        return known

    # -- indices -----------------------------------------------------------------

    def _indexed(self, eqn, inputs):
        """Look at the indices of an operation; return inputs within the axis, and a mark."""
        kind, params = eqn.primitive.name, eqn.params
        shape = eqn.invars[0].aval.shape
        if kind in ("dynamic_slice", "dynamic_update_slice"):
            first = 1 if kind == "dynamic_slice" else 2
            sizes = params.get("slice_sizes") or eqn.invars[1].aval.shape
            beyond = jnp.zeros((), bool)
            for axis in range(len(shape)):
                known = inputs[first + axis]
                limits = shape[axis], shape[axis] - sizes[axis]
                value, out = self._look(eqn, known, *limits)
                beyond |= out
                if value is not None:
                    inputs[first + axis] = known._replace(value=value)
            return inputs, lambda x: _nan_where(jnp.broadcast_to(beyond, x.shape), x)
        numbers = params["dimension_numbers"]
        if kind == "gather":
            axes, sizes = numbers.start_index_map, params["slice_sizes"]
        else:
            axes, sizes = numbers.scatter_dims_to_operand_dims, _window(eqn, numbers)
        known = inputs[1]
        if known is None or not _judged_mode(eqn):
            return inputs, None
        columns, beyond = [], jnp.zeros(known.value.shape[:-1], bool)
        for j, axis in enumerate(axes):
            column = known.columns[j] if known.columns else known
            column = Known(known.value[..., j], column.sources)
            value, out = self._look(eqn, column, shape[axis], shape[axis] - sizes[axis])
            beyond |= out
            columns.append(column.value if value is None else value)
        if columns:
            inputs[1] = known._replace(value=jnp.stack(columns, axis=-1))

        def mark(x):
            if kind != "gather":
                return _nan_where(jnp.broadcast_to(beyond.any(), x.shape), x)
            rest = [d for d in range(x.ndim) if d not in numbers.offset_dims]
            return _nan_where(jax.lax.broadcast_in_dim(beyond, x.shape, rest), x)

        return inputs, mark

    def _look(self, eqn, known, length, most):
        """Note one index; return it within its axis (None if not known), and where it is not.

        The latter only where it is to be marked.
        """
        if known is None or known.sources is None or jnp.size(known.value) == 0:
            return None, jnp.zeros((), bool)
        if self.is_inner and not known.sources:
            return None, jnp.zeros((), bool)
        value = jnp.asarray(known.value)
        beyond = (value < 0) | (value > most)
        place = jnp.argmax(beyond.reshape(-1))
        place = place.astype(jnp.int32)
        seen = Seen(
            jnp.sum(beyond, dtype=jnp.int32),
            value.reshape(-1)[place].astype(jnp.int32),
            place,
        )
        floating = jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)
        at = self.first + len(self.places)
        self.places.append(
            Place(tuple(sorted(known.sources)), length, most, not floating, value.size)
        )
        self.seen.append(seen)
        marked = jnp.zeros((), bool) if self.marked is None else self.marked[at]
        inside = jnp.clip(value, 0, jnp.asarray(max(most, 0), value.dtype))
        return inside, beyond & marked

    # -- loops and branches ------------------------------------------------------

    def _inside(self, jaxpr, inputs):
        """Go through an inner function by itself; return the walk and what came out."""
        walk = Walk(self.constants, self.marked, self.first + len(self.places), True)
        return walk, walk.run(jaxpr, inputs)

    def _add(self, walk, seen) -> None:
        self.places += walk.places
        self.seen += seen

    def _scan(self, eqn, inputs):
        params, body = eqn.params, eqn.params["jaxpr"]
        if params["length"] == 0:
            return self._bound(eqn, inputs)
        first, second = _scan_parts(params)
        constants, xs = inputs[:first], inputs[second:]
        each = [None if k is None else k.sources for k in xs]
        last: list[Walk] = []

        def step(carry, slices, tags, outs):
            known = [*constants, *_tagged(carry, tags), *_tagged(slices, each)]
            walk, out = self._inside(body, known)
            last[:] = [walk]
            outs[:] = [None if k is None else k._replace(value=None) for k in out]
            new = [None if old is None else k and k.value for old, k in zip(carry, out)]
            return new, ([k and k.value for k in out[second - first :]], walk.seen)

        values = lambda tree: [k and k.value for k in tree]
        carry, tags, outs = self._settled(
            inputs[first:second],
            lambda carry, tags, outs: step(
                carry, [None if x is None else x[0] for x in values(xs)], tags, outs
            )[0],
        )
        end, (ys, seen) = jax.lax.scan(
            lambda carry, x: step(carry, x, tags, outs),
            carry,
            values(xs),
            length=params["length"],
            reverse=params["reverse"],
        )
        self._add(last[0], [_first_of(s, p.size) for s, p in zip(seen, last[0].places)])
        more = len(self.places) - len(seen)
        self.places[more:] = [
            p._replace(size=p.size * params["length"]) for p in self.places[more:]
        ]
        return [
            None if k is None or v is None else Known(v, k.sources)
            for k, v in zip(outs, [*end, *ys])
        ]

    def _settled(self, inputs, step):
        """Return which parts of a loop's state are known at each step, and of what made."""
        carry = [k and _strong(k.value) for k in inputs]
        tags = [None if k is None else k.sources for k in inputs]
        outs: list[Any] = []
        while True:
            jax.eval_shape(lambda carry, tags=tags: step(carry, tags, outs), carry)
            kept = [
                None if k is None or out is None else k
                for k, out in zip(carry, outs[: len(carry)])
            ]
            new = [
                None if k is None or t is None or out.sources is None else t | out.sources
                for k, t, out in zip(kept, tags, outs)
            ]
            if new == tags and all((a is None) == (b is None) for a, b in zip(kept, carry)):
                break
            carry, tags = kept, new
        return carry, tags, outs

    def _while(self, eqn, inputs):
        params = eqn.params
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        last: list[Walk] = []

        def step(carry, tags, outs):
            known = [*inputs[first:second], *_tagged(carry, tags)]
            walk, out = self._inside(params["body_jaxpr"], known)
            last[:] = [walk]
            outs[:] = [None if k is None else k._replace(value=None) for k in out]
            return [None if old is None else k and k.value for old, k in zip(carry, out)]

        carry, tags, outs = self._settled(inputs[second:], step)
        asked: list[Any] = []

        def goes_on(carry):
            known = [*inputs[:first], *_tagged(carry, tags)]
            _, (answer,) = self._inside(params["cond_jaxpr"], known)
            asked[:] = [answer]
            return jnp.zeros((), bool) if answer is None else answer.value

        jax.eval_shape(goes_on, carry)
        if asked[0] is None:  # how long it runs is not known; what it reads at once may be
            nothing = [None] * len(carry)
            step(nothing, nothing, outs)
            self._add(last[0], last[0].seen)
            return [None] * len(eqn.outvars)
        moves = asked[0].sources is None
        none = [Seen(*(jnp.zeros((), jnp.int32),) * 3) for _ in last[0].places]

        def body(state):
            carry, seen = state
            carry = step(carry, tags, outs)
            return carry, [_earlier(a, b) for a, b in zip(seen, last[0].seen)]

        carry, seen = jax.lax.while_loop(lambda s: goes_on(s[0]), body, (carry, none))
        self._add(last[0], seen)
        return [
            None if v is None else Known(v, None if moves else t) for v, t in zip(carry, tags)
        ]

    def _cond(self, eqn, inputs):
        chosen, *rest = inputs
        if self.marked is not None:
            return self._switch(eqn, chosen, rest)
        results = []
        for k, branch in enumerate(eqn.params["branches"]):
            walk, out = self._inside(branch, rest)
            seen = walk.seen
            if chosen is None:  # at which position the branch is taken is not known
                walk.places = [p._replace(certain=True) for p in walk.places]
            else:
                taken = chosen.value.astype(jnp.int32) == k
                seen = [s._replace(count=jnp.where(taken, s.count, 0)) for s in seen]
            self._add(walk, seen)
            results.append(out)
        if chosen is None:
            return [None] * len(eqn.outvars)
        which = chosen.value
        joined: list[Known | None] = []
        for outs in zip(*results):
            if any(out is None for out in outs):
                joined.append(None)
                continue
            value = outs[0].value
            for k, out in enumerate(outs[1:], start=1):
                value = jax.lax.select(
                    jnp.broadcast_to(which.astype(jnp.int32) == k, out.value.shape),
                    out.value,
                    value,
                )
            joined.append(Known(value, _union([chosen, *outs])))
        return joined

    def _switch(self, eqn, chosen, rest):
        """As `_cond` where all is known: only the branch that is taken is run."""
        tags: list[Any] = []

        def branch(jaxpr):
            def call():
                walk, out = self._inside(jaxpr, rest)
                self._add(walk, walk.seen)
                tags.append([k and k.sources for k in out])
                return [k and k.value for k in out]

            return call

        which = chosen.value.astype(jnp.int32)
        values = jax.lax.switch(which, [branch(b) for b in eqn.params["branches"]])
        unions = [
            None if None in (chosen.sources, *t) else chosen.sources.union(*t)
            for t in zip(*tags)
        ]
        return _tagged(values, unions)


def is_index(kind: str) -> bool:
    return kind in ("gather", "dynamic_slice", "dynamic_update_slice") or (
        kind.startswith("scatter")
    )


def _reads(eqn) -> bool:
    """Whether an operation, or one inside of it, uses an index."""
    inside = [
        getattr(j, "jaxpr", j)
        for value in eqn.params.values()
        for j in (value if isinstance(value, tuple) else (value,))
        if isinstance(getattr(j, "jaxpr", j), Jaxpr)
    ]
    return is_index(eqn.primitive.name) or any(_reads(e) for j in inside for e in j.eqns)


def _union(inputs) -> frozenset[str] | None:
    sources = [k.sources for k in inputs]
    return None if None in sources else frozenset().union(*sources)


def _tagged(values, tags):
    return [None if v is None else Known(v, t) for v, t in zip(values, tags)]


def _strong(value):
    """Return a value that is not weakly typed, as the state of a loop must be."""
    if not hasattr(value, "dtype"):  # a literal
        value = jnp.asarray(value)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    return jax.lax.convert_element_type(value, jnp.result_type(value))


def _scan_parts(params) -> tuple[int, int]:
    """Return where constants and state of a `scan` end among its inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(constants) + len(carry)


def _earlier(first: Seen, then: Seen) -> Seen:
    new = Seen(*(jnp.where(first.count == 0, b, a) for a, b in zip(first, then)))
    return new._replace(count=first.count + then.count)


def _first_of(seen: Seen, size: int) -> Seen:
    """Return what was seen over the steps of a loop, of `size` indices each."""
    step = jnp.argmax(seen.count > 0).astype(jnp.int32)
    place = seen.place[step] + step * size
    return Seen(jnp.sum(seen.count, dtype=jnp.int32), seen.value[step], place)


def _as_given(chosen, which, *cases):
    """Return an index before JAX counts a negative one from the end of the axis."""
    if len(cases) != 2 or not jnp.issubdtype(chosen.dtype, jnp.signedinteger):
        return chosen
    given, shifted = cases
    if chosen.size == 0 or jnp.shape(which) != jnp.shape(given):
        return chosen
    shift = shifted - given
    wraps = (which == (given < 0)).all() & (shift == shift.reshape(-1)[0]).all()
    return jnp.where(wraps & (shift > 0).all(), given, chosen)


def _judged_mode(eqn) -> bool:
    """Whether the user did not say what is to be done with an index beyond the axis."""
    mode, fill = str(eqn.params["mode"]), eqn.params.get("fill_value")
    if "CLIP" in mode:  # what `vmap` makes of `x[i]` says so, too, and keeps the axis
        numbers = eqn.params["dimension_numbers"]
        collapsed = getattr(numbers, "collapsed_slice_dims", (0,))
        return not set(collapsed) & set(getattr(numbers, "start_index_map", ()))
    if fill is None or "FILL" not in mode:
        return True
    dtype = eqn.invars[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return fill in (info.min, info.max)
    return bool(np.isnan(fill))


def _window(eqn, numbers) -> tuple[int, ...]:
    """Return the lengths of what a `scatter` writes at once, along the axes of the operand."""
    lengths = iter(eqn.invars[2].aval.shape[d] for d in numbers.update_window_dims)
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    shape = eqn.invars[0].aval.shape
    return tuple(1 if d in single else next(lengths) for d in range(len(shape)))


def _nan_where(where, x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.select(where, jnp.full_like(x, jnp.nan), x)
