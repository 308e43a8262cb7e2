"""Pictures of a study of autoencoders: images, their reconstructions, and new ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def draw_images(path: Path, originals: np.ndarray, scores: Mapping[str, Any]) -> None:
    """Draw a row of reconstructions and a row of new images for each model.

    Args:
        path: File to write.
        originals: The images that were reconstructed.
        scores: By name, with `reconstructed` and `generated`.
    """
    from matplotlib.figure import Figure

    rows = {"held out": originals}
    for name, found in scores.items():
        rows[name] = np.concatenate([found.reconstructed, found.generated])
    figure = Figure(figsize=(11, 0.42 * len(rows) + 0.4))
    axes = figure.subplots(len(rows), 24, squeeze=False)
    figure.subplots_adjust(0.2, 0.01, 0.995, 1 - 0.35 / (0.42 * len(rows) + 0.4), 0.05, 0.1)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        line[0].text(
            -0.3, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9
        )
    axes[0][0].set_title("reconstructions of held-out images", loc="left", fontsize=9)
    axes[0][12].set_title("new images", loc="left", fontsize=9)
    figure.savefig(path, dpi=130)
