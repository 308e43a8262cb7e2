"""Settings that several families of engines have."""

from collections.abc import Mapping
from typing import Any

from ..core._convert import Converter, one_of


def metric_name(*choices: str, kind: type | None = None) -> Converter:
    """Return a converter for `metric`; `"diag"` is taken for `"diagonal"`."""
    return one_of("metric", choices, shortcuts={"diag": "diagonal"}, kind=kind)


def named[T](part: Any, parts: Mapping[str, T]) -> T:
    """Return a part of an engine that is given by its name, or as itself."""
    return parts[part] if isinstance(part, str) else part
