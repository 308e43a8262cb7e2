"""Arguments that numpyro models see the numbers of, modules with random weights, forecasts."""

import argparse
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro import handlers
from numpyro.contrib.module import eqx_module, random_eqx_module, random_flax_module
from numpyro.infer import util

import whence as wh
from whence.core import _cache

X = np.linspace(-1.0, 1.0, 6)
G = np.array([3, 1, 3, 7, 1, 7])
Y = np.array([0.1, -0.4, 1.0, 0.3, 2.0, -1.0])


def grouped(x, group, y=None):
    names, codes = np.unique(group, return_inverse=True)
    with numpyro.plate("group", len(names)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    if x.shape[0] > 100:
        raise AssertionError
    numpyro.sample("y", dist.Normal(a[codes] + x, 0.5), obs=y)


def parity(target, fn, *args, **kwargs):
    position = target.init(key=jax.random.key(1))
    expected = -util.potential_energy(fn, args, kwargs, position)
    assert_allclose(target.log_density(position), expected, rtol=1e-9)


def test_arrays_whose_numbers_a_model_needs_are_held(key):
    target = wh.from_numpyro(grouped, X, G, y=Y)
    parity(target, grouped, X, G, y=Y)
    # Only what is needed is held: the others are data still.
    assert [leaf.shape for leaf in jax.tree.leaves(target) if eqx.is_array(leaf)] == [(6,)] * 2
    assert_array_equal(target.constant_data["group"], G)
    posterior = wh.Posterior.from_draws(target, {"a": np.tile([10.0, 20.0, 30.0], (1, 900, 1))})
    before = _cache.traces
    posterior.log_likelihood()
    traced = _cache.traces - before
    again = wh.from_numpyro(grouped, X, G.copy(), y=Y + 1.0)
    wh.Posterior.from_draws(again, {"a": np.zeros((1, 900, 3))}).log_likelihood()
    other = wh.from_numpyro(grouped, X, G[::-1].copy(), y=Y)  # other numbers: another program
    parity(other, grouped, X, G[::-1], y=Y)
    assert _cache.traces - before < 3 * traced + 6
    drawn = posterior.predict(np.zeros(4), np.array([7, 1, 3, 7]), key=key)
    assert_allclose(drawn.mean((0, 1)), [30.0, 10.0, 20.0, 30.0], atol=4.5 * 0.5 / 30)


def configured(args, x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, args.scale).expand([args.degree]))
    mean = sum(w[i] * x**i for i in range(args.degree))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_namespace_is_part_of_the_program(key):
    args = argparse.Namespace(scale=2.0, degree=3)
    target = wh.from_numpyro(configured, args, X, y=Y)
    parity(target, configured, args, X, y=Y)
    wider = wh.from_numpyro(configured, argparse.Namespace(scale=4.0, degree=3), X, y=Y)
    parity(wider, configured, argparse.Namespace(scale=4.0, degree=3), X, y=Y)
    posterior = wh.Posterior.from_draws(target, {"w": np.zeros((1, 4, 3))})
    assert posterior.predict(args, X[:2], key=key).shape == (1, 4, 2)
    assert posterior.predict(x=X[:2], key=key).shape == (1, 4, 2)


NET = eqx.nn.MLP(1, 1, 3, 1, activation=jnp.tanh, key=jax.random.key(0))


def network(x, y=None, prior=None):
    net = random_eqx_module("net", NET, prior=prior or dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jax.vmap(net)(x[:, None])[:, 0], 0.5), obs=y)


def test_random_equinox_modules(key):
    target = wh.from_numpyro(network, X, y=Y)
    parity(target, network, X, y=Y)
    names = [site.name for site in target.sites]
    assert names[:2] == ["net/layers[0].weight", "net/layers[0].bias"]
    prior = wh.prior_predictive(target, 20)
    assert prior["prior_predictive"]["y"].shape == (1, 20, 6)
    scoped = handlers.scope(network, prefix="outer")
    parity(wh.from_numpyro(scoped, X, y=Y), scoped, X, y=Y)
    some = {name.removeprefix("net/"): dist.Normal(0.0, 1.0) for name in names[:-1]}
    with pytest.raises(ValueError, match=r"`layers\[1\]\.bias` of module 'net' has no prior"):
        wh.from_numpyro(partial(network, prior=some), X, y=Y)


def series(y, future=0):
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(drift, 1.0), obs=y)
    if future:
        numpyro.deterministic("level", drift * jnp.arange(1.0, future + 1))
        numpyro.sample("ahead", dist.Normal(drift * jnp.arange(1.0, future + 1), 0.1))


def test_sites_that_exist_only_in_predictions(key):
    target = wh.from_numpyro(series, Y)
    posterior = wh.Posterior.from_draws(target, {"drift": np.full((1, 500), 2.0)})
    drawn = posterior.predict(Y, 3, key=key)
    assert list(drawn) == ["y", "ahead", "level"]
    assert_allclose(drawn["level"], np.broadcast_to([2.0, 4.0, 6.0], (1, 500, 3)))
    assert_allclose(drawn["ahead"].mean((0, 1)), [2.0, 4.0, 6.0], atol=4.5 * 0.1 / np.sqrt(500))
    tree = posterior.to_datatree(groups=("predictions",), inputs={"y": Y, "future": 3})
    assert tree["predictions"]["ahead"].shape == (1, 500, 3)


def tabled(table, y=None):
    with numpyro.plate("row", len(table)):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        mean = a + jnp.asarray(table["x"].to_numpy())
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table_is_given_to_the_model_as_it_is(library):
    """As numpyro does: not a matrix, nor a dict, whose length is that of its columns."""
    make = pytest.importorskip(library).DataFrame
    table = make({"x": X, "group": G})
    target = wh.from_numpyro(tabled, table, y=Y)
    position = {"a": jnp.asarray(X**2)}
    expected = -util.potential_energy(tabled, (table,), {"y": Y}, position)
    assert_allclose(target.log_density(position), expected, rtol=1e-14)
    draws = {"a": np.zeros((1, 5, 6))}
    posterior = wh.Posterior.from_draws(target, draws)
    assert posterior.predict(make({"x": X + 100.0}), key=0).min() > 90.0
    other = wh.from_numpyro(tabled, make({"x": X + 1.0, "group": G}), y=Y)
    assert not np.isclose(other.log_density(position), expected)

    def scaled(table):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal()) * table["x"], 1.0))

    with pytest.raises((ValueError, TypeError)) as refused:  # as numpyro does
        wh.from_numpyro(scaled, table)
    assert any("to_numpy" in note for note in refused.value.__notes__)


def test_modules_without_priors_and_with_a_state_are_refused():
    def estimated(x):
        net = eqx_module("net", NET)
        level = numpyro.sample("level", dist.Normal())
        numpyro.sample("y", dist.Normal(level + jax.vmap(net)(x[:, None])[:, 0], 0.5), obs=Y)

    with pytest.raises(ValueError, match="parameters of module 'net'.*`random_eqx_module`"):
        wh.from_numpyro(estimated, X)

    def counting():
        numpyro.primitives.mutable("state", {"count": jnp.zeros(())})
        numpyro.sample("y", dist.Normal(numpyro.sample("level", dist.Normal())), obs=Y)

    with pytest.raises(ValueError, match="'state'.*`numpyro.mutable`.*layers without state"):
        wh.from_numpyro(counting)


def topics(docs, size=None):
    """ProdLDA (Srivastava and Sutton 2017, arXiv:1703.01488), without its normalisation."""
    linen = pytest.importorskip("flax.linen")
    net = linen.Dense(docs.shape[1], use_bias=False)
    decode = random_flax_module("decoder", net, dist.Normal(), input_shape=(1, 3))
    with numpyro.plate("document", len(docs), subsample_size=size):
        rows = numpyro.subsample(docs, event_dim=1)
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(3)))
        law = dist.Multinomial(rows.sum(-1), logits=decode(theta))
        numpyro.sample("word", law, obs=rows)


def test_random_flax_modules_under_a_plate_of_some_rows():
    pytest.importorskip("flax")
    docs = np.random.default_rng(0).poisson(1.0, (7, 5))
    target = wh.from_numpyro(topics, docs, size=4)
    parity(target, topics, docs)
    assert [site.name for site in target.sites] == ["decoder/kernel", "theta"]
    assert (target.num_data, target.local) == (7, ("theta",))


def test_models_without_continuous_latents_are_refused():
    def flags():
        with numpyro.plate("row", len(Y)):
            flag = numpyro.sample("flag", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(flag, 1.0), obs=Y)

    with pytest.raises(ValueError, match="discrete ones only .'flag'.*infer_discrete=True"):
        wh.from_numpyro(flags)
    with pytest.raises(ValueError, match="got none: is a `numpyro.sample` without `obs=`"):
        wh.from_numpyro(lambda: numpyro.sample("y", dist.Normal(), obs=1.0))
