"""R-hat and ESS against ArviZ, element by element, and against what is known exactly."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.diagnostics import bfmi, convergence, ess_bulk, ess_tail, rhat


def autoregressive(rng, coefficient, shape):
    """AR(1) chains of unit variance, `(chain, draw, ...)`, started in equilibrium."""
    noise = rng.normal(size=shape)
    out = np.empty(shape)
    out[:, 0] = noise[:, 0]
    scale = np.sqrt(1 - coefficient**2)
    for t in range(1, shape[1]):
        out[:, t] = coefficient * out[:, t - 1] + scale * noise[:, t]
    return out


def zoo(rng, chains, draws):
    """Elements that differ in mixing, ties, tails, drift and agreement of chains."""
    x = autoregressive(rng, np.linspace(-0.95, 0.99, 40), (chains, draws, 40))
    x[..., :5] = np.round(x[..., :5])  # ties
    x[..., 5:10] += 3 * np.arange(chains)[:, None, None]  # chains apart
    x[..., 10:15] *= 1 + np.arange(chains)[:, None, None]  # chains of different widths
    x[..., 15:20] = np.exp(3 * x[..., 15:20])  # heavy tails
    x[..., 20] += np.linspace(0, 2, draws)  # drift
    x[..., 21] = x[..., 21] > 1  # binary
    return x


@pytest.mark.parametrize("chains", [1, 2, 4])
@pytest.mark.parametrize("draws", [4, 5, 6, 7, 8, 9, 10, 31, 250])
def test_equals_arviz(chains, draws):
    from arviz_stats.base import array_stats

    x = zoo(np.random.default_rng(100 * chains + draws), chains, draws)
    ours = convergence(x)
    varies = x.min(axis=(0, 1)) < x.max(axis=(0, 1))
    axes = {"chain_axis": 0, "draw_axis": 1}
    bulk = array_stats.ess(x, method="bulk", **axes)
    tail = array_stats.ess(x, method="tail", prob=(0.05, 0.95), **axes)
    assert_allclose(ours.ess_bulk[varies], bulk[varies], rtol=1e-8)
    assert_allclose(ours.ess_tail[varies], tail[varies], rtol=1e-8)
    if chains > 1:  # ArviZ gives NaN for one chain; ours compares its halves
        with np.errstate(divide="ignore", invalid="ignore"):
            theirs = array_stats.rhat(x, **axes)
        assert_allclose(ours.rhat[varies], theirs[varies], rtol=1e-10)
    assert np.isnan(ours.ess_bulk[~varies]).all()


def test_one_chain_is_its_two_halves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2000, 3))
    assert rhat(x).max() < 1.01
    drifting = x + np.linspace(0, 4, 2000)[None, :, None]
    assert rhat(drifting).min() > 1.1


def test_shapes_integers_and_float32():
    x = np.random.default_rng(1).normal(size=(4, 60, 2, 3))
    assert convergence(x).rhat.shape == (2, 3)
    assert rhat(x[..., 0, 0]).shape == ()
    assert convergence(x[..., :0]).ess_tail.shape == (2, 0)
    assert_allclose(ess_bulk(x.astype(np.float32)), ess_bulk(x), rtol=1e-6)
    counts = np.random.default_rng(2).poisson(3.0, (4, 60))
    assert_allclose(ess_tail(counts), ess_tail(counts.astype(float)))


def test_one_bad_draw_makes_only_its_element_nan():
    x = np.random.default_rng(3).normal(size=(4, 100, 4))
    x[2, 50, 1], x[0, 0, 2] = np.nan, np.inf
    for values in convergence(x):
        assert np.isnan(values[[1, 2]]).all()
        assert np.isfinite(values[[0, 3]]).all()


def test_constants_are_nan_even_with_rounding():
    x = np.random.default_rng(4).dirichlet(np.ones(7), size=(4, 100)).sum(axis=-1)
    assert x.min() < x.max()  # rounding
    assert np.isnan(convergence(x).ess_bulk)
    assert np.isnan(convergence(np.ones((4, 100))).rhat)
    # Each chain constant, at different places: no constant, but as bad as can be.
    apart = np.repeat(np.arange(4.0)[:, None], 100, axis=1)
    assert convergence(apart).rhat > 1e6
    assert convergence(apart).ess_bulk < 10


def test_a_sign_has_an_rhat():
    half = np.repeat([-1.0, 1.0], 1000)
    signs = np.random.default_rng(11).permutation(half).reshape(4, 500)
    assert np.median(signs) == 0.0  # so that folding makes them constant
    assert 0.99 < rhat(signs) < 1.02


def test_fewer_than_four_draws_is_nan():
    assert np.isnan(convergence(np.random.default_rng(5).normal(size=(4, 3))).ess_bulk)


def test_ess_of_an_autoregression_is_the_theory():
    """ESS / size is (1 - a) / (1 + a) for the mean; 200 replications average the noise."""
    coefficient = 0.6
    x = autoregressive(np.random.default_rng(6), coefficient, (4, 1000, 200))
    # Rank normalisation of a Gaussian is nearly the identity.
    relative = ess_bulk(x) / 4000
    error = relative.std(ddof=1) / np.sqrt(200)
    # Truncation at a noisy lag biases the estimate by about 1% at this length.
    truth = (1 - coefficient) / (1 + coefficient)
    assert_allclose(relative.mean(), truth, atol=4 * error + 0.01 * truth)


def test_bfmi_equals_arviz_and_theory():
    from arviz_stats.base import array_stats

    energy = autoregressive(np.random.default_rng(7), 0.9, (3, 20_000))
    assert_allclose(bfmi(energy), array_stats.bfmi(energy, chain_axis=0, draw_axis=1))
    # Of an AR(1): E (difference)^2 / variance = 2 (1 - a).
    assert_allclose(bfmi(energy), 0.2, atol=0.03)


def test_blocks_do_not_change_results(monkeypatch):
    from whence.diagnostics import _convergence

    x = zoo(np.random.default_rng(8), 2, 50)
    whole = convergence(x)
    monkeypatch.setattr(_convergence, "_BLOCK", 2 * 50 * 7)
    for a, b in zip(whole, convergence(x), strict=True):
        assert_allclose(a, b, rtol=1e-12)
