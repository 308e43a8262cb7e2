"""Two engines on one model, calibrated: the picture of the page "Can I trust it?".

A straight line is fitted to twenty points, a hundred times over, to data simulated from the
model: by NUTS, and by variational inference with a mean field, which cannot say that
intercept and slope are correlated.

    python examples/calibration.py [FOLDER]

writes the picture `sbc.png` there (default: here).
"""

import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import numpyro.distributions as dist

import whence as wh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


class Line(wh.Model):
    """A straight line with noise."""

    a: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    b: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    sigma: jax.Array = wh.latent(dist.HalfNormal(0.5))

    def likelihood(self, x):
        """Return the distribution of the points at `x`."""
        return dist.Normal(self.a + self.b * x, self.sigma)


def main(folder: Path) -> None:
    """Calibrate both engines, print what was found, and draw it."""
    target = wh.condition(Line(), np.ones(20), np.linspace(1.0, 2.0, 20))
    engines = {
        "NUTS": wh.NUTS(chains=1),
        "BBVI, mean field": wh.BBVI(steps=2_000),
    }
    figure, axes = plt.subplots(
        2, 4, figsize=(9.5, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for row, (name, engine) in zip(axes, engines.items()):
        calibration = wh.sbc(target, engine, key=jax.random.key(0), simulations=100)
        print(calibration, end="\n\n")
        calibration.plot(axes=row)
        row[0].set_ylabel(f"{name}\nECDF minus uniform", fontsize=9)
    figure.supxlabel("rank of the truth among posterior draws, as a fraction", fontsize=9)
    figure.savefig(folder / "sbc.png", dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
