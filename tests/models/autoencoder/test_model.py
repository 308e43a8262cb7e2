"""The Bayesian autoencoder: its density, and what is asked of its posterior."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import norm

import whence as wh
from whence.core._results import InferenceWarning
from whence.models import autoencoder
from whence.testing import check_model

SHAPE, LATENT = (3, 2), 2


def _networks(**changes):
    return autoencoder.dense(SHAPE, LATENT, (4,), key=jr.key(0), **changes)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).beta(1, 2, size=(12, *SHAPE))


@pytest.fixture(scope="module")
def posterior(x):
    """Two chains of three draws from anywhere: what is asked of them is arithmetic."""
    target = wh.condition(autoencoder.BayesianAutoencoder(*_networks()), x)
    leaves, form = jax.tree.flatten(target.init(key=jr.key(0)))
    moved = [
        leaf + 0.3 * jr.normal(jr.fold_in(jr.key(1), i), (2, 3, *leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    return wh.Posterior.from_draws(target, jax.tree.unflatten(form, moved), unconstrained=True)


def test_log_density_is_prior_and_pixels(x):
    encoder, decoder = _networks()
    model = autoencoder.BayesianAutoencoder(
        encoder, decoder, likelihood=autoencoder.Gaussian(0.4)
    )
    target = wh.condition(model, x)
    assert target.num_data == 12
    position = target.init(key=jr.key(0))
    images = jax.vmap(lambda row: decoder(encoder(row)))(x)
    likelihood = norm(images, 0.4).logpdf(x).reshape(12, -1).sum(axis=1)
    assert_allclose(target.log_likelihood(position), likelihood, rtol=1e-9)
    assert_allclose(target.log_likelihood(position, jnp.array([3, 0])), likelihood[[3, 0]])
    prior = 0.0
    for net, fans in ((encoder, (6, 4)), (decoder, (2, 4))):
        layers = [layer for layer in net.layers if isinstance(layer, eqx.nn.Linear)]
        for layer, fan in zip(layers, fans, strict=True):
            prior += norm(0, fan**-0.5).logpdf(layer.weight).sum()
            prior += norm(0, 1).logpdf(layer.bias).sum()
    assert_allclose(target.log_prior(position), prior, rtol=1e-9)


def test_it_is_a_model(x, key):
    model = autoencoder.BayesianAutoencoder(
        *_networks(), likelihood=autoencoder.Gaussian("pixel", shape=SHAPE), start="prior"
    )
    check_model(model, jnp.asarray(x), jnp.asarray(x), key=key)


def test_what_is_read_may_differ_from_what_is_explained(x):
    model = autoencoder.BayesianAutoencoder(*_networks())
    noisy = np.clip(x + 0.1, 0, 1)
    both, alone = wh.condition(model, x, noisy), wh.condition(model, x)
    position = alone.init(key=jr.key(0))
    codes = both.constrain(position).encode(noisy)
    assert_allclose(
        both.log_likelihood(position),
        both.constrain(position)
        .observation.distribution(both.constrain(position).decode(codes), {})
        .log_prob(x),
    )
    assert np.abs(both.log_likelihood(position) - alone.log_likelihood(position)).max() > 1e-3


def _at(posterior, i, j):
    return jax.tree.map(lambda v: jnp.asarray(v[i, j]), posterior.sample.positions)


def test_rows_of_all_draws(posterior, x):
    draws = [
        posterior.target.constrain(_at(posterior, i, j)) for i in range(2) for j in range(3)
    ]
    codes = autoencoder.encode(posterior, x)
    assert codes.shape == (2, 3, 12, LATENT)
    assert_allclose(codes[1, 2], draws[5].encode(x))
    average = autoencoder.encode(posterior, x, pairing="average")
    assert_allclose(average, codes.mean(axis=(0, 1)))
    rates = np.stack([jax.nn.sigmoid(d.network(jnp.asarray(x))) for d in draws])
    assert_allclose(autoencoder.reconstruct(posterior, x), rates.mean(0), rtol=1e-9)
    each = np.stack([d.likelihood(jnp.asarray(x)).log_prob(x) for d in draws])
    mixture = logsumexp(each, axis=0) - np.log(6)
    assert_allclose(autoencoder.log_likelihood(posterior, x), mixture, rtol=1e-9)
    law = draws[0].observation.law(jnp.asarray(rates.mean(0)), {})
    plugin = autoencoder.log_likelihood(posterior, x, mode="plugin")
    assert_allclose(plugin, law.log_prob(x), rtol=1e-9)
    scores = autoencoder.oddness(posterior, x)
    assert_allclose(scores.unlikely, -mixture, rtol=1e-9)
    assert_allclose(scores.disputed, rates.var(0).reshape(12, -1).sum(1), rtol=1e-9)
    assert_allclose(scores.unstable, each.var(0), rtol=1e-9)
    assert scores.far is None
    drawn = posterior.predict(x[:2], key=jr.key(0))
    assert drawn.shape == (2, 3, 2, *SHAPE)


def test_new_images_pair_codes_with_their_decoder(posterior, x):
    codes = autoencoder.encode(posterior, x)
    mixture = autoencoder.DirichletMixture(2).fit(codes)
    made = autoencoder.generate(posterior, mixture, 12, key=jr.key(2))
    assert made.shape == (12, *SHAPE)
    drawn = mixture.sample(2, key=jr.split(jr.key(2))[0])
    expected = []
    for i in range(2):
        for j in range(3):
            draw = posterior.target.constrain(_at(posterior, i, j))
            expected.append(jax.nn.sigmoid(draw.decode(drawn[i, j])))
    expected = np.concatenate(expected)
    order = lambda v: v[np.lexsort(v.reshape(len(v), -1).T)]
    assert_allclose(order(made), order(expected), rtol=1e-6)
    alone = autoencoder.DirichletMixture(2).fit(codes.mean(axis=(0, 1)))
    assert autoencoder.generate(posterior, alone, 3, key=jr.key(2)).shape == (3, *SHAPE)
    scores = autoencoder.oddness(posterior, x, mixture)
    density = np.asarray(mixture.log_prob(codes))
    assert_allclose(scores.far, np.log(6) - logsumexp(density, axis=(0, 1)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"each of the \(2, 3\) draws"):
        autoencoder.generate(
            posterior, autoencoder.DirichletMixture(2).fit(codes[:1]), 3, key=jr.key(2)
        )


@pytest.mark.slow
def test_a_table_of_models(posterior, x):
    """Each entry is what the function of its name gives."""
    pair = _networks(codes=2)
    fitted = autoencoder.fit_variational(
        autoencoder.VariationalAutoencoder(*pair, x), key=jr.key(0), fit=autoencoder.Adam(5)
    )
    table = autoencoder.compare_autoencoders(
        {"bae": posterior, "vae": fitted}, x, x[:5], key=jr.key(0), components=2, samples=5
    )
    own, other = table.scores["bae"], table.scores["vae"]
    assert_allclose(own["held_out"], autoencoder.log_likelihood(posterior, x[:5]).mean())
    image = autoencoder.reconstruct(posterior, x[:5])
    assert_allclose(own["mse"], np.mean((image - x[:5]) ** 2))
    assert own["prior_sw2"] > 0
    assert np.isnan(other["prior_dsw"])
    assert_allclose(other["plugin"], fitted.log_likelihood(x[:5]).mean())
    assert table.errors["vae"]["generative"] > 0
    assert "held-out data given themselves" in str(table)


def _grid(axis, dim):
    """Return points of a product grid, and the volume of each."""
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    volumes = np.prod(np.meshgrid(*[np.gradient(axis)] * dim, indexing="ij"), axis=0)
    return points, volumes.ravel()


@pytest.mark.parametrize(
    ("latent", "noise", "factor"),
    [(1, 0.4, 2.0), pytest.param(2, 0.05, 3.0, id="narrow")],
)
@pytest.mark.filterwarnings("ignore:For .* rows fewer than 20 codes count")
def test_importance_sampling_against_a_grid(x, latent, noise, factor):
    """On the scale of the density: means of independent estimates, in their standard errors.

    A row of which few codes count is left out: it is said to be badly known.
    """
    encoder, decoder = autoencoder.dense(SHAPE, latent, (4,), key=jr.key(5))
    model = autoencoder.BayesianAutoencoder(
        encoder, decoder, likelihood=autoencoder.Gaussian(noise)
    )
    target, rows = wh.condition(model, x), x[:4]
    position = jax.tree.map(lambda v: factor * v[None, None], target.init(key=jr.key(0)))
    posterior = wh.Posterior.from_draws(target, position, unconstrained=True)
    mixture = autoencoder.DirichletMixture(2).fit(autoencoder.encode(posterior, x))
    found = [
        autoencoder.importance_log_prob(posterior, mixture, rows, key=jr.key(i), samples=200)
        for i in range(20)
    ]
    values, errors = np.array([f.log_prob for f in found]), np.array([f.error for f in found])
    axis = np.sinh(np.linspace(-10, 10, 100_001)) if latent == 1 else np.linspace(-6, 6, 1_201)
    points, volumes = _grid(axis, latent)
    draw = target.constrain(jax.tree.map(lambda v: v[0, 0], position))
    images = np.asarray(draw.decode(jnp.asarray(points))).reshape(len(points), -1)
    density = np.asarray(mixture.log_prob(points))[0, 0]
    # Of one draw of the weights, with 200 codes from each of five parts of the proposal.
    ess = np.array([f.ess for f in found])
    assert_allclose(errors**2, 1 / ess - 1 / 1_000, rtol=1e-6, atol=1e-12)
    well = ess.min(axis=0) > 40
    assert well.any()
    for row, value, error in zip(rows[well], values.T[well], errors.T[well], strict=True):
        square = ((images - row.ravel()) ** 2).sum(axis=1)
        given = -0.5 * square / noise**2 - row.size * np.log(noise * np.sqrt(2 * np.pi))
        exact = logsumexp(given + density, b=volumes)
        ratio = np.exp(value - exact)
        spread = ratio.std(ddof=1)
        assert abs(ratio.mean() - 1) < 5 * spread / np.sqrt(20) + 1e-3
        # The error that is reported is that of the estimates: their own is known to 16%.
        assert 0.4 < np.sqrt(np.mean(error**2)) / value.std(ddof=1) < 2.5
        assert spread < 0.3


def test_an_estimate_by_few_codes_says_so(x):
    """With a likelihood as narrow as this, codes of two samples do not count."""
    encoder, decoder = autoencoder.dense(SHAPE, 4, (4,), key=jr.key(5))
    model = autoencoder.BayesianAutoencoder(
        encoder, decoder, likelihood=autoencoder.Gaussian(0.01)
    )
    target = wh.condition(model, x)
    position = jax.tree.map(lambda v: v[None, None], target.init(key=jr.key(0)))
    posterior = wh.Posterior.from_draws(target, position, unconstrained=True)
    mixture = autoencoder.DirichletMixture(2).fit(autoencoder.encode(posterior, x))
    with pytest.warns(InferenceWarning, match="of 3 rows fewer than 20 codes count"):
        found = autoencoder.importance_log_prob(
            posterior, mixture, x[:3], key=jr.key(0), samples=2
        )
    assert (found.ess < 20).all()
    alone = autoencoder.DirichletMixture(2).fit(autoencoder.encode(posterior, x)[0, 0])
    with pytest.raises(ValueError, match="fitted to averaged codes"):
        autoencoder.importance_log_prob(posterior, alone, x, key=jr.key(0))


def test_layouts_of_papers_fit_their_images():
    for layout, shape in [("mnist", (28, 28)), ("celeba", (3, 64, 64))]:
        make = lambda key, layout=layout: autoencoder.convolutional(layout, 50, key=key)
        networks = eqx.filter_eval_shape(make, jr.key(0))
        image = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        code = eqx.filter_eval_shape(lambda n, v: n.encoder(v), networks, image)
        assert code.shape == (50,)
        assert eqx.filter_eval_shape(lambda n, v: n(v), networks, image).shape == shape
    count = sum(v.size for v in jax.tree.leaves(networks) if hasattr(v, "shape"))
    assert count > 5_000_000


def _model(**changes):
    return autoencoder.BayesianAutoencoder(*_networks(**changes))


@pytest.mark.parametrize(
    ("make", "data", "says"),
    [
        (lambda: _model(), np.ones((2, *SHAPE)) * 3, "between 0 and 1"),
        (lambda: _model(), np.ones((2, 4)), r"`encoder` must take an array of shape \(4,\)"),
        (
            lambda: _model(outputs=(6,)),
            np.ones((2, *SHAPE)),
            r"\(3, 2\) for data of .*; got \(6,",
        ),
        (lambda: _model(codes=2), np.ones((2, *SHAPE)), r"`decoder` must take an array of"),
        (lambda: _model(), np.ones(3), "rows of data along its first axis"),
    ],
)
def test_data_that_do_not_fit_are_named(make, data, says):
    with pytest.raises(ValueError, match=says):
        wh.condition(make(), data)


def test_wrong_parts_are_named(x):
    encoder, decoder = _networks()
    with pytest.raises(ValueError, match="`latent` must be at least 1; got 0"):
        autoencoder.dense(SHAPE, 0, key=jr.key(0))
    with pytest.raises(ValueError, match=r"write `Bernoulli\(\)`"):
        autoencoder.BayesianAutoencoder(encoder, decoder, likelihood=autoencoder.Bernoulli)
    with pytest.raises(ValueError, match="`decoder` must be an Equinox module"):
        autoencoder.BayesianAutoencoder(encoder, None)
    prior = {"*.bias": None, "*": dist.Normal(0.0, 1.0)}
    with pytest.raises(ValueError, match="none for"):
        autoencoder.BayesianAutoencoder(encoder, decoder, prior=prior)
    other = autoencoder.GaussianPrior.fan_in(autoencoder.dense(SHAPE, 5, key=jr.key(0)))
    with pytest.raises(ValueError, match="`prior` must be of the same network"):
        autoencoder.BayesianAutoencoder(encoder, decoder, prior=other)
    with pytest.raises(ValueError, match="one of a BayesianAutoencoder"):
        autoencoder.encode(None, x)
