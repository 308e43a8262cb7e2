"""Models whose data depend on each other given a draw, and what a model says of itself."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh

Y = np.array([0.5, -1.0, 2.0])


class Shared(wh.Model):
    """Three numbers of one mean that is integrated out; so they depend on each other."""

    size: Any = wh.latent(dist.HalfNormal(1.0))

    def _covariance(self):
        return self.size**2 * jnp.ones((3, 3)) + jnp.eye(3)

    def likelihood(self):
        return dist.MultivariateNormal(jnp.zeros(3), self._covariance())

    def predict_given(self, y, inputs, new_inputs, *, key):
        return y + 100.0

    def log_density_given_rest(self, y):
        precision = jnp.linalg.inv(self._covariance())
        own = jnp.diagonal(precision)
        return dist.Normal(y - precision @ y / own, 1 / jnp.sqrt(own)).log_prob(y)

    def review(self, y, *inputs):
        if np.max(y) > 50:
            raise ValueError("`y` is far too large.")
        return ("Three numbers say little.",) if np.max(y) > 10 else ()

    def explain(self, y, *inputs):
        return "The size is the reason."


@pytest.fixture
def posterior():
    target = wh.condition(Shared(), Y)
    return wh.Posterior.from_draws(target, {"size": np.array([[0.5, 1.0], [2.0, 0.1]])})


def test_posterior_predictive_draws_are_given_the_data(posterior):
    predicted = posterior.predict(key=jr.key(0))
    assert_array_equal(predicted, np.broadcast_to(Y + 100, (2, 2, 3)))
    tree = posterior.to_datatree(prior_draws=20)
    assert_array_equal(tree["posterior_predictive"]["y"].values, predicted)
    assert np.all(np.abs(tree["prior_predictive"]["y"].values) < 50)


def test_leave_one_out_densities_stand_for_the_pointwise_likelihood(posterior):
    terms = posterior.log_likelihood()["y"]
    assert terms.shape == (2, 2, 3)
    draw = Shared(size=2.0)
    whole = draw.likelihood().log_prob(Y)
    rest = dist.MultivariateNormal(jnp.zeros(2), draw._covariance()[1:, 1:]).log_prob(Y[1:])
    assert_allclose(terms[1, 0, 0], whole - rest, rtol=1e-10)
    # The target itself keeps the joint likelihood.
    assert posterior.target.num_data is None
    assert_allclose(posterior.target.pointwise(draw)["y"], whole)


class Mute(wh.Model):
    size: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self):
        return dist.MultivariateNormal(jnp.zeros(3), (1 + self.size) * jnp.eye(3))


def test_leave_one_out_is_refused_where_the_model_cannot_say():
    posterior = wh.Posterior.from_draws(wh.condition(Mute(), Y), {"size": np.ones((1, 4))})
    assert "log_likelihood" not in posterior.to_datatree(prior_draws=2).children
    with pytest.raises(ValueError, match="one number for all data.*log_density_given_rest"):
        posterior.to_datatree(groups=("log_likelihood",))


def test_remarks_are_said_and_listed():
    with pytest.warns(wh.InferenceWarning, match="say little"):
        target = wh.condition(Shared(), 10 * Y)
    report = wh.check(target, points=2)
    assert report.ok
    assert report.remarks == ("Three numbers say little.",)
    assert "remark: Three numbers" in str(report)
    with pytest.raises(ValueError, match="far too large"):
        wh.condition(Shared(), 100 * Y)


def test_a_likelihood_that_is_not_finite_is_explained():
    target = wh.condition(Shared(size=1e200), Y)
    said = str(wh.check(target, points=2))
    assert "problem: The size is the reason." in said
