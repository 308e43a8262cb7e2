"""Names that a file, xarray and ArviZ can hold; asked before a run, not after it."""

from collections.abc import Iterable, Mapping
from typing import Any

SAMPLE_DIMS = ("chain", "draw")
_LONGEST = 200  # bytes: a name is that of a file, in a zarr folder


def exported(name: str) -> str:
    """Return a variable's name in files and in ArviZ, where slashes separate groups."""
    return name.replace("/", ".").replace("\\", ".").replace("\0", ".")


def check_variable_names(
    groups: Iterable[Iterable[Any]], dims: Mapping[str, Iterable[str]]
) -> None:
    """Raise if a posterior with these variables and axes could not be written.

    Args:
        groups: Names of what is written side by side: latents and derived values; observed
            variables; inputs.
        dims: Names of axes, by variable.

    Raises:
        ValueError: Naming the variable, the rule and what to write.
    """
    for group in map(list, groups):
        seen: dict[str, Any] = {}
        for name in group:
            if not isinstance(name, str) or not name.strip("./ ") or name in SAMPLE_DIMS:
                raise ValueError(
                    "Names of variables must be text other than 'chain' and 'draw', which name "
                    f"the axes of a posterior; got {name!r}."
                )
            if len(name.encode()) > _LONGEST:
                raise ValueError(
                    f"Names of variables must have at most {_LONGEST} bytes; got {name!r}."
                )
            if seen.setdefault(exported(name), name) != name:
                raise ValueError(
                    f"Names of variables must differ when slashes are written as '.'; got "
                    f"{name!r} and {seen[exported(name)]!r}."
                )
        for variable in group:
            for axis in dims.get(variable, ()):
                if axis in group:
                    raise ValueError(
                        f"`dims` of {variable!r} must not be the name of a variable; got "
                        f"{axis!r}. Name the axis otherwise, as {axis + '_index'!r}."
                    )
