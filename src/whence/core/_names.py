"""Names that a file, xarray and ArviZ can hold; asked before a run, not after it."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

SAMPLE_DIMS = ("chain", "draw")
_LONGEST = 200  # bytes: a name is that of a file, in a zarr folder
_ZARR = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")  # files beside variables


def exported(name: str) -> str:
    """Return a variable's name in files and in ArviZ, where slashes separate groups."""
    return name.replace("/", ".").replace("\\", ".").replace("\0", ".")


def is_text(name: str) -> bool:
    """Whether a file can hold a text: surrogates have no code in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_variable_names(
    groups: Iterable[Iterable[Any]], dims: Mapping[str, Iterable[Any]]
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
        names = _distinct("variables", group)
        for name in group:
            variable, is_axis, number = name.rpartition("_dim_")
            if is_axis and number.isdigit() and variable in group:
                raise ValueError(
                    f"Names of variables must not be that of an axis; got {name!r}, which is "
                    f"what files call axis {number} of {variable!r}."
                )
        own = {variable: list(dims.get(variable, ())) for variable in group}
        for variable, axes in own.items():
            for axis in axes:
                is_variable = isinstance(axis, str) and _written(axis) in names
                if is_variable or axis in SAMPLE_DIMS:
                    what = "a variable" if is_variable else "an axis of a posterior"
                    raise ValueError(
                        f"`dims` of {variable!r} must not be the name of {what}; got {axis!r}. "
                        f"Name the axis (or plate) otherwise, as {axis + '_index'!r}."
                    )
        _distinct("axes", [axis for axes in own.values() for axis in axes])


def _distinct(kind: str, names: Iterable[Any]) -> dict[str, str]:
    """Return names by what files call them; raise if there are none or too few of these."""
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip("./ ") or name in SAMPLE_DIMS:
            raise ValueError(
                f"Names of {kind} must be text other than 'chain' and 'draw', which name the "
                f"axes of a posterior; got {name!r}."
            )
        if not is_text(name) or name in _ZARR:
            raise ValueError(
                f"Names of {kind} must be text that UTF-8 can hold, and none of "
                f"{', '.join(_ZARR)}, which are files of zarr; got {name!r}."
            )
        if len(name.encode()) > _LONGEST:
            raise ValueError(
                f"Names of {kind} must have at most {_LONGEST} bytes; got {name!r}."
            )
        other = seen.setdefault(_written(name), name)
        if other != name:
            raise ValueError(
                f"Names of {kind} must differ when slashes are written as '.' and accents as "
                f"parts of their letters; got {name!r} and {other!r}."
            )
    return seen


def _written(name: str) -> str:
    """Return what a name is to files: netCDF compares composed letters."""
    return unicodedata.normalize("NFC", exported(name))
