"""The kernel Stein discrepancy of some draws, with a test of it."""

import numpy as np

SHUFFLES = 1_000


def stein_discrepancy(
    draws: np.ndarray, gradients: np.ndarray, correlation: float
) -> tuple[float, float]:
    """Return the squared discrepancy between draws and a density, and a p-value.

    Its kernel is `(1 + |x - y|^2 / c) ** -0.5` in coordinates of unit standard deviation, with
    `c` the median squared distance. Noise of mean zero in the gradients that is independent
    between draws adds none to it, since pairs of a draw with itself are left out. The p-value
    is that of a wild bootstrap, whose signs persist as long as draws are correlated.

    Args:
        draws: Flat, `(chain, draw, dim)`.
        gradients: Of the log density, the same shape.
        correlation: Draws per independent draw, at least 1.

    References:
        Gorham, Mackey (2017), Measuring sample quality with kernels, arXiv:1703.01717.
        Chwialkowski, Strathmann, Gretton (2016), A kernel test of goodness of fit,
        arXiv:1602.02964.
    """
    chains, each, dim = draws.shape
    scale = draws.std(axis=(0, 1))
    scale = np.where(scale > 0, scale, 1)
    x, s = (draws / scale).reshape(-1, dim), (gradients * scale).reshape(-1, dim)
    norms = (x**2).sum(1)
    squares = np.maximum(norms[:, None] + norms[None] - 2 * x @ x.T, 0)
    c = max(float(np.median(squares[~np.eye(len(x), dtype=bool)])), 1e-12)
    k = (1 + squares / c) ** -0.5
    first, second = -(k**3) / c, 3 * k**5 / c**2  # derivatives of `k` by `squares`, doubled
    towards = (s * x).sum(1)[:, None] - s @ x.T  # of s(x) with x - y
    # s(x) and d/dy, s(y) and d/dx, and the trace of d/dx d/dy.
    terms = s @ s.T * k - first * (towards + towards.T) - dim * first - second * squares
    np.fill_diagonal(terms, 0)
    pairs = len(x) * (len(x) - 1)
    flips = np.random.default_rng(0).random((SHUFFLES, chains, each)) < 0.5 / correlation
    flips[:, :, 0] = np.random.default_rng(1).random((SHUFFLES, chains)) < 0.5
    signs = (1 - 2 * (np.cumsum(flips, axis=2) % 2)).reshape(SHUFFLES, -1).astype(float)
    shuffled = np.einsum("bi,ij,bj->b", signs, terms, signs, optimize=True) / pairs
    value = float(terms.sum() / pairs)
    return value, float((1 + np.sum(shuffled >= value)) / (1 + SHUFFLES))
