"""Settings that several families of engines have."""

from ..core._convert import Converter, one_of


def metric_name(*choices: str, kind: type | None = None) -> Converter:
    """Return a converter for `metric`; `"diag"` is taken for `"diagonal"`.

    Args:
        choices: The names.
        kind: A class whose instances are taken, too.
    """
    return one_of("metric", choices, shortcuts={"diag": "diagonal"}, kind=kind)
