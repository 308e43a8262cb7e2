"""Predictions for groups that a fit never saw, against moments of their prior."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh

DRAWS = 20_000
TAU, NOISE = 0.8, 0.3
RNG = np.random.default_rng(3)
G = np.array(["a", "b", "c", "a"])
Y = np.array([1.0, 2.0, 3.0, 4.0])


class Groups(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, TAU), dims="g")
    twice: Any = wh.latent(
        lambda m: dist.Normal(2.0 * m.theta, 0.1), dims="g", noncentered=True
    )

    def likelihood(self, g):
        return dist.Normal(self.twice[g], NOISE)


def fit(model=Groups, **coords):
    target = wh.condition(model(coords=coords), Y, wh.categories(G, name="g"))
    mu = 5.0 + 0.5 * RNG.normal(size=(2, DRAWS // 2))
    theta = np.broadcast_to([10.0, 20.0, 30.0], (*mu.shape, 3))
    draws = {"mu": mu, "theta": theta, "twice": 2 * theta}
    return wh.Posterior.from_draws(target, draws)


def test_new_groups_are_drawn_from_their_prior_given_each_draw(key):
    posterior = fit()
    new = ["x", "a", "x", "w", "c"]
    drawn = posterior.predict(new, key=key, new_groups="prior").reshape(DRAWS, 5)
    # Given a draw: theta ~ N(mu, TAU), twice ~ N(2 theta, 0.1), and mu has 5 and 0.5.
    shared = 4.0 * 0.5**2  # of all new groups
    group = 4.0 * TAU**2 + 0.1**2
    cov = np.diag(np.full(5, NOISE**2))
    for i, j in np.ndindex(5, 5):
        if {i, j} <= {0, 2, 3}:
            cov[i, j] += shared + group * (new[i] == new[j])
    sd = np.sqrt(np.diag(cov))
    mean = np.array([10.0, 20.0, 10.0, 10.0, 60.0])
    assert_array_equal(np.abs(drawn.mean(0) - mean) < 4.5 * sd / np.sqrt(DRAWS), True)
    error = np.sqrt((np.outer(sd**2, sd**2) + cov**2) / DRAWS)
    assert_array_equal(np.abs(np.cov(drawn.T) - cov) < 4.5 * error, True)
    # Old groups alone need no new ones.
    old = posterior.predict(["b"], key=key, new_groups="prior")
    assert_allclose(old.mean(), 40.0, atol=4.5 * NOISE / np.sqrt(DRAWS))


def test_new_numbers_of_groups_and_the_predictions_group(key):
    target = wh.condition(Groups(coords={"g": 3}), Y, np.array([0, 1, 2, 0]))
    theta = np.zeros((1, 400, 3))
    draws = {"mu": np.full((1, 400), 7.0), "theta": theta, "twice": theta}
    posterior = wh.Posterior.from_draws(target, draws)
    drawn = posterior.predict(np.array([9, 0, 5]), key=key, new_groups="prior")
    sd = np.sqrt(4 * TAU**2 + 0.1**2 + NOISE**2)
    assert_allclose(drawn[..., [0, 2]].mean((0, 1)), 14.0, atol=4.5 * sd / 20)
    assert_allclose(drawn[..., 1].mean(), 0.0, atol=4.5 * NOISE / 20)
    tree = posterior.to_datatree(
        groups=("predictions", "predictions_constant_data"),
        inputs={"g": np.array([9, 0, 5])},
        new_groups="prior",
    )
    assert tree["predictions"]["y"].shape == (1, 400, 3)
    assert_array_equal(tree["predictions_constant_data"]["g"], [4, 0, 3])


class Walk(Groups):
    theta: Any = wh.latent(lambda m: dist.GaussianRandomWalk(1.0, len(m.coords["g"])), dims="g")
    twice: Any = wh.latent(dist.Normal(0.0, 1.0), dims="g")


class Covariate(Groups):
    size: Any = None
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu * m.size, TAU), dims="g")
    twice: Any = wh.latent(dist.Normal(0.0, 1.0), shape=3)


class Free(wh.Model):
    theta: Any = wh.latent(dist.Normal(0.0, 1.0), shape=3)

    def likelihood(self, g):
        return dist.Normal(self.theta[g], NOISE)


def small(model):
    target = wh.condition(model, Y, wh.categories(G, name="g"))
    drawn = {s.name: np.zeros((1, 2, *s.shape)) for s in target.sites}
    return wh.Posterior.from_draws(target, drawn)


@pytest.mark.parametrize(
    ("model", "new_groups", "message"),
    [
        (Groups(), None, r"`g`\) must have labels of axis 'g'.*got 'x'.*new_groups=\"prior\""),
        (Groups(), "mean", "`new_groups` must be one of 'prior'"),
        (Walk(coords={"g": 3}), "prior", "`theta` cannot be drawn.*one distribution over all"),
        (Covariate(size=jnp.ones(3)), "prior", "needs something of each group.*`theta`"),
        (Free(), "prior", "No latent takes its shape from axis 'g'"),
    ],
)
def test_new_groups_that_cannot_be_are_told(model, new_groups, message, key):
    with pytest.raises(ValueError, match=message):
        small(model).predict(["x"], key=key, new_groups=new_groups)


def counties(g, n, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("county", n):
        theta = numpyro.sample("theta", dist.Normal(mu, TAU))
    numpyro.sample("y", dist.Normal(theta[g], NOISE), obs=y)


def test_a_longer_plate_of_a_numpyro_model(key):
    g = np.array([0, 1, 2, 0])
    target = wh.from_numpyro(counties, g, 3, y=Y)
    mu = np.full((1, DRAWS), 5.0)
    theta = np.broadcast_to([10.0, 20.0, 30.0], (1, DRAWS, 3))
    posterior = wh.Posterior.from_draws(target, {"mu": mu, "theta": theta})
    drawn = posterior.predict(np.array([4, 1, 4]), 5, key=key, new_groups="prior")[0]
    variance = np.array([TAU**2 + NOISE**2, NOISE**2, TAU**2 + NOISE**2])
    error = 4.5 * np.sqrt(variance / DRAWS)
    assert_array_equal(np.abs(drawn.mean(0) - [5.0, 20.0, 5.0]) < error, True)
    error = 4.5 * np.sqrt((variance[0] ** 2 + TAU**4) / DRAWS)
    assert_allclose(np.cov(drawn.T)[0, 2], TAU**2, atol=error)
    with pytest.raises(ValueError, match="'theta' has shape .3,.*asks for .5,.*new_groups"):
        posterior.predict(np.array([4, 1, 4]), 5, key=key)
    with pytest.raises(ValueError, match="'theta' has shape .3,.*asks for .2,"):
        posterior.predict(np.array([1]), 2, key=key, new_groups="prior")


def test_tables_with_new_groups(key):
    class Tables(Groups):
        def likelihood(self, table):
            return dist.Normal(self.twice[table["g"]], NOISE)

    table = pd.DataFrame({"g": G})
    target = wh.condition(Tables(), Y, table)
    theta = np.zeros((1, 50, 3))
    posterior = wh.Posterior.from_draws(
        target, {"mu": np.full((1, 50), 99.0), "theta": theta, "twice": theta}
    )
    drawn = posterior.predict(pd.DataFrame({"g": ["b", "new"]}), key=key, new_groups="prior")
    assert (drawn[..., 0] < 10).all()
    assert (drawn[..., 1] > 100).all()
