"""Summary tables: a pandas DataFrame that shows as many digits as the draws support.

Imported only when a table is asked for: pandas takes a third of a second.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from arviz_base import rcParams

from ._data import Draws
from ._diagnose import CHAINS
from ._require import require_probability
from ._summary import INTERVALS, summarise


def summary_table(
    variables: Mapping[str, np.ndarray],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    log_weights: np.ndarray | None = None,
    method: str = "smc",
    families: np.ndarray | None = None,
    kind: str = "all",
    ci_prob: float | None = None,
    ci_kind: str | None = None,
    round_to: int | str | None = "auto",
) -> pd.DataFrame:
    """Return the table that `arviz.summary` returns, one row per element.

    Differences: labels follow each variable's own order of axes; an element that is
    constant or not finite has NaN for ESS, R-hat and errors, never a reassuring number;
    and draws may have weights.

    Args:
        variables: By name, each `(chain, draw, ...)`.
        dims: Names of the axes of a variable, by variable, without chain and draw.
        coords: Labels along named axes.
        log_weights: In nats, `(chain, draw)`; None if all draws count the same. With
            weights the ESS is `1 / sum(w**2)`, the errors are those of self-normalised
            importance sampling, and there is no R-hat.
        method: What draws with weights are, as for `diagnose`. Those of chains are not taken
            for independent: the ESS is the one that the error of the mean implies.
        families: Number of the ancestor of each draw that is a weighted particle,
            `(chain, draw)`; the errors see what relatives have in common.
        kind: `"stats"`, `"diagnostics"`, or `"all"`: both.
        ci_prob: Probability inside the interval; by default ArviZ's setting.
        ci_kind: `"eti"` or `"hdi"`; by default ArviZ's setting.
        round_to: `"auto"` keeps all digits and shows those that the Monte Carlo error
            supports; an integer rounds to decimals, `"3g"` to significant digits, `"none"`
            not at all, and None as ArviZ's setting says.

    Raises:
        ValueError: If there are no variables, or `ci_prob` or `ci_kind` is out of range.
    """
    prob = rcParams["stats.ci_prob"] if ci_prob is None else ci_prob
    require_probability("ci_prob", prob)
    ci_kind = rcParams["stats.ci_kind"] if ci_kind is None else ci_kind
    if not isinstance(round_to, int | np.integer | str | None):
        raise ValueError(
            f"`round_to` must be a whole number, a word or None; got {round_to!r}."
        )
    if ci_kind not in INTERVALS:
        raise ValueError(f"`ci_kind` must be one of {', '.join(INTERVALS)}; got {ci_kind!r}.")
    draws = Draws(variables, {}, dims=dims, coords=coords)
    labels, parts = [], []
    for name, shape, values in draws.elements():
        labels += [draws.name(name, shape, index) for index in range(values.shape[2])]
        parts.append(
            summarise(
                values,
                log_weights,
                chains=method in CHAINS,
                kind=kind,
                prob=prob,
                interval=ci_kind,
                families=families,
                tail=rcParams["stats.ci_prob"],  # whatever `ci_prob` is, as in ArviZ
            )
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table = pd.DataFrame(columns, index=pd.Index(labels))
    setting = rcParams["stats.round_to"]
    if round_to == "auto":
        return SummaryTable(table, shown=_shown(table, setting))
    digits = setting if round_to is None else round_to
    return table.map(lambda x: _rounded(x, digits))


class SummaryTable(pd.DataFrame):
    """A DataFrame of unrounded numbers that is shown rounded.

    Parts of it (rows, columns, the transpose) are shown so too. Values that have been
    changed are shown as pandas shows them.
    """

    _metadata = ["_original", "_shown"]

    def __init__(self, *args: Any, shown: pd.DataFrame | None = None, **kwargs: Any):
        """Take the arguments of a DataFrame, and how its cells are to be shown."""
        super().__init__(*args, **kwargs)
        self._shown = shown
        self._original = None if shown is None else pd.DataFrame(self)

    @property
    def _constructor(self):
        return SummaryTable

    def as_shown(self) -> pd.DataFrame:
        """Return a plain table of what is shown: text where the digits are known."""
        plain = pd.DataFrame(self)
        for original, shown in _both_ways(self._original, self._shown):
            if _is_part(plain, original):
                original = original.loc[plain.index, plain.columns]
                same = (plain == original) | (plain.isna() & original.isna())
                shown = shown.loc[plain.index, plain.columns]
                return plain.astype(object).where(~same, shown)
        return plain

    def __repr__(self) -> str:
        """Return the table as shown, with as many rows as pandas shows."""
        return self.as_shown().to_string(max_rows=pd.get_option("display.max_rows"))

    def _repr_html_(self) -> str:
        return self.as_shown().to_html(max_rows=pd.get_option("display.max_rows"))

    def to_string(self, *args: Any, **kwargs: Any) -> Any:
        """Return the table as shown; see pandas."""
        return self.as_shown().to_string(*args, **kwargs)

    def to_html(self, *args: Any, **kwargs: Any) -> Any:
        """Return the table as shown; see pandas."""
        return self.as_shown().to_html(*args, **kwargs)

    def to_latex(self, *args: Any, **kwargs: Any) -> Any:
        """Return the table as shown; see pandas."""
        return self.as_shown().to_latex(*args, **{"escape": True, **kwargs})


def _both_ways(original, shown):
    return [] if shown is None else [(original, shown), (original.T, shown.T)]


def _is_part(table: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return (
        whole.index.is_unique
        and whole.columns.is_unique
        and bool(table.index.isin(whole.index).all())
        and bool(table.columns.isin(whole.columns).all())
    )


def _shown(table: pd.DataFrame, digits: int | str) -> pd.DataFrame:
    """Return the cells as text: the rules of `arviz.summary` with `round_to="auto"`."""
    columns = {}
    for name in table.columns:
        error = table.get(f"mcse_{name}")
        if str(name).startswith("ess_"):
            columns[name] = [_finite(x, lambda x: str(math.floor(x))) for x in table[name]]
        elif name == "r_hat":
            columns[name] = [_finite(x, lambda x: f"{x:.2f}") for x in table[name]]
        elif error is None:
            columns[name] = [f"{_rounded(x, digits):g}" for x in table[name]]
        else:
            columns[name] = [_supported(x, e, digits) for x, e in zip(table[name], error)]
    return pd.DataFrame(columns, index=table.index, dtype=object)


def _finite(x: float, show) -> str:
    return show(x) if math.isfinite(x) else str(x)


def _supported(x: float, error: float, digits: int | str) -> str:
    """Show a number to the decimal that twice its Monte Carlo error reaches."""
    if not (math.isfinite(x) and math.isfinite(error)):
        return f"{_rounded(x, digits):g}"
    decimals = -math.floor(math.log10(2 * error)) if error else 0
    return f"{round(x, decimals):g}" if decimals >= 0 else f"{x:.2e}"


def _rounded(x: float, digits: int | str) -> float:
    """Round to decimals (an integer) or significant digits (`"2g"`)."""
    if digits in ("none", "None") or not math.isfinite(x) or x == 0:
        return x
    if isinstance(digits, str):
        digits = int(digits.removesuffix("g")) - math.floor(math.log10(abs(x))) - 1
    return round(x, digits)
