"""Autoencoders with random codes, and evidences, against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import whence as wh
from whence.models import autoencoder
from whence.models.autoencoder._variational import discrepancy

SIGMA = 0.6


def _principal(x):
    """Probabilistic PCA: a decoder W with orthogonal columns, and its posterior of codes."""
    w = np.array([[1.5, 0.0], [0.0, 0.8], [1.5, 0.0], [0.0, -0.8]])
    exact = multivariate_normal(np.zeros(4), w @ w.T + SIGMA**2 * np.eye(4)).logpdf(x)
    inner = w.T @ w + SIGMA**2 * np.eye(2)
    encoder, decoder = autoencoder.dense((4,), 2, (), key=jr.key(0), codes=2)
    read = np.linalg.solve(inner, w.T)
    log_scale = 0.5 * np.log(SIGMA**2 / np.diag(inner))
    weights = lambda e: (e.layers[1].weight, e.layers[1].bias)
    encoder = eqx.tree_at(
        weights,
        encoder,
        (jnp.asarray(np.vstack([read, 0 * read])), jnp.concatenate([jnp.zeros(2), log_scale])),
    )
    decoder = eqx.tree_at(
        lambda d: (d.layers[0].weight, d.layers[0].bias),
        decoder,
        (jnp.asarray(w), jnp.zeros(4)),
    )
    return encoder, decoder, exact


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(7, 4))


def _problem(x, encoder, decoder, **changes):
    return autoencoder.VariationalAutoencoder(
        encoder, decoder, x, likelihood=autoencoder.Gaussian(SIGMA), **changes
    )


@pytest.mark.parametrize("samples", [1, 5])
def test_bounds_are_tight_for_principal_components(x, samples):
    encoder, decoder, exact = _principal(x)
    problem = _problem(x, encoder, decoder)
    params = problem.start(key=jr.key(0))
    fitted = autoencoder.FittedVariational(problem, params, np.zeros(0))
    assert_allclose(fitted.log_prob(x, key=jr.key(0), samples=samples), exact, rtol=1e-6)
    for changes in (
        {},
        {"objective": wh.IWAE(), "samples": 3},
        {"objective": wh.CIWAE(0.5), "samples": 3},
        {"objective": wh.MIWAE(2), "samples": 4},
    ):
        loss = _problem(x, encoder, decoder, **changes).loss(params, None, key=jr.key(1))
        assert_allclose(loss, -exact.mean(), rtol=1e-6)


def test_decoders_follow_the_objective_of_the_model(x):
    """PIWAE: encoders by the mean bound of two groups, decoders by that of all four codes."""
    encoder, decoder, _ = _principal(x)
    encoder = eqx.tree_at(lambda e: e.layers[1].bias, encoder, jnp.zeros(4))
    kinds = {"piwae": wh.PIWAE(2), "miwae": wh.MIWAE(2), "iwae": wh.IWAE()}
    value, slope = {}, {}
    for name, objective in kinds.items():
        problem = _problem(x, encoder, decoder, objective=objective, samples=4)
        loss = lambda params, problem=problem: problem.loss(params, None, key=jr.key(1))
        value[name], slope[name] = jax.value_and_grad(loss)(problem.start(key=jr.key(0)))
    assert value["piwae"] == value["miwae"] > value["iwae"] + 1e-3
    of = lambda name, part: slope[name][part].layers
    same = lambda a, b: jax.tree.map(lambda u, v: assert_allclose(u, v, rtol=1e-9), a, b)
    same(of("piwae", 0), of("miwae", 0))
    same(of("piwae", 1), of("iwae", 1))
    gap = of("piwae", 1)[0].weight - of("miwae", 1)[0].weight
    assert np.abs(gap).max() > 1e-3


def test_beta_counts_the_divergence(x):
    encoder, decoder, _ = _principal(x)
    losses = [
        _problem(x, encoder, decoder, beta=beta, samples=4_000).loss(
            _problem(x, encoder, decoder).start(key=jr.key(0)), None, key=jr.key(0)
        )
        for beta in (0, 1, 3)
    ]
    code = np.asarray(jax.vmap(encoder)(jnp.asarray(x)))
    mean, log_scale = code[:, :2], code[:, 2:]
    kl = 0.5 * (np.exp(2 * log_scale) + mean**2 - 1 - 2 * log_scale).sum(1).mean()
    assert_allclose(losses[1] - losses[0], kl, rtol=0.02)
    assert_allclose(losses[2] - losses[1], 2 * kl, rtol=0.02)


def test_importance_bounds_rise_with_samples(x):
    encoder, decoder, exact = _principal(x)
    encoder = eqx.tree_at(lambda e: e.layers[1].bias, encoder, jnp.zeros(4))  # too wide a law
    problem = _problem(x, encoder, decoder)
    fitted = autoencoder.FittedVariational(problem, problem.start(key=jr.key(0)), np.zeros(0))
    bound = [fitted.log_prob(x, key=jr.key(0), samples=k).mean() for k in (1, 20, 20_000)]
    assert bound[0] < bound[1] < exact.mean() + 0.1
    assert_allclose(bound[2], exact.mean(), atol=0.02)


def test_a_prior_of_pseudo_inputs_is_the_mean_of_their_codes(x):
    encoder, decoder, _ = _principal(x)
    problem = _problem(x, encoder, decoder, pseudo=3)
    params = problem.start(key=jr.key(0))
    assert params[2].shape == (3, 4)
    code = np.asarray(jax.vmap(encoder)(params[2]))
    z = np.array([[0.1, -0.3], [1.0, 2.0]])
    each = norm(code[:, :2], np.exp(code[:, 2:])).logpdf(z[:, None]).sum(-1)
    assert_allclose(
        problem.log_prior(params, jnp.asarray(z)), logsumexp(each, axis=1) - np.log(3)
    )
    fitted = autoencoder.FittedVariational(problem, params, np.zeros(0))
    made = fitted.generate(4_000, key=jr.key(0))
    w = np.asarray(decoder.layers[0].weight)
    mean = w @ code[:, :2].mean(0)
    assert np.abs(made.mean(0) - mean).max() < 5 * made.std() / np.sqrt(4_000)


def test_discrepancy_is_unbiased():
    a, b = jr.normal(jr.key(0), (400, 5, 2)), jr.normal(jr.key(1), (400, 5, 2))
    found = np.asarray(jax.vmap(discrepancy)(a, b))
    assert abs(found.mean()) < 4 * found.std() / 20
    shifted = np.asarray(jax.vmap(discrepancy)(a, b + 1.0))
    assert shifted.mean() > 10 * shifted.std() / 20
    far = discrepancy(jnp.zeros((2, 1)), 1e9 * jnp.ones((2, 1)))
    assert_allclose(far, 2 * 7, rtol=1e-6)  # seven kernels, each 1 within and 0 between


def test_loss_of_a_wasserstein_autoencoder(x):
    """The reconstruction at the code, and beta times the discrepancy from the prior's codes."""
    encoder, decoder = autoencoder.dense((4,), 2, (), key=jr.key(0))
    loss = lambda beta: _problem(x, encoder, decoder, objective="wae", beta=beta).loss(
        (encoder, decoder, jnp.zeros((0, 4))), None, key=jr.key(3)
    )
    codes = jax.vmap(encoder)(jnp.asarray(x))
    given = norm(jax.vmap(decoder)(codes), SIGMA).logpdf(x).sum(1)
    assert_allclose(loss(0), -given.mean(), rtol=1e-9)
    apart = discrepancy(codes, jr.normal(jr.key(3), codes.shape))
    assert_allclose(loss(2.5) - loss(0), 2.5 * apart, rtol=1e-9)


def test_training_lowers_the_loss_of_each_kind():
    rng = np.random.default_rng(0)
    x = 1 / (1 + np.exp(-rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) * 2))
    for changes in ({}, {"objective": "wae", "beta": 10.0}):
        codes = 1 if changes else 2
        encoder, decoder = autoencoder.dense((6,), 2, (8,), key=jr.key(0), codes=codes)
        problem = autoencoder.VariationalAutoencoder(encoder, decoder, x, **changes)
        fitted = autoencoder.fit_variational(
            problem, key=jr.key(0), fit=autoencoder.Adam(300, 0.01)
        )
        assert fitted.losses[-5:].mean() < fitted.losses[:5].mean() - 0.5
        assert fitted.encode(x).shape == (60, 2)
        assert np.mean((fitted.reconstruct(x) - x) ** 2) < np.mean((x.mean(0) - x) ** 2)
        assert fitted.generate(3, key=jr.key(0)).shape == (3, 6)
        assert np.isfinite(fitted.log_likelihood(x)).all()


def test_wrong_settings_are_named(x):
    encoder, decoder, _ = _principal(x)
    with pytest.raises(ValueError, match="`likelihood` must be without latents"):
        autoencoder.VariationalAutoencoder(
            encoder, decoder, x, likelihood=autoencoder.Gaussian("global")
        )
    with pytest.raises(ValueError, match="`decoder` must take an array of shape"):
        _problem(x, encoder, decoder, objective="wae")
    for wrong in ("vae", wh.IWAE, wh.ForwardKL()):
        with pytest.raises(ValueError, match="`objective` must be None, 'wae' or an instance"):
            _problem(x, encoder, decoder, objective=wrong)
    with pytest.raises(ValueError, match="`samples` must be a multiple of `outer` of MIWAE, 2"):
        _problem(x, encoder, decoder, objective=wh.MIWAE(2), samples=3)


def test_evidence_of_a_linear_autoencoder():
    """Against plain Monte Carlo over both matrices."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2)) * 0.7
    scales = {"encoder_scale": 0.8, "decoder_scale": 1.1, "sigma": 0.9}
    exact = autoencoder.linear_log_evidence(x, 1, **scales)
    draws = 400_000
    encoder = 0.8 * rng.normal(size=(draws, 2))
    decoder = 1.1 * rng.normal(size=(draws, 2))
    image = np.einsum("ni,si,sj->snj", x, encoder, decoder)
    given = norm(image, 0.9).logpdf(x).sum(axis=(1, 2))
    weights = np.exp(given - given.max())
    estimate = np.log(weights.mean()) + given.max()
    error = weights.std() / weights.mean() / np.sqrt(draws)
    assert abs(estimate - exact) < 4 * error
    finer = autoencoder.linear_log_evidence(x, 1, **scales, nodes=80)
    assert_allclose(exact, finer, atol=1e-4)
    with pytest.raises(ValueError, match="must be few for a quadrature"):
        autoencoder.linear_log_evidence(np.ones((3, 9)), 2, **scales)
