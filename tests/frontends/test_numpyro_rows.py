"""Plates with `subsample_size`: their rows are data rows, latents inside are local."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.core._data import log_density_estimate, minibatches
from whence.testing import compare_moments

N = 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=N)
Y = 1.0 + X + 0.5 * RNG.normal(size=N)


def line(x, y, size=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N, subsample_size=size) as rows:
        numpyro.sample("y", dist.Normal(1.0 + slope * x[rows], 0.5), obs=y[rows])


def by_subsample(x, y, size=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", N, subsample_size=size):
        x, y = (numpyro.subsample(v, event_dim=0) for v in (x, y))
        numpyro.sample("y", dist.Normal(1.0 + slope * x, 0.5), obs=y)


def effects(x, y, size=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("row", N, subsample_size=size) as rows:
        u = numpyro.sample("u", dist.LogNormal(0.0, scale))  # local, with a Jacobian
        numpyro.sample("y", dist.Normal(u + x[rows], 0.5), obs=y[rows])


@pytest.mark.parametrize("fn", [line, by_subsample, effects])
def test_rows_of_a_subsampled_plate(fn, key):
    target = wh.from_numpyro(fn, X, Y, size=3)
    whole = wh.from_numpyro(fn, X, Y)
    assert target.num_data == N
    assert whole.num_data is None
    position = target.init(key=key)
    assert position.keys() == whole.init(key=key).keys()
    density = whole.log_density(position)
    assert_allclose(target.log_density(position), density, rtol=1e-12)
    total = target.log_prior(position) + target.log_likelihood(position).sum()
    assert_allclose(total, density, rtol=1e-12)
    assert target.log_likelihood(position).shape == (N,)
    # The estimates of all batches of an epoch have the density as their mean.
    batches = RNG.permutation(N).reshape(4, 3)
    estimates = [log_density_estimate(target, position, jnp.asarray(b)) for b in batches]
    assert np.ptp(estimates) > 0.01
    assert_allclose(np.mean(estimates), density, rtol=1e-12)
    assert minibatches(target, 3).num_data == N
    assert target.local == (("u",) if fn is effects else ())
    if fn is effects:
        rows = jnp.asarray([7, 2])
        shared, own = target.log_joint_rows(target.at_rows(position, rows), rows)
        draw = target.constrain(position)
        law, u = dist.LogNormal(0.0, draw["scale"]), draw["u"][rows]
        expected = law.log_prob(u) + jnp.log(u)
        expected += dist.Normal(u + X[rows], 0.5).log_prob(Y[rows])
        assert_allclose(own, expected, rtol=1e-10)
        scale = draw["scale"]
        assert_allclose(shared, dist.HalfNormal(1.0).log_prob(scale) + jnp.log(scale))


def test_which_arrays_belong_to_rows_is_worked_out_and_said():
    def centred(x, y, weights):  # of `weights` all entries count for each row
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N, subsample_size=3) as rows:
            mean = slope * (x[rows] - weights.mean())
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=y[rows])

    target = wh.from_numpyro(centred, X, y=Y, weights=X**2)
    assert target.row_arrays == ("x", "y")
    assert "data: 12 rows, of which a batch takes: x, y" in wh.check(target).latents


def test_minibatches_of_a_numpyro_model(key):
    """The posterior of the slope is Gaussian."""
    target = wh.from_numpyro(line, X, Y, size=3)
    precision = 1.0 + (X**2).sum() / 0.25
    mean = (X * (Y - 1.0)).sum() / 0.25 / precision
    engine = wh.BBVI(family=wh.MeanField(), steps=1500, batch_size=6)
    posterior = wh.infer(target, engine, key=key)
    truth = {"slope": (mean, precision**-0.5)}
    compare_moments(posterior.variables, truth, bias=0.1).check()


def test_predictions_at_new_rows_draw_local_latents_anew(key):
    def model(x, y=None):
        with numpyro.plate("row", len(x), subsample_size=2) as rows:
            u = numpyro.sample("u", dist.Normal(3.0, 1.0))
            data = None if y is None else y[rows]
            numpyro.sample("y", dist.Normal(u + x[rows], 0.1), obs=data)
        numpyro.sample("c", dist.Normal(0.0, 1.0))

    target = wh.from_numpyro(model, X, Y)
    draws = {"u": np.full((1, 2000, N), 99.0), "c": np.zeros((1, 2000))}
    posterior = wh.Posterior.from_draws(target, draws)
    drawn = posterior.predict(np.array([0.0, 1.0]), key=key)
    assert_allclose(drawn.mean((0, 1)), [3.0, 4.0], atol=4.5 * np.sqrt(1.01 / 2000))
    assert (posterior.predict(key=key) > 90).all()


def test_other_models_have_no_rows():
    def outside(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", N, subsample_size=3) as rows:
            numpyro.sample("y", dist.Normal(slope * x[rows], 0.5), obs=y[rows])
        numpyro.sample("z", dist.Normal(slope, 1.0), obs=0.3)

    target = wh.from_numpyro(outside, X, Y)
    assert target.num_data is None
    position = {"slope": jnp.asarray(0.2)}
    expected = dist.Normal(0.0, 1.0).log_prob(0.2) + dist.Normal(0.2, 1.0).log_prob(0.3)
    expected += dist.Normal(0.2 * X, 0.5).log_prob(Y).sum()
    assert_allclose(target.log_density(position), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="with all observed sites inside"):
        target.log_likelihood(position, jnp.arange(2))
    with pytest.raises(ValueError, match="`batch_size` needs a target"):
        wh.infer(target, wh.SGLD(batch_size=3, steps=20), key=jax.random.key(0))
