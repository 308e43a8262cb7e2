"""Minibatches are refused where the likelihood is no product over rows."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.core._rows import check_rows

N = 50
X = np.linspace(-1.0, 1.0, N)


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x, 1.0)


class Volatility(wh.Model):
    """Each row's scale depends on the rows before it."""

    a: Any = wh.latent(dist.Beta(2.0, 2.0))

    def log_likelihood(self, y):
        def step(s, v):
            return 0.5 + self.a * v**2, dist.Normal(0.0, jnp.sqrt(s)).log_prob(v)

        return jax.lax.scan(step, jnp.ones(()), y)[1]


class PerRow(wh.Model):
    theta: Any = wh.latent(dist.Normal(0.0, 1.0), shape=(N,))

    def likelihood(self, x):
        return dist.Normal(self.theta * x, 1.0)


def test_product_over_rows_is_accepted():
    check_rows(wh.condition(Line(), X, X), 7)


def test_time_series_is_refused():
    target = wh.condition(Volatility(), X)
    assert target.num_data == N  # one entry per row, and yet no product
    check_rows(target, None)
    with pytest.raises(ValueError, match="time series"):
        check_rows(target, 7)
    with pytest.raises(ValueError, match="time series"):
        wh.infer(target, wh.SGLD(batch_size=7, steps=10), key=jr.key(0))
    with pytest.raises(ValueError, match="time series"):
        wh.infer(target, wh.BBVI(batch_size=7, steps=10), key=jr.key(0))


class Centred(wh.Model):
    """What a mean over the batch couples; whether its order is that of the data or not."""

    mu: Any = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        return dist.Normal(self.mu, 1.0).log_prob(y - y.mean())


class Standardised(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        return dist.Normal(self.mu, 1.0).log_prob((y - y.mean()) / y.std())  # NaN of one row


class RareCounts(wh.Model):
    """Only the rows after the few that are not zero show that they see each other."""

    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        before = jnp.concatenate([jnp.zeros(1), y[:-1].astype(float)])
        return dist.Poisson(jnp.exp(self.a * before)).log_prob(y)


class SumOfLocals(wh.Model):
    """A prior of a latent of all rows that sees those of each."""

    u: Any = wh.latent(dist.Normal(0.0, 1.0), local=True)
    z: Any = wh.latent(lambda m: dist.Normal(m.u.mean(), 1.0))

    def likelihood(self):
        return dist.Normal(self.u + self.z, 1.0)


@pytest.mark.parametrize("size", [1, 2 * N])
@pytest.mark.parametrize("model", [Centred, Standardised, RareCounts, SumOfLocals])
def test_what_couples_rows_without_order_is_refused(model, size):
    """All rows with replacement, and single rows, mean something else than all rows."""
    y = (np.arange(N) == 20).astype(int) if model is RareCounts else X + X**2
    with pytest.raises(ValueError, match="which other rows"):
        check_rows(wh.condition(model(), y), size)


def test_local_latents_that_are_fixed_are_taken_by_row():
    class Offset(wh.Model):
        u: Any = wh.latent(dist.Normal(0.0, 1.0), local=True)
        slope: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self, x):
            return dist.Normal(self.u + self.slope * x, 1.0)

    target = wh.condition(Offset(u=X**2), X, X)
    check_rows(target, 7)
    rows, position = jnp.asarray([4, 1]), {"slope": jnp.asarray(0.3)}
    expected = dist.Normal(X**2 + 0.3 * X, 1.0).log_prob(X)[rows]
    assert_allclose(target.log_likelihood(position, rows), expected, rtol=1e-6)


def test_latent_per_row_is_refused():
    with pytest.raises(ValueError, match="one latent per row"):
        check_rows(wh.condition(PerRow(), X, X), 7)


@pytest.mark.parametrize("engine", [wh.SGLD, wh.BBVI])
@pytest.mark.parametrize(("model", "inputs"), [(Volatility(), ()), (PerRow(), (X,))])
def test_a_batch_of_all_rows_is_checked_too(model, inputs, engine):
    """It is permuted, which dependent rows do not survive."""
    target = wh.condition(model, X, *inputs)
    engine(batch_size=None, steps=20).validate(target)
    with pytest.raises(ValueError, match="`batch_size` needs a likelihood"):
        engine(batch_size=N, steps=20).validate(target)
