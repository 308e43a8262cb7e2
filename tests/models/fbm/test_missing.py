"""Vectors of which a part was not observed, where the path is not integrated out."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal, norm

import whence as wh
from whence.models import fbm
from whence.models.fbm._path import datum_term

COV = np.array([[1.0, 0.8], [0.8, 2.0]])


class Correlated(fbm.FractionalSDE):
    """Two components, seen with errors that are correlated, or have heavy tails."""

    noise: fbm.FractionalNoise = fbm.FractionalNoise(0.7)
    heavy: bool = eqx.field(default=False, kw_only=True)

    def initial(self):
        return dist.Normal(jnp.array([1.0, -1.0]), 0.5)

    def drift(self, t, x):
        return -x

    def diffusion(self, t, x):
        return 0.7

    def observe(self, x):
        if self.heavy:
            return dist.MultivariateStudentT(5.0, x, jnp.linalg.cholesky(jnp.asarray(COV)))
        return dist.MultivariateNormal(x, jnp.asarray(COV))


def test_what_is_known_of_a_vector_counts():
    x = np.array([0.3, -0.4])
    y = np.array([[0.5, np.nan], [np.nan, np.nan], [0.2, 0.1], [np.nan, 0.9]])
    both = multivariate_normal(x, COV).logpdf([0.2, 0.1])
    want = [norm(0.3, 1.0).logpdf(0.5), 0.0, both, norm(-0.4, 2**0.5).logpdf(0.9)]
    for row, exact in zip(y, want):
        seen = ~np.isnan(row)
        got = datum_term(
            Correlated(), jnp.asarray(x), jnp.where(seen, row, 7.0), jnp.asarray(seen)
        )
        assert_allclose(got, exact, rtol=1e-9, atol=1e-12)


def test_a_part_of_another_vector_is_refused():
    y, times = np.array([[0.5, np.nan], [0.2, 0.1]]), np.array([0.0, 1.0])
    wh.condition(Correlated(steps=4), y, times)
    with pytest.raises(ValueError, match="`y` must be missing as a whole .* MultivariateStud"):
        wh.condition(Correlated(heavy=True, steps=4), y, times)
