"""Estimated moments against the truth or against reference draws, in standard errors.

A Monte Carlo estimate is right if it lies within a few of its own standard errors, and that
standard error is itself worth something only if the effective sample size is not tiny.
Both are therefore always asked together: `Comparison.check` fails on either.

With `m` independent comparisons a correct sampler exceeds `z` somewhere with probability
about `m * 2 * Phi(-z)`: for `m = 100`, 0.6% at 4, 0.07% at 4.5 and 0.006% at 5. The
standard errors are estimates, so the tails are somewhat heavier than that.

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), "Rank-normalization, folding,
    and localization", doi:10.1214/20-BA1221, for effective sample sizes and R-hat.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike

from ..diagnostics._convergence import rhat
from ..diagnostics._mcse import mcse, mcse_weighted
from ..diagnostics._weights import normalise, weight_ess

Array = np.ndarray


class Estimate(NamedTuple):
    """Moments of one scalar variable with their Monte Carlo standard errors."""

    mean: float
    sd: float
    mcse_mean: float
    mcse_sd: float
    ess: float
    rhat: float


class Row(NamedTuple):
    """One scalar variable compared; `z` are differences in combined standard errors."""

    name: str
    mean: float
    reference_mean: float
    z_mean: float
    sd: float
    reference_sd: float
    z_sd: float
    rhat: float
    ess: float


class Comparison(NamedTuple):
    """A table of compared variables.

    Attributes:
        rows: One for each scalar variable, named as in Stan: `beta[1]`.
    """

    rows: tuple[Row, ...]

    @property
    def max_z_mean(self) -> float:
        """Largest absolute `z` of a mean; infinite if one is not finite."""
        return _worst(row.z_mean for row in self.rows)

    @property
    def max_z_sd(self) -> float:
        """Largest absolute `z` of a standard deviation; infinite if one is not finite."""
        return _worst(row.z_sd for row in self.rows)

    @property
    def max_rhat(self) -> float:
        """Largest R-hat; NaN if there was none (weighted draws)."""
        return max((row.rhat for row in self.rows), key=lambda r: (r == r, r))

    @property
    def min_ess(self) -> float:
        """Smallest effective sample size (of means; zero if one is not finite)."""
        return min(row.ess if np.isfinite(row.ess) else 0.0 for row in self.rows)

    def check(
        self, *, max_z: float = 4.5, min_ess: float = 100.0, max_rhat: float = 1.05
    ) -> None:
        """Raise `AssertionError` naming what is off, if anything is.

        Args:
            max_z: Most standard errors that a mean or standard deviation may be off.
            min_ess: Least effective sample size of every variable.
            max_rhat: Largest R-hat; not asked of weighted draws, which have none.

        Raises:
            AssertionError: With one sentence for each variable that fails, and the table.
        """
        faults = []
        for row in self.rows:
            if not row.ess >= min_ess:
                faults.append(f"{row.name}: effective sample size {row.ess:.0f} < {min_ess:g}.")
            if row.rhat > max_rhat:
                faults.append(f"{row.name}: R-hat {row.rhat:.3f} > {max_rhat:g}.")
            for what, got, wanted, z in (
                ("mean", row.mean, row.reference_mean, row.z_mean),
                ("sd", row.sd, row.reference_sd, row.z_sd),
            ):
                if not abs(z) <= max_z:
                    faults.append(
                        f"{row.name}: {what} {got:.5g} should be {wanted:.5g}; "
                        f"off by {z:+.1f} standard errors (allowed {max_z:g})."
                    )
        if faults:
            raise AssertionError("\n".join(faults) + f"\n{self}")

    def __str__(self) -> str:
        """A table for people."""
        head = ("name", "mean", "reference", "z", "sd", "reference", "z", "R-hat", "ESS")
        lines = ["{:>16}{:>11}{:>11}{:>7}{:>11}{:>11}{:>7}{:>8}{:>8}".format(*head)]
        for r in self.rows:
            lines.append(
                f"{r.name:>16}{r.mean:>11.4g}{r.reference_mean:>11.4g}{r.z_mean:>7.2f}"
                f"{r.sd:>11.4g}{r.reference_sd:>11.4g}{r.z_sd:>7.2f}{r.rhat:>8.3f}"
                f"{r.ess:>8.0f}"
            )
        return "\n".join(lines)


def scalars(variables: Mapping[str, Any], *, batch_ndim: int) -> dict[str, Array]:
    """Split arrays into scalar variables named as in Stan, `beta[1]`, `w[2,3]`.

    Returns:
        float64 arrays of shape `batch` by scalar name, indices counted from 1.
    """
    result = {}
    for name, value in variables.items():
        array = np.asarray(value, np.float64)
        for index in np.ndindex(array.shape[batch_ndim:]):
            label = f"[{','.join(str(i + 1) for i in index)}]" if index else ""
            result[name + label] = array[(..., *index)]
    return result


def estimate(draws: Array, log_weights: Array | None = None) -> Estimate:
    """Mean and standard deviation of a scalar variable, and how well they are known.

    The standard errors of unweighted draws rest on the effective sample sizes of the
    variable and of its squared deviation. Weighted ones are those of self-normalised
    importance sampling from independent particles; resampling and moving make particles
    dependent, so for a particle method they are a lower bound. There is no R-hat of a single
    chain or of weighted draws.
    """
    values = draws[..., None]
    if log_weights is not None:
        weights = normalise(log_weights).reshape(draws.shape)
        mean, size = (weights * draws).sum(), weight_ess(log_weights)
        sd = np.sqrt((weights * (draws - mean) ** 2).sum())
        error = mcse_weighted(values, weights)
    elif not np.isfinite(draws).all():
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0.0, np.nan)
    elif np.ptp(draws) == 0:  # a chain that never moved knows nothing
        return Estimate(float(draws.flat[0]), 0.0, 0.0, 0.0, 0.0, np.nan)
    else:
        mean, sd, error = draws.mean(), draws.std(ddof=1), mcse(values)
        size = (sd / error.mean[0]) ** 2
    single = log_weights is not None or len(draws) == 1
    between = np.nan if single else float(rhat(values)[0])
    errors = float(error.mean[0]), float(error.sd[0])
    return Estimate(float(mean), float(sd), *errors, float(size), between)


def compare_moments(
    draws: Mapping[str, ArrayLike],
    truth: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    log_weights: ArrayLike | None = None,
    bias: float = 0.0,
) -> Comparison:
    """Compare draws with exact moments.

    Args:
        draws: Arrays of shape `(chain, draw, ...)` by name; extra names are ignored.
        truth: Exact mean and standard deviation, arrays of the variable's shape, by name.
        log_weights: Log weights, shape `(chain, draw)`, or None if all are equal.
        bias: Systematic error to forgive, in units of the true standard deviation, for
            engines that are approximate by design; 0 for all others.

    Returns:
        The table; call `check` on it to assert.

    Raises:
        ValueError: If a name of `truth` is not in `draws`, or a shape does not fit.
    """
    weights = None if log_weights is None else np.asarray(log_weights, np.float64)
    means = scalars({k: v[0] for k, v in truth.items()}, batch_ndim=0)
    sds = scalars({k: v[1] for k, v in truth.items()}, batch_ndim=0)
    found = scalars({k: draws[k] for k in truth if k in draws}, batch_ndim=2)
    _require_names(found, means)
    rows = []
    for name, mean in means.items():
        got = estimate(found[name], weights)
        exact = Estimate(float(mean), float(sds[name]), 0.0, 0.0, np.inf, 1.0)
        rows.append(_row(name, got, exact, slack=bias * exact.sd))
    return Comparison(tuple(rows))


def compare_reference(
    draws: Mapping[str, ArrayLike],
    reference: Mapping[str, ArrayLike | Estimate],
    *,
    log_weights: ArrayLike | None = None,
) -> Comparison:
    """Compare draws with reference draws, or with estimates made from them.

    Args:
        draws: Arrays of shape `(chain, draw, ...)` by name; extra names are ignored.
        reference: By scalar name (`beta[1]`): reference draws of shape `(chain, draw)`, or
            an `Estimate`.
        log_weights: Log weights of `draws`, shape `(chain, draw)`, or None.

    Returns:
        The table, with the standard errors of both sides combined.

    Raises:
        ValueError: If a name of `reference` is not in `draws`.
    """
    weights = None if log_weights is None else np.asarray(log_weights, np.float64)
    found = scalars(draws, batch_ndim=2)
    _require_names(found, reference)
    rows = []
    for name, entry in reference.items():
        if not isinstance(entry, Estimate):
            entry = estimate(np.asarray(entry, np.float64))
        rows.append(_row(name, estimate(found[name], weights), entry))
    return Comparison(tuple(rows))


def _require_names(found: Mapping, wanted: Mapping) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"`draws` must contain {missing}; got {sorted(found)}.")


def _row(name: str, got: Estimate, reference: Estimate, slack: float = 0.0) -> Row:
    def z(difference: float, *errors: float) -> float:
        excess = np.sign(difference) * np.maximum(abs(difference) - slack, 0.0)
        scale = math.hypot(*errors)
        if excess == 0.0:
            return 0.0
        # Draws that never move claim no error; unless they are right that is a fault.
        return float(excess / scale) if scale != 0.0 else float(np.inf * excess)

    return Row(
        name,
        got.mean,
        reference.mean,
        z(got.mean - reference.mean, got.mcse_mean, reference.mcse_mean),
        got.sd,
        reference.sd,
        z(got.sd - reference.sd, got.mcse_sd, reference.mcse_sd),
        got.rhat,
        got.ess,
    )


def _worst(values: Any) -> float:
    return max(abs(v) if np.isfinite(v) else np.inf for v in values)
