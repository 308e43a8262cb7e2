"""Divergent transitions: how many, in which chains, and where in the space."""

import numpy as np

from ._data import Draws
from ._names import listing, plural
from ._report import Finding

_SOURCE = "Betancourt 2017, arXiv:1701.02434; Betancourt and Girolami 2015, arXiv:1312.0906"
FEWEST = 5  # fewer divergent draws than this do not tell where they lie
DISPLACED = 0.3  # rank of divergent among other draws: 1/2 is no displacement, 0 all below
SIGMAS = 4.0  # and that many standard errors from 1/2, since many coordinates are compared
CONCENTRATED = 0.5  # of the divergences in one chain, when that is also no accident


def check_divergences(draws: Draws) -> list[Finding]:
    """Count divergences and say where they concentrate."""
    diverging = draws.stats["diverging"].astype(bool)
    count, rate = int(diverging.sum()), float(diverging.mean())
    if not count:
        return [Finding("divergences", "ok", "No divergences", 0.0, 0.0, _SOURCE)]
    regions = locate(draws, diverging)
    chains = _chains(diverging)
    message = f"{plural(count, 'divergence')} in {diverging.size} transitions ({rate:.2%})"
    if chains:
        message += f", {chains}"
    if regions:
        message += f"; they concentrate where {listing(regions, 3)}"
    elif count >= FEWEST:
        message += "; no single variable stands out where they occur"
    cure = (
        "The curvature there is too strong for the step size, so a region is missed and "
        "the estimates are biased. Reparameterise (noncentered=True for hierarchical "
        "effects); raise the target acceptance (0.9, 0.99); a tighter prior on a scale "
        "keeps it from zero."
    )
    return [
        Finding("divergences", "warning", message, float(count), 0.0, _SOURCE, cure, regions)
    ]


def _chains(diverging: np.ndarray) -> str:
    """Say so if one chain has more than its share by more than chance."""
    num_chains, count = len(diverging), int(diverging.sum())
    if num_chains < 2 or count < FEWEST:
        return ""
    by_chain = diverging.sum(axis=1)
    top = int(by_chain.argmax())
    share = 1 / num_chains
    excess = by_chain[top] / count - share
    if by_chain[top] / count < CONCENTRATED or excess < SIGMAS * np.sqrt(
        share * (1 - share) / count
    ):
        return ""
    return f"{by_chain[top]} of them in chain {top}"


def locate(draws: Draws, diverging: np.ndarray) -> tuple[str, ...]:
    """Name the coordinates, and the ends, to which divergent draws are displaced.

    Every unconstrained coordinate is judged by the probability that a divergent draw lies
    above another one (the Mann-Whitney statistic): scale-free, and blind to skewness.
    """
    count, others = int(diverging.sum()), int((~diverging).sum())
    if count < FEWEST or others < FEWEST:
        return ()
    above, labels = [], []
    for name, values in (draws.unconstrained or draws.variables).items():
        flat = values.reshape(*draws.leading, -1)
        if flat.dtype.kind not in "fiu":
            continue
        above.append(_probability_above(flat[~diverging], flat[diverging]))
        labels += [(name, index) for index in range(flat.shape[2])]
    probability = np.concatenate(above) if above else np.zeros(0)
    # Standard error of the Mann-Whitney statistic under no displacement. Draws are
    # dependent, so this is a floor; `DISPLACED` does most of the deciding.
    error = np.sqrt((count + others + 1) / (12 * count * others))
    distance = np.abs(probability - 0.5)
    chosen = np.flatnonzero((distance > 0.5 - DISPLACED) & (distance > SIGMAS * error))
    order = chosen[np.argsort(-distance[chosen], kind="stable")][:3]
    return tuple(
        f"{_coordinate(draws, *labels[i])} is {'high' if probability[i] > 0.5 else 'low'}"
        for i in order
    )


def _probability_above(rest: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return P(chosen > rest) + P(equal) / 2 by column."""
    ordered = np.sort(rest, axis=0)
    out = np.empty(rest.shape[1])
    for column in range(rest.shape[1]):
        below = np.searchsorted(ordered[:, column], chosen[:, column], "left")
        up_to = np.searchsorted(ordered[:, column], chosen[:, column], "right")
        out[column] = np.mean(below + up_to) / (2 * len(ordered))
    return out


def _coordinate(draws: Draws, name: str, index: int) -> str:
    """Name an unconstrained coordinate by what it is of the variable of the same name."""
    variable = draws.variables.get(name)
    if not draws.unconstrained or variable is None:
        position = draws.unconstrained.get(name, variable)
        assert position is not None
        return draws.name(name, position.shape[2:], index)
    position = draws.unconstrained[name]
    if position.shape != variable.shape:  # a simplex, a Cholesky factor
        return f"unconstrained {name}[{index}]"
    element = draws.name(name, variable.shape[2:], index)
    u = position.reshape(*draws.leading, -1)[..., index].astype(np.float64)
    v = variable.reshape(*draws.leading, -1)[..., index].astype(np.float64)
    if np.allclose(u, v, rtol=1e-4, atol=1e-6):
        return element
    if (v > 0).all() and np.allclose(u, np.log(v), rtol=1e-4, atol=1e-4):
        return f"log {element}"
    return f"unconstrained {element}"
