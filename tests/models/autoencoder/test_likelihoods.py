"""Laws of pixels against quadrature and published values."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from whence.models import autoencoder
from whence.models.autoencoder import _continuous_bernoulli as cb

LOGITS = jnp.array([-60.0, -8.0, -0.6, -0.49, -1e-7, 0.0, 1e-3, 0.3, 0.51, 2.0, 35.0])


@pytest.fixture(scope="module")
def moments():
    """Integrals of the densities times 1, x and x squared."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, w = (nodes + 1) / 2, weights / 2
    law = cb.ContinuousBernoulliDistribution(LOGITS[:, None])
    density = np.exp(np.asarray(jax.jit(law.log_prob)(x[None])))
    return [density @ (w * x**power) for power in range(3)]


def test_continuous_bernoulli_by_quadrature(moments):
    law, (total, mean, second) = cb.ContinuousBernoulliDistribution(LOGITS), moments
    assert_allclose(total, 1, rtol=1e-12)
    assert_allclose(law.mean, mean, rtol=1e-10)
    assert_allclose(law.variance, second - mean**2, rtol=1e-8, atol=1e-14)


def test_continuous_bernoulli_values():
    logits = jnp.array([jnp.log(0.1 / 0.9), 0.0])
    # log C of the density C rate^x (1 - rate)^(1 - x)
    normaliser = jax.nn.softplus(logits) - cb.log_partition(logits)
    assert_allclose(normaliser, [1.0103385594908540, np.log(2)], rtol=1e-14)
    rate = 0.1  # the closed form of the mean, in the rate
    mean = rate / (2 * rate - 1) + 1 / (2 * np.arctanh(1 - 2 * rate))
    assert_allclose(cb.ContinuousBernoulliDistribution(logits).mean, [mean, 0.5], rtol=1e-12)


def test_gradient_of_the_normaliser_is_the_mean_in_single_precision(moments):
    single = LOGITS.astype(jnp.float32)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(cb.log_partition)))(single)
    assert_allclose(slope, moments[1], rtol=2e-6)
    assert_allclose(value, cb.log_partition(LOGITS), rtol=1e-6, atol=1e-6)


def test_draws_have_the_mean(key):
    law = cb.ContinuousBernoulliDistribution(LOGITS)
    drawn = law.sample(key, (20_000,))
    assert np.all((drawn >= 0) & (drawn <= 1))
    z = (drawn.mean(0) - law.mean) / jnp.sqrt(law.variance / 20_000)
    assert np.abs(z).max() < 4.5
    # On either side of where the series takes over.
    laws = map(cb.ContinuousBernoulliDistribution, (9.99e-4, 1.001e-3))
    near = [law.sample(key, (9,)) for law in laws]
    assert_allclose(near[0], near[1], atol=1e-6)


@pytest.mark.parametrize(
    "likelihood",
    [
        autoencoder.ContinuousBernoulli(),
        autoencoder.Bernoulli(),
        autoencoder.Gaussian(0.3),
        autoencoder.Categorical(4),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_law_of_the_parameter_is_that_of_the_output(likelihood, key):
    output = 2 * jr.normal(key, (5, *likelihood.output_shape((3, 2))))
    law = likelihood.distribution(output, {})
    x = law.sample(key)
    assert x.shape == (5, 3, 2)
    likelihood.check(np.asarray(x))
    again = likelihood.law(likelihood.parameter(output), {})
    assert again.log_prob(x).shape == (5,)
    assert_allclose(law.log_prob(x), again.log_prob(x), rtol=1e-9)
    assert likelihood.image(likelihood.parameter(output)).shape == (5, 3, 2)
    assert np.abs(np.asarray(likelihood.read(x))).max() < 20


def test_categorical_is_over_the_first_axis():
    output = jnp.log(jnp.array([[[0.1], [0.2], [0.7]]]))
    law = autoencoder.Categorical(3).distribution(output, {})
    assert_allclose(law.log_prob(jnp.array([[2]])), np.log(0.7))
    image = autoencoder.Categorical(3).image(autoencoder.Categorical(3).parameter(output))
    assert_allclose(image, [[0.2 + 1.4]])
    assert_allclose(autoencoder.Categorical(4).read(jnp.array([0, 3])), [0, 1])


@pytest.mark.parametrize(
    ("likelihood", "x", "says"),
    [
        (autoencoder.ContinuousBernoulli(), [[0.0, 255.0]], "got 255 in row 0. Divide 8-bit"),
        (autoencoder.ContinuousBernoulli(), [[0.0], [-0.1]], "got -0.1 in row 1"),
        (autoencoder.Bernoulli(), [[0.5]], "must be 0 or 1 for Bernoulli; got 0.5"),
        (autoencoder.Categorical(4), [[0.5]], "must be whole numbers"),
        (autoencoder.Categorical(4), [[4]], "must be from 0 to 3 for Categorical"),
    ],
)
def test_wrong_pixels_are_named(likelihood, x, says):
    with pytest.raises(ValueError, match=says):
        likelihood.check(np.asarray(x))


@pytest.mark.parametrize(("scale", "shape"), [("global", ()), ("pixel", (3, 2))])
def test_unknown_scales_are_around_a_third(scale, shape):
    law = autoencoder.Gaussian(scale, shape=(3, 2)).priors["sigma"]
    assert law.shape() == shape
    assert_allclose(law.icdf(jnp.full(shape, 0.5)), 0.3, rtol=1e-6)
    assert_allclose(law.icdf(jnp.full(shape, norm.cdf(1.0))), 0.3 * np.e, rtol=1e-6)


def test_wrong_scales_are_named():
    with pytest.raises(
        ValueError, match="one of 'global', 'pixel', or an instance of Distribution; got 'all'"
    ):
        autoencoder.Gaussian("all")
    with pytest.raises(ValueError, match="`scale` must be positive and finite; got -1"):
        autoencoder.Gaussian(-1)
    with pytest.raises(ValueError, match="`shape` must be that of one datum"):
        autoencoder.Gaussian("pixel")
