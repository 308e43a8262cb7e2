"""Checks of variational fits: has the optimiser arrived, and does the family fit?"""

from dataclasses import replace

import numpy as np

from ._data import Draws
from ._names import listing, plural
from ._particles import check_khat
from ._report import Finding, held
from ._require import numbers
from ._weights import judged_khat, khat_limit, smoothed, weight_ess

MATERIAL = 0.1  # nats: a change of the ELBO by this is a change of the divergence by it
SIGMAS = 4.0
BLURRED = 0.25  # nats: with a larger standard error a change by 1 nat is within 4 of them
OVERLAP = 0.05  # of the draws are effective at a Renyi divergence (order 2) of 3 nats
CLOSE = 0.1  # of the mean: importance ratios of a fit that is next to exact
SHIFTED = 0.3  # standard deviations between the mean of draws and that by their ratios
WIDENED = 4 / 3  # by which a standard deviation is too large, or too small
DIRECTED = 0.5  # a mean gradient of half its standard deviation is seen in 50 updates
NUM_BATCHES = 10  # per quarter of the trace, for its standard error
_BOUND = "Kim, Wu, Oh and Gardner (2023), arXiv:2303.10472"
_SOURCE = "rule of thumb: a rise of 4 standard errors and 0.1 nats"


def check_variational(
    elbo: np.ndarray | None, log_weights_is: np.ndarray | None, draws: Draws | None = None
) -> tuple[list[Finding], dict[str, float]]:
    """Check the trace of the objective and the importance ratios.

    Args:
        elbo: In nats, `(step,)` or `(replica, step)`; None if not recorded.
        log_weights_is: Log ratios of target to approximation; None if not computed.
        draws: Whose first these ratios are, to compare their moments with those by the ratios.
    """
    findings, measured = [], {}
    if elbo is not None and np.size(elbo):
        trace = np.atleast_2d(numbers("elbo", elbo).astype(np.float64))
        if trace.ndim > 2:
            raise ValueError(
                f"`elbo` must have shape (step,) or (replica, step); got {trace.shape}."
            )
        finding, rise = _elbo(trace, log_weights_is is None)
        findings.append(finding)
        measured |= {"elbo": float(_last_quarter(trace).mean()), "elbo_rise": rise}
    if log_weights_is is None or not np.size(log_weights_is):
        findings.append(_unchecked())
    else:
        khat = judged_khat(log_weights_is)
        ess, size = weight_ess(log_weights_is), np.size(log_weights_is)
        findings += [_khat(khat, size, ess), _overlap(ess, size)]
        trusted = -np.inf < khat <= khat_limit(size)
        if draws is not None and trusted and size <= draws.num_chains * draws.num_draws:
            findings.append(_moments(np.ravel(log_weights_is), draws))
        measured |= {"khat": khat, "weight_ess_is": ess}
    return findings, measured


def check_fit(
    objective: str, diverged: tuple[int, int] | None, signal: float | None
) -> tuple[list[Finding], dict[str, float]]:
    """Check what else is known of how a family was fitted.

    Args:
        objective: Name of what was maximised.
        diverged: Updates at which the fit was given up and last good, or None.
        signal: Signal to noise of the last gradients, or None.
    """
    findings = []
    if diverged is not None:
        message = (
            f"The {objective} diverged and the fit was stopped at update {diverged[0]}; the "
            f"parameters are those of update {diverged[1]}, the best that were seen"
        )
        remedy = "Lower the learning rate or `step_size`, or start narrower (`initial_scale`)."
        findings.append(
            Finding("diverged", "error", message, float(diverged[0]), remedy=remedy)
        )
    if signal is None:
        return findings, {}
    message = f"The last gradients have a signal-to-noise ratio of {signal:.2g}"
    if signal > DIRECTED:
        message = f"{message}: they still point somewhere, and the fit has a way to go"
        findings.append(
            Finding("gradient", "note", message, signal, DIRECTED, remedy="Train longer.")
        )
    else:
        message = f"{message}, that of noise around an optimum"
        findings.append(Finding("gradient", "ok", message, signal, DIRECTED))
    return findings, {"gradient_signal": signal}


def check_variance(
    variance: float | None, most: float | None
) -> tuple[list[Finding], dict[str, float]]:
    """Compare the variance of the gradient of one draw with its bound.

    Args:
        variance: Of the gradient of the energy by location and scale, or None.
        most: The bound by Kim and others (2023), by the curvature at draws.
    """
    if variance is None or most is None or not np.isfinite([variance, most]).all():
        return [], {}
    message = (
        f"The gradient of one draw has a variance of {variance:.3g}, {variance / most:.2g} of "
        "its bound for a log density that curves as at the draws"
    )
    finding = Finding("variance", "ok", message, variance, most, _BOUND)
    if variance > most:
        finding = replace(
            finding,
            severity="note",
            message=f"{message}: elsewhere it curves more",
            remedy="Take smaller steps, more `samples`, or `estimator=PathDerivative()`.",
        )
    return [finding], {"gradient_variance": variance, "gradient_bound": most}


def _unchecked() -> Finding:
    message = "Not checked: no importance ratio was computed, so k-hat is not known"
    remedy = (
        "The approximation may be wrong in any way. Ask for ratios (`checked=400` of BBVI; "
        "each takes a pass over all data), or compare with another engine."
    )
    return Finding("khat", "note", message, remedy=remedy)


def _overlap(ess: float, size: int) -> Finding:
    """Judge whether the draws lie where the target does.

    A family that is too wide or displaced has bounded ratios, which k-hat calls good.
    """
    message = f"The importance ratios make {ess:.4g} of {size} draws effective"
    return held(
        "overlap",
        ess / size,
        OVERLAP,
        fine=message,
        wrong=f"{message}: most draws lie where the target has little mass",
        remedy="The approximation is too wide, displaced or of the wrong shape: train longer, "
        "use a richer family, reparameterise, or use MCMC.",
        source="a Renyi divergence of order 2 of 3 nats",
    )


def _moments(log_weights: np.ndarray, draws: Draws) -> Finding:
    """Compare means and standard deviations of draws with those that their ratios give.

    Ratios without a heavy tail, which k-hat lets pass, may still take the draws far.
    """
    weights, worst = np.exp(smoothed(log_weights)), []
    for name, shape, values in draws.elements():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        x = values.reshape(-1, values.shape[2])[: len(weights)].astype(float)
        mean = weights @ x
        squares = (x - mean) ** 2
        least = np.finfo(float).tiny  # of draws that are all the same
        variance = np.maximum(weights @ squares, least)
        spread = np.sqrt(np.maximum(x.var(0), least))
        # What chance makes of both, SIGMAS times, is not held against the draws.
        chance = SIGMAS * np.sqrt(weights**2 @ squares / variance)
        off = np.abs(x.mean(0) - mean) / np.sqrt(variance) - chance
        chance = SIGMAS * np.sqrt(weights**2 @ (squares - variance) ** 2) / (2 * variance)
        times = np.abs(np.log(spread / np.sqrt(variance))) - chance
        bad = np.maximum(off / SHIFTED, times / np.log(WIDENED))
        for i in np.flatnonzero(bad > 1):
            ratio = spread[i] / np.sqrt(variance[i])
            shift = abs(x.mean(0)[i] - mean[i]) / np.sqrt(variance[i])
            worst.append((bad[i], draws.name(name, shape, int(i)), shift, ratio))
    if not worst:
        message = "Means and standard deviations are those that the importance ratios give"
        return Finding("moments", "ok", message, 0.0, SHIFTED)
    worst.sort(key=lambda found: -found[0])
    names = tuple(found[1] for found in worst)
    _, first, shift, ratio = worst[0]
    message = (
        f"The importance ratios give other moments for {plural(len(names), 'element')} "
        f"({listing(names)}): the mean of {first} is {shift:.2g} standard deviations off, its "
        f"standard deviation {ratio:.2g} times what it should be"
    )
    remedy = (
        "Weight the draws, `posterior.resample(2_000, importance=True)`, or use a richer "
        "family, or MCMC."
    )
    source = "rule of thumb, beyond 4 standard errors"
    return Finding("moments", "warning", message, shift, SHIFTED, source, remedy, names)


def _khat(khat: float, size: int, ess: float) -> Finding:
    remedy = (
        "The approximation is too narrow or has the wrong shape, and its moments are biased: "
        "use a richer family (full rank, a flow), reparameterise, train longer, or use MCMC."
    )
    if np.isneginf(khat):
        spread = max(size / ess - 1, 0) ** 0.5
        message = (
            f"The importance ratios differ by {spread:.2g} times their mean: by them no mean "
            "of the draws is off by more than as many standard deviations"
        )
        return Finding("khat", "ok" if spread < CLOSE else "note", message, khat, 0.7)
    found = check_khat(khat, size, "the approximation's importance ratios", remedy)
    # Other than particles, draws of a family carry no weights: they are wrong as they are.
    return replace(found, severity="error") if khat > khat_limit(size) else found


def _last_quarter(trace: np.ndarray) -> np.ndarray:
    return trace[:, -max(1, trace.shape[1] // 4) :]


def _elbo(trace: np.ndarray, alone: bool) -> tuple[Finding, float]:
    """Compare the last quarter of the trace with the one before it."""
    num_bad = int((~np.isfinite(trace)).sum())
    if num_bad:
        finding = Finding(
            "elbo",
            "error",
            f"The ELBO was NaN or infinite in {num_bad} of {trace.size} steps",
            value=float(num_bad),
            threshold=0.0,
            remedy="Lower the learning rate, start narrower, or use float64.",
        )
        return finding, float("nan")
    quarter = trace.shape[1] // 4
    if quarter < NUM_BATCHES:
        finding = Finding(
            "elbo",
            "note",
            f"{trace.shape[1]} steps are too few to see whether the ELBO has settled",
            value=float(trace.shape[1]),
            threshold=float(4 * NUM_BATCHES),
            remedy="Train longer.",
        )
        return finding, float("nan")
    before, after = trace[:, -2 * quarter : -quarter], trace[:, -quarter:]
    rise = after.mean(axis=1) - before.mean(axis=1)
    error = np.hypot(_standard_error(before), _standard_error(after))
    moved = np.abs(rise) > np.maximum(MATERIAL, SIGMAS * error)
    worst = int(np.argmax(np.where(moved, np.abs(rise), -1) if moved.any() else error))
    value = float(rise[worst])
    if not moved.any() and error[worst] > BLURRED:
        message = (
            f"Whether the ELBO has settled cannot be told: it changed by {value:+.3g} nats "
            f"(standard error {error[worst]:.2g}) between the last two quarters"
        )
        severity = "warning" if alone else "note"
        remedy = "Judge by the importance ratios, or take larger batches or more samples."
        source = "4 standard errors are more than 1 nat"
        return Finding(
            "elbo", severity, message, float(error[worst]), BLURRED, source, remedy
        ), value
    if not moved.any():
        message = (
            f"The ELBO has settled: it changed by {value:+.3g} nats (standard error "
            f"{error[worst]:.2g}) between the last two quarters"
        )
        return Finding("elbo", "ok", message, value, MATERIAL, _SOURCE), value
    verb = "still rising" if value > 0 else "falling"
    remedy = "Train longer." if value > 0 else "Lower the learning rate: the fit is diverging."
    message = (
        f"The ELBO is {verb}: {value:+.3g} nats (standard error {error[worst]:.2g}) between "
        "the last two quarters"
    )
    finding = Finding("elbo", "warning", message, value, MATERIAL, _SOURCE, remedy)
    return finding, value


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean by batch means, robust to autocorrelation."""
    length = values.shape[1] // NUM_BATCHES
    batches = values[:, : NUM_BATCHES * length].reshape(len(values), NUM_BATCHES, length)
    return np.std(batches.mean(axis=2), axis=1, ddof=1) / np.sqrt(NUM_BATCHES)
