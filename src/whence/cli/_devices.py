"""`--mesh` and `--distributed`: devices, before JAX starts."""

import math
from typing import Any

from ..running import distributed, mesh
from ._errors import UsageProblem


def prepare_devices(
    text: str | None,
    joined: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> Any:
    """Join the other processes and arrange devices; call it before anything else."""
    sizes = parse_mesh(text) if text else None
    given = [coordinator, processes, process]
    if not joined:
        if any(value is not None for value in given):
            raise UsageProblem(
                "--coordinator, --processes and --process go with --distributed."
            )
        return None if sizes is None else _mesh(sizes)
    if sizes is None:
        raise UsageProblem("--distributed needs --mesh: what the devices are to divide.")
    devices = None
    if processes is not None:
        devices, rest = divmod(math.prod(sizes.values()), max(processes, 1))
        if rest or not devices:
            raise UsageProblem(f"--processes {processes} must divide the mesh {text}.")
    distributed(coordinator, processes, process, devices=devices)
    return _mesh(sizes)


def _mesh(sizes: dict[str, int]) -> Any:
    return mesh(
        chain=sizes.get("chain"), data=sizes.get("data"), particle=sizes.get("particle")
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes that `chain=4,data=2` stands for."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if name not in ("chain", "data", "particle") or not equals or not size.isdecimal():
            raise UsageProblem(
                "--mesh takes sizes of the axes chain, data and particle, for example "
                f"chain=4,data=2; got {text!r}."
            )
        sizes[name] = int(size)
    return sizes
