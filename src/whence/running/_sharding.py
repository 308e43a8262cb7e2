"""A program over devices: arguments to their places, replicas to theirs, results back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import PyTree

from ._mesh import Layout


def place(layout: Layout, data, state, key, replica, start, stop) -> tuple:
    """Return the arguments of the program, each where it belongs; what is there stays."""
    everywhere = layout.of()
    number = layout.of("chain") if layout.replicas > 1 else everywhere
    return (
        place_data(layout, data),
        jax.tree.map(lambda leaf: _put(leaf, layout.of_state(leaf)), state),
        _put(key, everywhere),
        _put(replica, number),
        _put(start, everywhere),
        _put(stop, everywhere),
    )


def place_data(layout: Layout, data: PyTree) -> PyTree:
    """Return array leaves of a run's target, and of what else it is: rows along `data`."""
    (target, *others), divided = data, layout.of("data")

    def put(leaf):
        if layout.sites:  # the rows of this process, one part of an array of all
            if isinstance(leaf, jax.Array) and leaf.sharding == divided:
                return leaf
            own = np.asarray(leaf)[None]
            lead = (layout.mesh.size, *own.shape[1:])
            return jax.make_array_from_process_local_data(divided, own, lead)
        is_row = layout.rows is not None and np.shape(leaf)[:1] == (layout.rows,)
        return _put(leaf, divided if is_row else layout.of())

    whole = jax.tree.map(lambda leaf: _put(leaf, layout.of()), others)
    return jax.tree.map(put, target), *whole


def _put(leaf, sharding: NamedSharding):
    is_array = isinstance(leaf, jax.Array)
    if is_array and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if sharding.is_fully_addressable or (is_array and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    if is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(_put(jr.key_data(leaf), sharding), impl=jr.key_impl(leaf))
    # Every process holds all of it, and gives its devices their parts.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def keep(layout: Layout | None, state: PyTree) -> PyTree:
    """Return the state of one replica, in the program, held where it belongs."""
    if layout is None or layout.apart:
        return state
    hold = lambda leaf: jax.lax.with_sharding_constraint(leaf, layout.of_member(leaf))
    return jax.tree.map(hold, state)


def spread(one: Callable, layout: Layout, vectorised: bool) -> Callable:
    """Return the program of one replica, `one`, for all of them.

    Args:
        one: Takes data, state, key, replica number, start and stop.
        layout: What is divided.
        vectorised: Map the replicas of a device in one loop, or run one after the other.
            The latter computes for each what it computes alone, to the same last bit.
    """
    in_step = layout.mesh.shape["chain"] > 1 and not layout.apart
    divided, whole = P("chain"), P()
    placed = (P("data"), whole, whole) if layout.sites else whole

    def local(data, state, key, replica, start, stop):
        if layout.sites:
            data = jax.tree.map(lambda x: x[0], data[0]), *data[1:]
        each = lambda s, r: one(data, s, key, r, start, stop)
        if replica.size == 1:
            alone = each(jax.tree.map(lambda x: x[0], state), replica[0])
            return jax.tree.map(lambda x: x[None], alone)
        if in_step:
            return jax.vmap(each, spmd_axis_name="chain")(state, replica)
        if vectorised:
            return jax.vmap(each)(state, replica)
        return jax.lax.map(lambda pair: each(*pair), (state, replica))

    if not layout.apart:
        return local
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(placed, divided, whole, divided, whole, whole),
        out_specs=divided,
        check_vma=False,  # loops start from constants, which are the same everywhere
    )


def gathered(leaf):
    """Return an array that this process can read whole; all processes must ask for it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)
