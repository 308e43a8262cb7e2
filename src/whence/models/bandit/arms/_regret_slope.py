"""What regret must grow by, however clever the policy: lower bounds for Gaussian arms."""

import numpy as np

from ....core._convert import flag
from .._checks import Numbers, require_finite, require_positive


def regret_slope(
    means: Numbers, variances: Numbers, *, known_variances: bool = False
) -> np.ndarray | float:
    r"""Return the least possible limit of regret over the logarithm of the round.

    It holds on one instance, of Gaussian arms, for every policy whose regret grows slower
    than any power on all instances. An arm that is worse by a gap D, with variance V, must
    be pulled so often that it is told from a better one: at least `2 V / D^2` times the
    logarithm of the round if variances are known, and `2 / log(1 + D^2 / V)` times if not,
    since then the arm could also be a better one with a larger variance. The slope is the sum
    of these, times D.

    `CHKUCB` and `HondaTakemura` with `a < 0` reach the slope for unknown variances. How soon
    is another matter: up to some thousand rounds other policies may have less regret.

    Args:
        means: Mean reward of each arm, axis 0 for the arms.
        variances: Variances of the rewards, of the same shape, or one for all.
        known_variances: Whether the policy may know the variances.

    Returns:
        The slope, in units of the reward, one for each instance along further axes.

    Raises:
        ValueError: If shapes do not match, or a variance is not positive.

    References:
        Lai and Robbins (1985), doi:10.1016/0196-8858(85)90002-8.
        Burnetas and Katehakis (1996), doi:10.1006/aama.1996.0007.
        Cowan, Honda and Katehakis (2018), "Normal bandits of unknown means and variances",
        Journal of Machine Learning Research 18(154).
    """
    flag("known_variances")(known_variances)
    require_finite("means", means)
    require_positive("variances", variances)
    mean, variance = np.asarray(means, float), np.asarray(variances, float)
    if mean.size == 0 or mean.ndim < 1 or variance.shape not in ((), mean.shape):
        raise ValueError(
            "`means` must have shape (arm, ...), and `variances` the same or none; got "
            f"{mean.shape} and {variance.shape}."
        )
    gap = mean.max(axis=0) - mean
    pulled = gap > 0  # arms as good as the best cost nothing
    safe = np.where(pulled, gap, 1.0)
    each = 2 * variance / safe if known_variances else 2 * safe / np.log1p(safe**2 / variance)
    total = np.where(pulled, each, 0.0).sum(axis=0)
    return total if total.ndim else float(total)
