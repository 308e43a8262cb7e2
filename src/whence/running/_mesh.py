"""Devices for the loop: what of a run lies where.

A mesh has three axes. Along `chain`, devices hold different replicas: each runs a loop of
its own over them, which never waits for another device. Along `data`, devices hold
different rows of the data: the compiler adds up their parts of the log density, in loops
that all devices run in step. Along `particle` (or `chain`, for an engine whose chains learn
from each other), devices hold parts of the state of one replica: the compiler moves between
them what a step needs, as an ensemble is coupled.

Replicas keep their numbers and so their keys, wherever they run.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from ..core._convert import whole
from ..core._engine import AbstractProcedure
from ..core._stream import rows_at_hand
from ._distributed import require_alike

AXES = ("chain", "data", "particle")


def mesh(
    *,
    chain: int | None = None,
    data: int | None = None,
    particle: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Arrange devices for `infer(..., mesh=...)`.

    On CPU one process has one device unless it asks for more, and it can ask only before
    JAX has started. This function asks, so call it before anything is computed; making a
    key or conditioning a model counts.

    Args:
        chain: Devices over which chains are divided; with nothing given, all there are.
        data: Devices over which the rows of the data are divided.
        particle: Devices over which the particles of one ensemble are divided.
        devices: Which devices, as many as the product; by default the first of
            `jax.devices()`.

    Returns:
        A mesh with the axes `"chain"`, `"data"` and `"particle"`.

    Raises:
        ValueError: If a size is less than 1 or there are too few devices.
    """
    sizes = tuple(
        whole(name, least=1, optional=True)(size)
        for name, size in zip(AXES, (chain, data, particle))
    )
    listed = [] if devices is None else devices
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise ValueError(f"`devices` must be devices, as of `jax.devices()`; got {devices!r}.")
    if sizes == (None, None, None):
        sizes = (len(jax.devices() if devices is None else devices), 1, 1)
    shape = tuple(1 if size is None else size for size in sizes)
    count = math.prod(shape)
    devices = _first_devices(count) if devices is None else list(devices)
    if len(devices) != count:
        raise ValueError(f"`devices` must hold {count} devices; got {len(devices)}.")
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def _first_devices(count: int) -> list[Any]:
    if count > 1 and not jax.distributed.is_initialized():
        _ask_for_cpu_devices(count)
    devices = jax.devices()
    if len(devices) < count:
        raise ValueError(
            f"The mesh needs {count} devices; JAX has {len(devices)} "
            f"({devices[0].platform}). On CPU, call `whence.mesh` before anything else is "
            f"computed, a key included, or set JAX_NUM_CPU_DEVICES={count} in the environment."
        )
    return devices[:count]


def _ask_for_cpu_devices(count: int) -> None:
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices >= count:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # JAX has started; there may be enough devices all the same


class Layout(NamedTuple):
    """A mesh, and what of one target and engine is divided over it.

    Attributes:
        mesh: With all of `AXES`.
        replicas: Replicas of the engine.
        rows: First axis of leaves of the target that lie along `data`; None for none.
        ensemble: For an engine of one replica, the axis along which leaves of its state
            lie, and their size there; None for none.
        sites: Whether each process has data rows of its own.
    """

    mesh: Mesh
    replicas: int
    rows: int | None
    ensemble: tuple[str, int] | None
    sites: bool = False

    @property
    def lanes(self) -> int:
        """Replicas on one device."""
        return 1 if self.replicas == 1 else self.replicas // self.mesh.shape["chain"]

    @property
    def platform(self) -> str:
        """`"cpu"`, `"gpu"` or `"tpu"`."""
        return self.mesh.devices.flat[0].platform

    def described(self, vectorised: bool) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"axes": dict(self.mesh.shape), "vectorised": vectorised}

    @property
    def apart(self) -> bool:
        """Whether each device loops by itself.

        Not if the compiler divides anything: it may put into the loop an exchange in which
        all devices of the mesh take part, and one whose chains are done would not.
        """
        chains = self.mesh.shape["chain"] == self.mesh.size > 1
        return self.sites or (self.replicas > 1 and chains)

    def of(self, *names: str | None) -> NamedSharding:
        """Return the sharding of an array by names of mesh axes for its first axes."""
        return NamedSharding(self.mesh, P(*names))

    def of_member(self, leaf) -> NamedSharding:
        """Return the sharding of a leaf of the state of one replica."""
        axis, size = self.ensemble or ("", -1)
        return self.of(axis) if leaf.shape[:1] == (size,) else self.of()

    def of_state(self, leaf) -> NamedSharding:
        """Return the sharding of a leaf of the states of all replicas."""
        if self.replicas > 1:
            return self.of("chain")
        return self.of(None, *self.of_member(leaf[0]).spec)


def plan_layout(mesh: Mesh, target: Any, engine: AbstractProcedure) -> Layout:
    """Return what of `target` and `engine` is divided over `mesh`."""
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be one that `whence.mesh` makes; got {mesh!r}.")
    mesh = _with_all_axes(mesh)
    _check_processes(mesh)
    replicas = engine.schedule.replicas
    chains, data, particles = (mesh.shape[name] for name in AXES)
    sites, ensemble = engine.schedule.sites, None
    if sites:
        if data != sites or mesh.size != sites:
            raise ValueError(
                f"`mesh` must be `whence.mesh(data={sites})` here, one device of each of the "
                f"{sites} processes that have rows of their own; got {dict(mesh.shape)}."
            )
        require_alike(target)
        return Layout(mesh, replicas, None, None, sites=True)
    if chains > 1 and replicas > 1:
        _check_divides("chain", chains, replicas, f"the {replicas} chains of {engine.name}")
    elif chains > 1:
        ensemble = _ensemble("chain", chains, engine)
    if particles > 1:
        if ensemble or replicas > 1:
            raise ValueError(
                f"`mesh` must not have an axis 'particle' here: {engine.name} runs chains; "
                "use 'chain'."
            )
        ensemble = _ensemble("particle", particles, engine)
    return Layout(mesh, replicas, _rows(data, target) if data > 1 else None, ensemble)


def _with_all_axes(mesh: Mesh) -> Mesh:
    wrong = [n for n in mesh.axis_names if n not in AXES]
    if wrong:
        raise ValueError(f"Axes of `mesh` must be among {AXES}; got {wrong[0]!r}.")
    present = [name for name in AXES if name in mesh.axis_names]
    devices = np.transpose(mesh.devices, [mesh.axis_names.index(n) for n in present])
    shape = tuple(dict(mesh.shape).get(name, 1) for name in AXES)
    return Mesh(devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _check_processes(mesh: Mesh) -> None:
    missing = set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}
    if missing:
        raise ValueError(
            f"`mesh` must hold devices of every process, because all run the same program; it "
            f"has none of process {min(missing)}. Make it larger, or start fewer processes."
        )


def _check_divides(axis: str, size: int, count: int, what: str) -> None:
    if count % size:
        raise ValueError(f"`mesh` has {axis}={size}, which must divide {what}.")


def _ensemble(axis: str, size: int, engine: AbstractProcedure) -> tuple[str, int]:
    ensemble = engine.schedule.ensemble
    if ensemble is None or ensemble[0] != axis:
        raise ValueError(
            f"`mesh` must not have an axis {axis!r} here: {engine.name} has no {axis}s to "
            "divide."
        )
    count = ensemble[1]
    _check_divides(axis, size, count, f"the {count} {axis}s of {engine.name}")
    return axis, count


def _rows(size: int, target: Any) -> int:
    rows = rows_at_hand(target)
    if rows is None:
        raise ValueError(
            "`mesh` must not have an axis 'data' here: it needs a target whose likelihood is a "
            f"product over data rows, and {type(target).__name__} says of none."
        )
    _check_divides("data", size, rows, f"the {rows} rows of the data; leave out {rows % size}")
    return rows
