"""Checks of a point estimate: do the starts agree, and is it a maximum?"""

from typing import Any

import numpy as np

from ._data import Draws
from ._names import listing
from ._report import Finding

AGREE = 0.01  # nats; maxima closer than this are taken for the same
OTHER = 5.0  # nats; a maximum so much lower has less than 1% of the density of the highest
LEAST_DECLINE = 0.05  # of what the curvature promises
Shape = tuple[Any, Any, Any, Any]  # curvatures, axes, slopes, declines


def check_point(
    objectives: np.ndarray,
    converged: np.ndarray,
    shape: Shape,
    draws: Draws,
    *,
    alone: bool,
    points: Any = None,
) -> tuple[list[Finding], dict[str, float]]:
    """Judge the best of several maxima, best first, by the others and the shape around it."""
    objectives = np.atleast_1d(np.asarray(objectives, float))
    if not objectives.size:
        raise ValueError("`objectives` must have an entry for each start; got none.")
    findings = [_no_uncertainty()] if alone else []
    agreed = _agreed(objectives, shape, points)
    findings.append(_starts(objectives, agreed))
    others = objectives[~agreed & np.atleast_1d(converged)]
    if not alone and others.size and objectives[0] - others.max() < OTHER:
        findings.append(_other(objectives[0] - others.max()))
    numbers = {"objective": float(objectives[0]), "starts_agreed": float(agreed.sum())}
    left = 0.0
    if shape[0] is not None:
        curvatures, axes, slopes, declines = (np.asarray(x, float) for x in shape)
        findings.append(_maximum(curvatures, axes, declines, draws))
        left = _left(curvatures, slopes, declines)
        numbers |= {"condition": _condition(curvatures), "newton_gain": left}
    else:
        findings.append(_not_looked())
    return findings + _stationary(left, bool(np.asarray(converged)[0])), numbers


def _no_uncertainty() -> Finding:
    return Finding(
        "point",
        "note",
        "This is one point, a maximum: it carries no uncertainty, and predictions from it "
        "have that of the data alone",
        remedy="Use an engine that draws, such as NUTS, if uncertainty matters.",
    )


def _agreed(objectives: np.ndarray, shape: Shape, points: Any) -> np.ndarray:
    """Return which starts found the best maximum: by its height or, if that is rounded, place.

    In float32 a sum of large terms may be off by far more than `AGREE` at one and the same
    maximum; what the curvature says of the way between two points is not.
    """
    agreed = objectives >= objectives[0] - AGREE
    if points is None or shape[0] is None or not np.min(shape[0]) > 0:
        return agreed
    curvatures, axes, ways = (np.asarray(x, float) for x in (*shape[:2], points))
    with np.errstate(invalid="ignore"):  # a start may have ended at infinity
        along = np.linalg.solve(axes, (ways - ways[0]).T).T
        return agreed | (np.sum(curvatures * along**2, axis=1) / 2 <= AGREE)


def _starts(objectives: np.ndarray, found: np.ndarray) -> Finding:
    agreed, total = int(found.sum()), len(objectives)
    more = "Use more starts, for example twice as many, and see whether the maximum stays."
    if total == 1:
        message = "One start: there is nothing to tell a local maximum from the highest one"
        return Finding("starts", "note", message, 1.0, remedy=more)
    if agreed == total:
        message = f"All {total} starts agree on this maximum to {AGREE} nats"
        return Finding("starts", "ok", message, float(agreed))
    below = objectives[0] - np.fmax.reduce(objectives[~found])
    message = f"{agreed} of {total} starts found this maximum; " + (
        f"the next one is {below:.3g} nats lower"
        if np.isfinite(below)
        else "the others ended where it is not finite"
    )
    if agreed > 1:
        remedy = "Nothing, if that is expected: there are several maxima. " + more
        return Finding("starts", "note", message, float(agreed), remedy=remedy)
    return Finding("starts", "warning", message, float(agreed), 2.0, remedy=more)


def _other(below: float) -> Finding:
    message = (
        f"Another maximum is only {below:.3g} nats lower: the draws are from around the "
        "highest alone, and what the posterior has elsewhere is left out"
    )
    remedy = "Use an engine that moves between modes: `TemperedSMC`, or NUTS from many starts."
    return Finding("modes", "warning", message, below, OTHER, remedy=remedy)


def _left(curvatures: np.ndarray, slopes: np.ndarray, declines: np.ndarray) -> float:
    """Return what a Newton step promises, in nats, along directions that are no flat ones."""
    steep = declines >= LEAST_DECLINE
    sizes = np.maximum(np.abs(curvatures), np.finfo(float).tiny)
    return float(np.sum((slopes**2 / (2 * sizes))[steep]))


def _stationary(left: float, converged: bool) -> list[Finding]:
    if converged and left <= AGREE:
        return []
    message = (
        f"The gradient is not zero: by it a step would gain {left:.2g} nats. The search "
        "ended at a kink of the objective, at the limit of its rounding, or was stopped"
    )
    remedy = (
        "At a kink (absolute values, ReLU) the point may be right, but not what is "
        "made of the curvature; else use float64, or resume the run."
    )
    return [Finding("gradient", "warning", message, left, AGREE, remedy=remedy)]


def _maximum(
    curvatures: np.ndarray, axes: np.ndarray, declines: np.ndarray, draws: Draws
) -> Finding:
    worst = int(np.argmin(np.nan_to_num(declines, nan=-np.inf)))
    least = float(declines[worst])
    if least >= LEAST_DECLINE:
        message = (
            "It is a maximum, and the objective falls along every direction; condition number "
            f"of its Hessian {_condition(curvatures):.2g}"
        )
        return Finding("maximum", "ok", message, least, LEAST_DECLINE)
    flat = np.flatnonzero(~(declines >= LEAST_DECLINE))
    where = _concerned(axes, flat, draws)
    message = (
        f"Along {_number(len(flat))} the objective does not fall as it does at a maximum: it "
        "is flat, or still rises towards infinity or the edge of a support. What is given for "
        f"{listing(where)} is where the search stopped"
    )
    remedy = "Fix one of these, give them a prior, or integrate over them (NUTS)."
    return Finding(
        "maximum", "warning", message, least, LEAST_DECLINE, remedy=remedy, where=tuple(where)
    )


def _not_looked() -> Finding:
    return Finding(
        "maximum",
        "note",
        "There are too many latents to make the Hessian: whether this is a maximum, and how "
        "sharp it is, was not looked at",
    )


def _number(count: int) -> str:
    return "one direction" if count == 1 else f"{count} directions"


def _condition(curvatures: np.ndarray) -> float:
    sizes = np.abs(curvatures)
    return float(sizes.max() / sizes.min()) if sizes.min() > 0 else float("inf")


def _concerned(axes: np.ndarray, along: np.ndarray, draws: Draws) -> list[str]:
    """Return the entries of the position that take part in some axes, most first."""
    share = np.sqrt(np.sum(axes[:, along] ** 2, axis=1) / np.sum(axes**2, axis=1))
    share, names = np.nan_to_num(share, nan=1.0), draws.coordinates()
    order = np.argsort(-share, kind="stable")
    return list(dict.fromkeys(names[i] for i in order if share[i] > 0.3 * share.max()))
