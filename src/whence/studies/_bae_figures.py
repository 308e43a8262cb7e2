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

    blank, models = np.zeros_like(originals), scores.values()
    names = ["held out", *scores]
    shown = {
        "reconstructions of held-out images": [originals, *(m.reconstructed for m in models)],
        "new images": [blank, *(m.generated for m in models)],
    }
    figure = Figure(figsize=(13, 0.42 * len(names) + 0.4), layout="constrained")
    for ax, (title, rows) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        framed = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1)))
        ax.imshow(np.block([list(row) for row in framed]), cmap="gray_r", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
        ax.set_xticks([])
        middles = (np.arange(len(names)) + 0.5) * framed.shape[2]
        ax.set_yticks(middles, names if rows[0] is originals else [], fontsize=9)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    figure.savefig(path, dpi=130)
