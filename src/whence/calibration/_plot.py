"""The picture of a calibration: differences of ECDFs in a band."""

from typing import Any

import numpy as np

_MOST_PANELS = 16
_COLUMNS = 4


def plot_ecdf_difference(
    counts: dict[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    size: int,
    axes: Any = None,
) -> Any:
    """Draw ECDFs minus the uniform one, a panel for each name, of counts `(element, L)`."""
    names = list(counts)
    if axes is None:
        names = names[:_MOST_PANELS]
        axes = _new_axes(len(names))
    panels = np.ravel(axes)
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
    return panels[0].figure


def _new_axes(count: int) -> Any:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.7 * columns, 2.2 * rows + 0.3), layout="constrained")
    figure.supxlabel("rank, as a fraction", fontsize=9)
    figure.supylabel("ECDF minus uniform", fontsize=9)
    return figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
