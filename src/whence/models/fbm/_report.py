"""How good the Markov approximation is, in words and numbers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from . import _forms as forms, _tables as tables

GOOD = 0.05  # relative error of a variance below which nobody is warned


class ErrorReport(eqx.Module):
    """What the approximation of one fractional Brownian motion gets wrong; print it.

    Attributes:
        hurst: H.
        path_error: Root of the mean squared error of the path over the horizon with the same
            driver, relative to that of the process. Large without harm where the law fits.
        misfit: Largest relative error of a variance: of increments at all lags from
            `resolution` to twice the horizon (kind II: that end there, and from the start).
        worst_lag: Where that is, in units of time.
        resolution: The shortest lag that is matched, in units of time.
        brownian_lag: Paths are Brownian at lags far below this one, in units of time.
        diffusivity: Standard deviation of what the driver adds in unit time there.
        condition: Condition number of the equations of least path error.
        horizon: T, in units of time.
    """

    hurst: float
    path_error: float
    misfit: float
    worst_lag: float
    resolution: float
    brownian_lag: float
    diffusivity: float
    condition: float
    horizon: float

    @property
    def good(self) -> bool:
        """Whether every variance is right to 5%."""
        return self.misfit <= GOOD

    def __str__(self) -> str:
        poor = "This is a poor approximation: variances of increments are right only"
        verdict = "Variances of increments are right" if self.good else poor
        lines = [
            f"H = {self.hurst:.3g} over {self.horizon:.4g} units of time.",
            f"{verdict} to {100 * self.misfit:.2g}% at lags from {self.resolution:.3g} to "
            f"{tables.REACH * self.horizon:.4g} (worst at {self.worst_lag:.3g}).",
            f"Below lag {self.brownian_lag:.3g} paths are Brownian, with standard deviation "
            f"{self.diffusivity:.3g} per root of time.",
            f"Error of the path given its driver: {100 * self.path_error:.3g}%; condition "
            f"number {self.condition:.1e}.",
        ]
        if not self.good:
            lines.append("Remedy: more `nodes`, a wider `span`, or `weights='law'`.")
        return "\n".join(lines)


def judge(noise: Any, hurst: float, horizon: float, count: int) -> ErrorReport:
    """Return the report of a noise at one H, for a horizon and a number of times."""
    kind, (x, resolution) = noise.kind, noise._plan(count)
    weights, nodes = tables.table(kind, x, noise.weights, resolution)(hurst), np.asarray(x)
    error, lags = tables.misfit(kind, nodes, weights, hurst, resolution)
    matrix = forms.a_matrix(kind, nodes)
    scale = 1 / np.sqrt(np.diag(matrix))
    amplitude = float(noise._amplitude(jnp.asarray(hurst)))
    worst = int(np.argmax(np.abs(error)))
    return ErrorReport(
        hurst=hurst,
        path_error=forms.path_error(kind, nodes, weights, hurst),
        misfit=float(np.expm1(np.abs(error[worst]))),
        worst_lag=float(lags[worst] * horizon),
        resolution=resolution * horizon,
        brownian_lag=horizon / float(nodes.max()),
        diffusivity=float(amplitude * weights.sum() * horizon ** (hurst - 0.5)),
        condition=float(np.linalg.cond(matrix * np.outer(scale, scale))),
        horizon=horizon,
    )
