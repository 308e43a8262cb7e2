"""Sparse Gaussian processes of codes against exact ones, and models of them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

import whence as wh
from whence.core import check_rows, log_density_estimate
from whence.models import autoencoder
from whence.models._fit import Adam, run
from whence.models.autoencoder.gp._latent_gp import Amortised

X = np.linspace(0.0, 1.0, 9)[:, None]


def _layer(inducing, white=None, outputs=1):
    size = (len(inducing), outputs)
    white = jnp.zeros(size) if white is None else white
    return autoencoder.SparseLayer(
        jnp.zeros(1),
        jnp.ones(1),
        size,
        inducing=inducing,
        white=white,
        lengthscale=jnp.array([0.4]),
        amplitude=1.3,
    )


def _exact(x):
    return 1.3**2 * np.exp(-(((x - x.T) / 0.4) ** 2) / 2)


@pytest.mark.parametrize("inducing", [X, X[:4] + 0.05])
def test_marginals_are_those_of_the_exact_process(inducing):
    """FITC keeps every variance; with an inducing input at each row, covariances too."""
    basis = jnp.eye(len(inducing))
    reads = jax.vmap(lambda v: _layer(inducing, v[:, None]).moments(X)[0][:, 0])(basis)
    covariance = reads.T @ reads + jnp.diag(_layer(inducing).moments(X)[1])
    assert_allclose(jnp.diagonal(covariance), 1.3**2, rtol=1e-6)
    if len(inducing) == len(X):
        assert_allclose(covariance, _exact(X), atol=1e-5)
        assert np.abs(_layer(inducing).moments(X)[1]).max() < 1e-5


def test_values_have_mean_and_variance(key):
    layer = _layer(X[::3], 0.5 * jnp.ones((3, 2)), outputs=2)
    mean, variance = layer.moments(X)
    standard = jr.normal(key, (len(X), 2))
    expected = mean + jnp.sqrt(variance + 1e-5)[:, None] * standard
    assert_allclose(layer.values(X, standard), expected)


def _model(**changes):
    _, decoder = autoencoder.dense((3,), 2, (4,), key=jr.key(0))
    return autoencoder.LatentGP(decoder, X, latent=2, inducing=4, **changes)


def _data():
    rng = np.random.default_rng(0)
    y = np.stack([np.sin(4 * X[:, 0]), X[:, 0], np.cos(4 * X[:, 0])], axis=1)
    y += 0.05 * rng.normal(size=y.shape)
    y[2, 1] = y[5] = np.nan
    return y


@pytest.mark.parametrize("layers", [(), (1,)])
def test_log_density_leaves_out_what_is_missing(layers):
    y = _data()
    target = wh.condition(_model(layers=layers), y, X)
    assert target.num_data == 9
    draw = target.constrain(target.init(key=jr.key(0)))
    images = np.asarray(draw.decoder(draw.codes(X, draw.standard)))
    each = norm(images, draw.noise["sigma"]).logpdf(y)
    assert_allclose(
        target.log_likelihood(target.init(key=jr.key(0))), np.nansum(each, axis=1), rtol=1e-9
    )
    assert target.log_likelihood(target.init(key=jr.key(0)))[5] == 0


def test_a_fit_follows_the_curve():
    y = _data()
    target = wh.condition(_model(), y, X)
    posterior = wh.infer(
        target, wh.NUTS(warmup=200, draws=100, chains=1), key=jr.key(1), progress=False
    )
    images = posterior.map(lambda m: m.decoder(m.codes(X, m.standard)))[0].mean(0)
    seen = np.isfinite(y)
    assert np.sqrt(np.mean((images - y)[seen] ** 2)) < 0.15
    new = posterior.predict(X[:5] + 0.01, key=jr.key(0))
    assert new.shape == (1, 100, 5, 3)
    encoder, _ = autoencoder.dense((2, 3), 2, (4,), key=jr.key(0))
    trained = autoencoder.amortise(posterior, encoder, key=jr.key(0), fit=Adam(5))
    codes = autoencoder.encode_implicit(trained, jnp.nan_to_num(y), key=jr.key(0))
    assert codes.shape == (9, 2)


def test_batches_are_scaled_once():
    """Over all batches of three rows the estimates average to the log density itself."""
    target = wh.condition(_model(), _data(), X)
    position = target.init(key=jr.key(0))
    whole = target.log_density(position)
    parts = [log_density_estimate(target, position, jnp.arange(i, i + 3)) for i in (0, 3, 6)]
    assert_allclose(np.mean(parts), whole, rtol=1e-9)
    check_rows(target, 3)


def test_an_implicit_encoder_has_the_spread_of_the_draws():
    """Codes given y are N(y, 0.5^2): mean and deviation are to be learnt."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(200, 1)))
    codes = y + 0.5 * jnp.asarray(rng.normal(size=(100, 200, 1)))
    encoder, _ = autoencoder.dense((2, 1), 1, (16,), key=jr.key(0))
    state, _ = run(Amortised(encoder, y, codes), Adam(1_500, 0.01, 100), key=jr.key(0))
    rest = jax.tree.map(lambda v: None if isinstance(v, jax.Array) else v, encoder)
    trained = jax.tree.map(
        lambda a, b: b if a is None else a, state.params, rest, is_leaf=lambda v: v is None
    )
    at = jnp.asarray([[-1.0], [0.0], [1.0]])
    drawn = jnp.stack(
        [autoencoder.encode_implicit(trained, at, key=jr.key(i)) for i in range(400)]
    )
    assert_allclose(drawn.mean(0), at, atol=0.15)
    assert_allclose(drawn.std(0), 0.5, atol=0.15)


def test_what_does_not_fit_is_named():
    model = _model()
    with pytest.raises(ValueError, match="needs the inputs of `y`"):
        wh.condition(model, _data())
    with pytest.raises(
        ValueError, match=r"must have shape \(9, 1\), a row for each of `y`; got \(4, 1\)"
    ):
        wh.condition(model, _data(), X[:4])
    with pytest.raises(ValueError, match=r"outputs of shape \(2,\) for data"):
        wh.condition(model, _data()[:, :2], X)
    with pytest.raises(ValueError, match="column 0 is constant"):
        autoencoder.LatentGP(None, np.ones((4, 1)), latent=1)
