"""The picture of a calibration: differences of ECDFs in a band."""

from typing import Any

import numpy as np

_MOST_PANELS = 16
_COLUMNS = 4


def plot_ecdf_difference(
    counts: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray, size: int
) -> Any:
    """Draw ECDFs of ranks minus the ECDF of uniform ranks, one panel for each variable.

    Args:
        counts: Numbers of ranks below `1..L` by variable, `(element, L)`.
        low: Lowest counts in the band, `(L,)`.
        high: Highest counts in the band, `(L,)`.
        size: Number of ranks.
    """
    from matplotlib.figure import Figure

    names = list(counts)[:_MOST_PANELS]
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    uniform = np.arange(1, len(low) + 1) / (len(low) + 1)
    at = np.concatenate([[0.0], uniform, [1.0]])
    difference = lambda count: np.concatenate([[0.0], count / size - uniform, [0.0]])
    for panel, name in zip(panels, names):
        panel.fill_between(at, difference(low), difference(high), color="0.88", linewidth=0)
        panel.axhline(0.0, color="0.6", linewidth=0.6)
        for count in counts[name]:
            is_inside = np.all((count >= low) & (count <= high))
            color = "tab:blue" if is_inside else "tab:red"
            panel.plot(at, difference(count), color=color, linewidth=1.0, alpha=0.9)
        panel.set_title(name, fontsize=10)
        panel.tick_params(labelsize=8)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("rank of the truth among draws, as a fraction", fontsize=9)
    figure.supylabel("ECDF minus uniform", fontsize=9)
    return figure
