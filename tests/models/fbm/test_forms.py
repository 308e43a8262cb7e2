"""Closed forms and weights against numbers computed with 40 digits, quadrature and tables."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, special

from whence.models.fbm import _forms as forms, _tables as tables

NODES = np.array([0.05, 1.0, 20.0])
# By mpmath: b, weights, c and least squared error, not normalised, horizon 1.
FIXED = {
    ("I", 0.3): (
        [0.59812135018, 0.529204036056, 0.12624582194],
        [0.71150877544, 0.498851550496, 1.2706286632],
        0.864610201216,
        0.0146357979029,
    ),
    ("I", 0.7): (
        [0.388724130839, 0.228766561385, 0.00679880650214],
        [1.35233303577, -0.697774805717, -0.318854712187],
        0.414620056627,
        0.0507309471089,
    ),
    ("II", 0.3): (
        [0.588062776414, 0.459699412186, 0.0873870817496],
        [0.672719519452, 0.563484901009, 1.22886303391],
        0.768513336453,
        0.00649159592266,
    ),
    ("II", 0.7): (
        [0.404912135381, 0.291275866318, 0.0258161727734],
        [1.46045476888, -0.791053206175, -0.308352236458],
        0.353033334686,
        5.26581366e-5,
    ),
}
MATRICES = {
    "I": [0.491769800286, 0.373778982082, 0.048607904744, 0.367879441171, 0.0627561638702],
    "II": [0.483741803596, 0.362755327992, 0.0473877650063, 0.283833820809, 0.0453514739246],
}


@pytest.mark.parametrize(("kind", "hurst"), FIXED)
def test_closed_forms(kind, hurst):
    b, weights, c, error = FIXED[kind, hurst]
    assert_allclose(forms.b_vector(kind, NODES, hurst), b, rtol=1e-9)
    found = forms.l2_weights(kind, NODES, hurst)
    assert_allclose(found, weights, rtol=1e-9)
    assert_allclose(forms.c_number(kind, hurst), c, rtol=1e-9)
    unit = found / np.sqrt(forms.own_variance(kind, hurst))
    path_error = forms.path_error(kind, NODES, unit, hurst)
    assert_allclose(path_error**2 * c, error, rtol=1e-7)
    matrix = forms.a_matrix(kind, NODES)
    assert_allclose(matrix[np.triu_indices(3)][:5], MATRICES[kind], rtol=1e-9)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_forms_are_averages_over_time_of_covariances(kind):
    """A, and b by its definition: an integral over the common noise."""
    x, hurst, a = np.array([0.0, 0.7, 30.0]), 0.3, 0.8
    m = forms.variogram_forms if kind == "I" else lambda x, t: forms.rl_forms(x, 0 * t, t)
    average = integrate.quad_vec(lambda t: m(x, np.array([t]))[0], 0, 1, epsabs=1e-12)[0]
    assert_allclose(forms.a_matrix(kind, x), average, rtol=1e-8)
    # b of kind II: the integral of exp(-x v) v^(H - 1/2) / Gamma(a), v below t, averaged.
    inner = lambda v, x: (1 - v) * np.exp(-x * v) / special.gamma(a)
    want = [
        integrate.quad(inner, 0, 1, args=(r,), weight="alg", wvar=(hurst - 0.5, 0))[0]
        for r in x
    ]
    assert_allclose(forms.b_vector("II", x, hurst), want, rtol=1e-8)


def test_own_variances_and_the_hypergeometric_covariance():
    hurst = np.array([0.1, 0.3, 0.7, 0.9])
    other = special.gamma(2 - 2 * hurst) * np.cos(np.pi * hurst)
    other /= np.pi * hurst * (1 - 2 * hurst)
    assert_allclose([forms.own_variance("I", h) for h in hurst], other, rtol=1e-12)
    for h in hurst:
        inner = lambda u, h=h: (1.4 - u) ** (h - 0.5)
        want = integrate.quad(inner, 0, 0.9, weight="alg", wvar=(0, h - 0.5))[0]
        want /= special.gamma(h + 0.5) ** 2 * forms.own_variance("II", h)
        assert_allclose(forms.rl_covariance(np.array(0.9), np.array(1.4), h), want, rtol=1e-7)


def test_incomplete_gamma_where_the_exponential_overflows():
    x = np.array([1.0, 19.9, 20.1, 60.0])
    assert_allclose(
        forms.scaled_upper_gamma(0.6, x), np.exp(x) * special.gammaincc(0.6, x), rtol=1e-11
    )
    assert np.isfinite(forms.scaled_upper_gamma(1.4, np.array([1e6]))).all()


def test_brownian_motion_is_exact_and_scaling_holds():
    x = np.array([0.0, 0.1, 3.0, 80.0])
    for kind in ("I", "II"):
        assert_allclose(forms.l2_weights(kind, x, 0.5), [1, 0, 0, 0], atol=1e-9)


# Relative error of the path, error of the covariance, variance at 1: rates in [1/20, 20].
PUBLISHED = [
    ("I", 5, 0.1, 0.554, 0.753),
    ("I", 5, 0.3, 0.129, 0.995),
    ("I", 5, 0.9, 0.714, 0.463),
    ("I", 2, 0.7, 0.450, 0.691),
    ("II", 5, 0.3, 0.088, 1.006),
    ("II", 3, 0.9, 0.009, 1.002),
    ("II", 2, 0.1, 0.490, 0.843),
]


@pytest.mark.parametrize(("kind", "nodes", "hurst", "error", "variance"), PUBLISHED)
def test_published_grid(kind, nodes, hurst, error, variance):
    x = np.geomspace(0.05, 20, nodes)
    weights = forms.l2_weights(kind, x, hurst) / np.sqrt(forms.own_variance(kind, hurst))
    assert_allclose(forms.path_error(kind, x, weights, hurst), error, atol=6e-4)
    form = forms.rl_forms(x, np.zeros(1), np.ones(1))
    form = forms.variogram_forms(x, np.ones(1)) if kind == "I" else form
    assert_allclose(weights @ form[0] @ weights, variance, atol=6e-4)


@pytest.mark.parametrize(("kind", "low", "worst"), [("I", 0.01, 0.065), ("II", 0.1, 0.065)])
def test_law_is_matched_for_every_hurst_index(kind, low, worst):
    x = (0.0, *np.geomspace(low, 500, 5))
    for hurst in (0.05, 0.1, 0.2, 0.313, 0.5, 0.7, 0.9, 0.95):
        weights = tables.table(kind, x, "law", 1 / 250)(hurst)
        error, _ = tables.misfit(kind, np.asarray(x), weights, hurst, 1 / 250)
        assert np.abs(error).max() < (worst if hurst < 0.3 or kind == "II" else 0.0125)
    # Between knots the spline is the minimum that lies there.
    weights = tables._values(kind, np.asarray(x), "delta", 1 / 250, np.array([0.3071]))[0]
    assert_allclose(tables.table(kind, x, "delta", 1 / 250)(0.3071), weights, rtol=1e-6)
    error, lags = tables.misfit(kind, np.asarray(x), weights, 0.3071, 1 / 250)
    short = np.argmin(np.abs(lags - 1 / 250)) if kind == "I" else tables.LAGS
    assert_allclose(error[short], 0, atol=1e-10)
