"""Vectors of which a part was not observed, where states are not integrated out by Kalman."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import whence as wh

Y = np.array([[1.2, 0.7], [np.nan, -0.4], [np.nan, np.nan], [-2.0, np.nan]])
COV = np.array([[1.0, 0.8], [0.8, 2.0]])


def log_prob_of_seen(y, x):
    """Of one time, given a state."""
    seen = ~np.isnan(y)
    if not seen.any():
        return 0.0
    mean = x * np.array([1.0, 2.0])[seen]
    return multivariate_normal(mean, COV[np.ix_(seen, seen)]).logpdf(y[seen])


class Walk(wh.StateSpaceModel):
    """A random walk, seen twice with errors that are correlated."""

    def initial(self):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, t):
        return dist.Normal(x, 1.0)

    def emission(self, x, t):
        return dist.MultivariateNormal(x * jnp.array([1.0, 2.0]), jnp.asarray(COV))


class Switch(Walk):
    """The same with states 0 and 1."""

    def initial(self):
        return dist.Categorical(jnp.array([0.5, 0.5]))

    def transition(self, x, t):
        return dist.Categorical(jnp.array([[0.9, 0.1], [0.3, 0.7]])[x])


class Heavy(Walk):
    """The same with heavy tails."""

    def emission(self, x, t):
        root = jnp.linalg.cholesky(jnp.asarray(COV))
        return dist.MultivariateStudentT(5.0, x * jnp.array([1.0, 2.0]), root)


def test_a_path_that_is_a_latent_has_the_density_of_what_was_observed():
    target = wh.condition(Walk(exact=False), Y)
    path = np.array([0.3, -1.0, 0.5, 2.0])
    given = lambda path: target.log_likelihood({"states": path})
    want = [log_prob_of_seen(y, x) for y, x in zip(Y, path)]
    assert_allclose(jax.jit(given)(path), want, rtol=1e-9)


def test_a_finite_chain_has_the_evidence_of_what_was_observed():
    target = wh.condition(Switch(), Y)
    move, alpha = np.log([[0.9, 0.1], [0.3, 0.7]]), np.log([0.5, 0.5])
    for t, y in enumerate(Y):
        alpha = alpha if t == 0 else logsumexp(alpha[:, None] + move, axis=0)
        alpha = alpha + [log_prob_of_seen(y, x) for x in (0, 1)]
    assert_allclose(jax.jit(lambda: target.log_likelihood({}))(), logsumexp(alpha), rtol=1e-9)


def test_a_part_of_another_vector_is_refused(key):
    with pytest.raises(
        ValueError, match="`y` must be missing as a whole .* MultivariateStudentT"
    ):
        wh.condition(Heavy(), Y)
    target = wh.condition(Heavy(), Y[[0, 2]])
    settings = wh.ParticleFilter(particles=10)
    state = settings.start(target, key=key)
    with pytest.raises(wh.InferenceError):
        settings.update(state, Y[1])
