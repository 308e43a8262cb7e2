"""Monte Carlo standard errors of mean and standard deviation, of chains and of weights."""

from typing import NamedTuple

import numpy as np

from ._convergence import by_element, ess_of, split_chains


class MonteCarloError(NamedTuple):
    """Standard errors of estimates made of draws, each of the shape of one draw.

    Attributes:
        mean: Of the mean.
        sd: Of the standard deviation.
    """

    mean: np.ndarray
    sd: np.ndarray


def mcse(draws: np.ndarray) -> MonteCarloError:
    """Return Monte Carlo standard errors of every element of a variable.

    Args:
        draws: Shape `(chain, draw, ...)`, of Markov chains.

    Returns:
        NaN where fewer than 4 draws, a non-finite or only one value was given.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), doi:10.1214/20-BA1221.
    """

    def statistics(values):
        square = (values - values.mean(axis=(1, 2), keepdims=True)) ** 2
        variance = square.mean(axis=(1, 2))
        spread = np.maximum((square**2).mean(axis=(1, 2)) - variance**2, 0.0)
        size = values[0].size
        sample_sd = np.sqrt(variance * size / (size - 1))
        # The delta method: the error of a variance, divided by 2 sd.
        sd = np.sqrt(spread / ess_of(split_chains(square)) / variance) / 2
        return sample_sd / np.sqrt(ess_of(split_chains(values))), sd

    return MonteCarloError(*by_element(draws, statistics, 2))


# Of fewer families of particles their spread says nothing.
_FEWEST_FAMILIES = 5


def mcse_weighted(
    draws: np.ndarray,
    weights: np.ndarray,
    *,
    chains: bool = False,
    families: np.ndarray | None = None,
) -> MonteCarloError:
    """Return standard errors of self-normalised importance sampling.

    Particles with a common ancestor are alike as far as they did not move apart. The spread
    over families sees that; the larger of its error and that of independent draws counts.

    Args:
        draws: Shape `(chain, draw, element)`.
        weights: Shape `(chain, draw)`, they sum to 1.
        chains: Whether draws are those of Markov chains and not independent.
        families: Number of each draw's ancestor, if draws are particles, `(chain, draw)`.

    References:
        Owen (2013), Monte Carlo theory, methods and examples, section 9.2.
        Chan and Lai (2013), doi:10.1214/13-AOS1172 [families].
    """
    values = np.asarray(draws, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = values - np.tensordot(weights, values, 2)
        variance = np.tensordot(weights, centred**2, 2)
        # Both estimates are means of these, to first order.
        terms = [centred * weights[..., None], (centred**2 - variance) * weights[..., None]]
        if chains:
            mean, error = (weights.size * mcse(term).mean for term in terms)
        else:
            mean, error = (np.sqrt(np.sum(term**2, axis=(0, 1))) for term in terms)
            if families is not None:
                numbers, shares = _families(families, weights)
                effective = 1 / np.sum(shares**2)
                if effective >= _FEWEST_FAMILIES:
                    factor = np.sqrt(effective / (effective - 1))
                    apart = (factor * _spread(term, numbers, len(shares)) for term in terms)
                    mean, error = map(np.maximum, (mean, error), apart)
        return MonteCarloError(mean, error / (2 * np.sqrt(variance)))


def _families(families: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the family of each draw, and the weight of each family."""
    numbers = np.unique(np.ravel(families), return_inverse=True)[1]
    return numbers, np.bincount(numbers, np.ravel(weights))


def _spread(term: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the root of the sum of squares of sums over families."""
    sums = np.zeros((count, term.shape[-1]))
    np.add.at(sums, numbers, term.reshape(-1, term.shape[-1]))
    return np.sqrt(np.sum(sums**2, axis=0))
