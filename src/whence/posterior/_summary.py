"""A posterior's summary table, by our own diagnostics or by ArviZ."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._posterior import Posterior


def summarise(
    posterior: "Posterior",
    var_names: str | Sequence[str] | None,
    own: Mapping[str, Any],
    arviz: Mapping[str, Any],
) -> Any:
    """Return a `DataFrame`; see `Posterior.summary`.

    Args:
        posterior: The draws.
        var_names: Which variables; None for all.
        own: Arguments that we know too.
        arviz: Arguments that ArviZ alone knows.
    """
    from ..diagnostics._summary import KINDS

    names = [var_names] if isinstance(var_names, str) else list(var_names or posterior)
    if arviz or own["kind"] not in KINDS or not set(names) <= set(posterior):
        return _by_arviz(posterior, var_names=var_names, **own, **arviz)
    from ..diagnostics._table import summary_table

    chosen = {name: posterior[name] for name in names}
    weights = posterior.log_weights
    return summary_table(chosen, **posterior._described, log_weights=weights, **own)


def _by_arviz(posterior: "Posterior", *, group: str = "posterior", **kwargs: Any) -> Any:
    from arviz_stats import summary

    dataset = posterior.to_datatree(groups=(group,))[group].to_dataset()
    # ArviZ labels elements wrongly where a variable's axes are not in the Dataset's order.
    return summary(dataset.transpose(*dataset.sizes), **kwargs)
