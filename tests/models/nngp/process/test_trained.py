"""Ensembles of trained networks: golden values, limits, and finite networks trained."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.linalg import expm

from whence.models.nngp import (
    BurrXII,
    Dense,
    Draws,
    Erf,
    FromDistribution,
    InverseGamma,
    Jeffreys,
    NormalMixture,
    PointMass,
    ScaleMixture,
    Serial,
    Trained,
)

X = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
Y = np.array([0.3, -1.2, 2.0])
NEW = np.array([[0.2, 0.7], [1.5, 1.5]])
NET = Serial(Dense(2.0, 0.1), Erf(), Dense(2.0, 0.1), Erf(), Dense())
IG = InverseGamma(2.5, 1.5)


def _trained(law, y=Y):
    return Trained(ScaleMixture(NET, law), X, y)


@pytest.mark.parametrize(
    ("layers", "loc", "covariance"),
    [
        ("last_layer", [1.89253702, 1.21467256], [0.17225239, 0.11833839, 0.20972134]),
        ("all_layers", [1.07659207, 0.76415734], [0.21020611, 0.14320932, 0.2296904]),
    ],
)
def test_golden(layers, loc, covariance):
    law = getattr(_trained(IG), layers)(NEW)
    assert isinstance(law, dist.MultivariateStudentT)
    assert_allclose(law.df, 5)  # of the law, though there are three observations
    assert_allclose(law.loc, loc, atol=1e-8)
    scale = law.scale_tril @ law.scale_tril.T
    assert_allclose(scale[np.triu_indices(2)], 1.5 / 2.5 * np.array(covariance), atol=1e-8)


def test_last_layer_and_posterior_coincide_in_location_only():
    trained = _trained(IG).last_layer(NEW)
    posterior = ScaleMixture(NET, IG).condition(X, Y).latent(NEW)
    assert_allclose(trained.loc, posterior.loc, rtol=1e-7)
    assert posterior.df == trained.df + 3


@pytest.mark.slow
def test_the_end_is_the_limit_of_time():
    trained = _trained(IG)
    end, late = trained.all_layers(NEW), trained.all_layers(NEW, time=1e9)
    assert isinstance(late, NormalMixture)
    assert_allclose(late.mean, end.loc, rtol=1e-6)
    assert_allclose(late.variance, end.variance, rtol=1e-6)
    value = np.array([0.5, 0.4])
    assert_allclose(late.log_prob(value), end.log_prob(value), atol=1e-6)


@pytest.mark.slow
def test_untrained_networks_are_the_prior():
    start = _trained(BurrXII(2.0, 1.5)).all_layers(NEW, time=0)
    prior = FromDistribution(dist.InverseGamma(2.5, 1.5), order=2.5)
    t = stats.multivariate_t(np.zeros(2), 1.5 / 2.5 * np.asarray(NET.nngp(NEW)), df=5)
    value = np.array([[0.5, -0.4], [3.0, 1.0]])
    by_nodes = _trained(prior).all_layers(NEW, time=0)
    assert_allclose(by_nodes.log_prob(value), t.logpdf(value), rtol=1e-7)
    assert_allclose(start.mean, 0, atol=1e-12)
    assert_allclose(by_nodes.variance, np.diag(t.shape) * 5 / 3, rtol=1e-6)


def _by_exponential(v, time):
    """Location and covariance for v = 1 weights, by scipy's matrix exponential."""
    kernels = NET.kernel(X)
    tangent, own = np.asarray(kernels.ntk), np.asarray(kernels.nngp)
    across, read = np.asarray(NET.kernel(NEW, X).ntk), np.asarray(NET.nngp(NEW, X))
    learnt = np.eye(3) - expm(-v * tangent * time / 3)
    b = across @ np.linalg.solve(tangent, learnt)
    cross = b @ read.T
    return b @ Y, v * (np.asarray(NET.nngp(NEW)) + b @ own @ b.T - cross - cross.T)


def test_finite_time_moves_the_location_with_the_scale():
    locs = {}
    for v in (0.5, 2.0):
        law = _trained(PointMass(v)).all_layers(NEW, time=3.0)
        locs[v], covariance = _by_exponential(v, 3.0)
        assert_allclose(law.mean, locs[v], rtol=1e-9)
        tril = law.scale_trils[0]
        assert_allclose(v * tril @ tril.T, covariance, rtol=1e-7)
    assert np.all(np.abs(locs[0.5] - locs[2.0]) > 0.15)
    # A mixture of the two by draws: total variance.
    law = _trained(Draws(jnp.array([0.5, 2.0]))).all_layers(NEW, time=3.0)
    both = [_by_exponential(v, 3.0) for v in (0.5, 2.0)]
    mean = (both[0][0] + both[1][0]) / 2
    variance = sum(np.diag(c) + (m - mean) ** 2 for m, c in both) / 2
    assert_allclose(law.mean, mean, rtol=1e-9)
    assert_allclose(law.variance, variance, rtol=1e-9)


@pytest.mark.slow
def test_mean_over_the_law_of_the_scale():
    law = _trained(IG).all_layers(NEW, time=3.0)
    v = 1.5 / stats.gamma(2.5).ppf((np.arange(400) + 0.5) / 400)  # equal shares of the law
    truth = np.mean([_by_exponential(s, 3.0)[0] for s in v], axis=0)
    assert_allclose(law.mean, truth, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("time", [None, 0.3])
def test_covariances_are_positive(time):
    points = np.concatenate([X, NEW, np.random.default_rng(2).normal(size=(15, 2))])
    law = _trained(PointMass(1.0)).all_layers(points, time=time)
    tril = law.scale_tril if time is None else law.scale_trils[0]
    assert np.all(np.isfinite(tril))
    if time is None:
        assert_allclose(law.mean[:3], Y, rtol=1e-7)
        assert_allclose(law.variance[:3], 0, atol=1e-10)


@pytest.mark.slow
def test_outputs_share_the_scale():
    y = np.stack([Y, 0.5 - Y], axis=1)
    law = _trained(PointMass(1.5), y).all_layers(NEW, time=3.0)
    assert law.event_shape == (4,)
    # Loss is the mean over rows and outputs: with two it takes twice the time.
    single = _trained(PointMass(1.5)).all_layers(NEW, time=1.5)
    assert_allclose(law.mean[:2], single.mean, rtol=1e-9)


WRONG = {
    "noise. of the process must be 0": lambda: Trained(ScaleMixture(NET, IG, 0.1), X, Y),
    "improper": lambda: _trained(Jeffreys()),
    "time. must be at least 0": lambda: _trained(IG).all_layers(NEW, time=-1.0),
    "y. must have shape": lambda: _trained(IG, Y[:2]),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


def _last_layers(width, num, key):
    """Values at one new point of networks whose readout was trained to the end, exactly."""
    points = jnp.concatenate([X, NEW[:1]])

    def one(key):
        key_scale, key_net = jr.split(key)
        scale = jnp.sqrt(2.0 / jr.gamma(key_scale, 2.0))
        made = NET.network(width, 2, key=key_net)
        hidden = type(made)(made.layers[:-1])
        features = jax.vmap(hidden)(points) / jnp.sqrt(width)
        weights = made.layers[-1].weight[0]
        start = scale * features @ weights
        # Gradient descent moves the weights within the span of the features of the rows.
        gram = features @ features[:3].T
        return start[3] + gram[3] @ jnp.linalg.solve(gram[:3], jnp.asarray(Y) - start[:3])

    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))
    return np.asarray(run(jr.split(key, num)))


def _distance(width, num, key):
    law = _trained(InverseGamma(2.0, 2.0)).last_layer(NEW[:1])
    scale = float(law.scale_tril[0, 0])
    limit = stats.t(4, loc=float(law.loc[0]), scale=scale)
    return stats.kstest(_last_layers(width, num, key), limit.cdf).statistic


@pytest.mark.slow
def test_finite_networks_with_a_trained_readout(key):
    # 20,000 draws of the law itself are farther than 0.0096 off in one case of twenty.
    assert _distance(256, 20_000, key) < 0.02
    assert _distance(64, 20_000, key) > 0.02  # so the test could have failed


@pytest.mark.slow
@pytest.mark.parametrize("v", [0.5, 2.0])
def test_finite_networks_trained_by_gradient_descent(key, v):
    width, num, time, steps = 256, 100, 3.0, 150

    def one(key):
        made = NET.network(width, 2, key=key)
        weights, rest = eqx.partition(made, eqx.is_inexact_array)

        def outputs(weights, x):
            return np.sqrt(v) * jax.vmap(eqx.combine(weights, rest))(x)[:, 0]

        def loss(weights):
            return jnp.mean((outputs(weights, jnp.asarray(X)) - Y) ** 2) / 2

        def step(_, weights):
            slope = jax.grad(loss)(weights)
            return jax.tree.map(lambda w, g: w - time / steps * g, weights, slope)

        return outputs(jax.lax.fori_loop(0, steps, step, weights), jnp.asarray(NEW))

    found = np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=10))(jr.split(key, num))
    )
    loc, covariance = _by_exponential(v, time)
    error = found.std(0) / np.sqrt(num)
    # Finite width and finite steps move the mean by about a hundredth of the targets.
    assert np.all(np.abs(found.mean(0) - loc) < 4.5 * error + 0.03)
    assert_allclose(found.var(0), np.diag(covariance), rtol=4.5 * np.sqrt(2 / num) + 0.1)
