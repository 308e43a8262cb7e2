"""Settings that several families of engines have."""

from ..core._convert import Converter, one_of


def metric_name(*choices: str) -> Converter:
    """Return a converter for `metric`; `"diag"` is taken for `"diagonal"`."""
    return one_of("metric", choices, shortcuts={"diag": "diagonal"})
