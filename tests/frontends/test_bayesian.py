"""Modules as models: closed forms, heads by hand, priors by rule, engines, messages."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpy.testing import assert_allclose

import whence as wh
from whence.core import _cache
from whence.testing import check_model, compare_moments

RNG = np.random.default_rng(20261120)
X = RNG.normal(size=(30, 3))
Y = 0.4 + X @ np.array([1.0, -0.7, 0.2]) + 0.5 * RNG.normal(size=30)
SCALE, BIAS, NOISE = 0.8, 1.5, 0.5


def linear(key, size: Any = 1):
    return eqx.nn.Linear(3, size, key=key)


def mlp(key, outputs: Any = 1, inputs=3):
    return eqx.nn.MLP(inputs, outputs, 4, 1, activation=jnp.tanh, key=key)


NETWORKS = {outputs: mlp(jr.key(0), outputs) for outputs in (1, 2, 3)}


def forward(values, x):
    """The network `mlp` in NumPy."""
    hidden = np.tanh(x @ values["layers.0.weight"].T + values["layers.0.bias"])
    return hidden @ values["layers.1.weight"].T + values["layers.1.bias"]


@pytest.fixture(scope="module")
def conjugate():
    prior = {"*weight": dist.Normal(0.0, SCALE), "*bias": dist.Normal(0.0, BIAS)}
    bnn = wh.bayesian(linear(jr.key(0)), prior, likelihood=wh.regression(NOISE))
    return wh.condition(bnn, Y, X)


def closed_form():
    """Mean, covariance and log evidence of (weight, bias)."""
    design = np.column_stack([X, np.ones(len(X))])
    prior = np.diag([SCALE**2] * 3 + [BIAS**2])
    precision = design.T @ design / NOISE**2 + np.linalg.inv(prior)
    covariance = np.linalg.inv(precision)
    mean = covariance @ design.T @ Y / NOISE**2
    marginal = design @ prior @ design.T + NOISE**2 * np.eye(len(X))
    return mean, covariance, st.multivariate_normal(cov=marginal).logpdf(Y)


# Against closed forms.


@pytest.fixture(scope="module")
def posterior(conjugate):
    return wh.infer(conjugate, wh.NUTS(chains=2, draws=1000, warmup=500), key=jr.key(1))


def test_conjugate_regression(posterior):
    mean, covariance, _ = closed_form()
    draws = np.concatenate([posterior["weight"][..., 0, :], posterior["bias"]], axis=-1)
    white = (draws - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    rows, cols = np.triu_indices(4, 1)
    cross = white[..., rows] * white[..., cols]
    truth = {"white": (np.zeros(4), np.ones(4)), "cross": (np.zeros(6), np.ones(6))}
    compare_moments({"white": white, "cross": cross}, truth).check()


def test_prediction_is_that_of_the_closed_form(posterior, key):
    mean, covariance, _ = closed_form()
    new = np.array([[1.0, 0.0, -1.0], [2.0, 2.0, 2.0]])
    design = np.column_stack([new, np.ones(2)])
    sd = np.sqrt(np.einsum("ij,jk,ik->i", design, covariance, design) + NOISE**2)
    drawn = posterior.predict(new, key=key)
    assert drawn.shape == (2, 1000, 2)
    compare_moments({"y": drawn}, {"y": (design @ mean, sd)}).check()


@pytest.mark.slow
def test_evidence(conjugate):
    posterior = wh.infer(conjugate, wh.TemperedSMC(particles=1000), key=jr.key(2))
    error = posterior.log_evidence - closed_form()[2]
    assert posterior.log_evidence_error < 0.5
    assert abs(error) < 4.5 * posterior.log_evidence_error


# Heads against hand-written densities.

COUNTS = RNG.poisson(2.0, size=30)
LABELS = RNG.integers(3, size=30)
BINARY = RNG.integers(2, size=30)
PAIRS = RNG.normal(size=(30, 2))


def _multinomial(out):
    out = out - out.max(axis=1, keepdims=True)
    log_p = out - np.log(np.exp(out).sum(axis=1, keepdims=True))
    return log_p[np.arange(30), LABELS]


HEADS = {
    "fixed noise": (wh.regression(0.3), 1, Y, lambda o, s: st.norm(o[:, 0], 0.3).logpdf(Y)),
    "noise": (wh.regression(), 1, Y, lambda o, s: st.norm(o[:, 0], s).logpdf(Y)),
    "two outputs": (
        wh.regression(dist.HalfNormal(1.0)),
        2,
        PAIRS,
        lambda o, s: st.norm(o, s).logpdf(PAIRS).sum(axis=1),
    ),
    "noise by output": (
        wh.regression(np.array([0.3, 2.0])),
        2,
        PAIRS,
        lambda o, s: st.norm(o, [0.3, 2.0]).logpdf(PAIRS).sum(axis=1),
    ),
    "heteroscedastic": (
        wh.regression("output"),
        2,
        Y,
        lambda o, s: st.norm(o[:, 0], np.exp(o[:, 1])).logpdf(Y),
    ),
    "classes": (wh.classification(), 3, LABELS, lambda o, s: _multinomial(o)),
    "binary": (
        wh.classification(),
        1,
        BINARY,
        lambda o, s: st.bernoulli(1 / (1 + np.exp(-o[:, 0]))).logpmf(BINARY),
    ),
    "counts": (
        wh.poisson(),
        1,
        COUNTS,
        lambda o, s: st.poisson(np.exp(o[:, 0])).logpmf(COUNTS),
    ),
    "custom": (
        lambda out: dist.StudentT(4.0, out[:, 0], 0.5),
        1,
        Y,
        lambda o, s: st.t(4, o[:, 0], 0.5).logpdf(Y),
    ),
}


SOME = np.array([3, 3, 17])


@eqx.filter_jit
def _everything(target, key):
    """One program for all that is compared: compiling is most of the time here."""
    position = target.init(key=key)
    draw = target.constrain(position)
    return (
        target.variables(draw),
        jax.value_and_grad(target.log_density)(position),
        target.pointwise(draw)["y"],
        target.log_likelihood(position, jnp.asarray(SOME, jnp.int32)),
    )


@pytest.mark.parametrize("name", HEADS)
def test_density_is_the_hand_written_one(name, key):
    head, outputs, y, by_hand = HEADS[name]
    bnn = wh.bayesian(NETWORKS[outputs], dist.Normal(0.0, 0.7), likelihood=head)
    target = wh.condition(bnn, y, X)
    found = jax.tree.map(np.asarray, _everything(target, key))
    values, (density, gradient), pointwise, some = found
    sigma = values.get("sigma", np.nan)
    rows = by_hand(forward(values, X), sigma)
    prior = sum(
        st.norm(0, 0.7).logpdf(v).sum() for n, v in values.items() if n.startswith("layers")
    )
    if "sigma" in values:
        prior += st.halfnorm.logpdf(sigma) + np.log(sigma)
    assert_allclose(density, prior + rows.sum(), rtol=1e-9)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert_allclose(pointwise, rows, rtol=1e-9)
    assert target.num_data == 30
    assert_allclose(some, rows[SOME], rtol=1e-9)
    draw = jax.eval_shape(lambda: target.sample_prior(key=key))
    drawn = jax.eval_shape(lambda draw: target.predict(draw, None, key=key)["y"], draw)
    assert drawn.shape == y.shape


@pytest.mark.slow
def test_conformance(key):
    bnn = wh.bayesian(
        linear(key),
        {"*weight": dist.HalfNormal(1.0), "*": wh.FanIn(2.0)},
        likelihood=wh.regression(),
    )
    check_model(bnn, Y, X, key=key, points=2, prior_draws=5)


# A model like others.


def test_posterior(posterior, conjugate, tmp_path, key):
    assert set(posterior) == {"weight", "bias"}
    module = posterior.draws.module
    assert isinstance(module, eqx.nn.Linear)
    assert module.weight.shape == (2, 1000, 1, 3)
    outputs = posterior.map(lambda m: m(jnp.asarray(X))[:, 0])
    expected = np.einsum("cdi,ni->cdn", posterior["weight"][..., 0, :], X) + posterior["bias"]
    assert_allclose(outputs, expected)
    tree = posterior.to_datatree()
    assert set(tree.children) >= {"prior", "prior_predictive", "log_likelihood"}
    assert tree["log_likelihood"]["y"].shape == (2, 1000, 30)
    assert tree["constant_data"]["x"].shape == (30, 3)
    posterior.save(tmp_path / "bnn.nc")
    loaded = wh.load(tmp_path / "bnn.nc", target=conjugate)
    again = loaded.predict(X[:2], key=key)
    assert_allclose(again, posterior.predict(X[:2], key=key), rtol=1e-6)
    assert wh.check(conjugate).ok


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
def test_engines(conjugate, tmp_path):
    mean = closed_form()[0][:3]
    sgld = wh.infer(conjugate, wh.SGLD(batch_size=10, steps=2000), key=jr.key(3))
    assert np.abs(sgld["weight"].mean((0, 1))[0] - mean).max() < 0.3
    bbvi = wh.infer(conjugate, wh.BBVI(steps=2000), key=jr.key(4))
    assert np.abs(bbvi["weight"].mean((0, 1))[0] - mean).max() < 0.3
    engine = wh.NUTS(chains=1, warmup=20, draws=20)
    stored = wh.infer(conjugate, engine, key=jr.key(5), store=tmp_path / "run")
    again = wh.resume(tmp_path / "run", conjugate)
    np.testing.assert_array_equal(stored["weight"], again["weight"])


@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
def test_other_numbers_reuse_what_is_compiled(conjugate):
    engine = wh.NUTS(chains=1, warmup=20, draws=20)
    make = lambda scale, noise, shift: wh.condition(
        wh.bayesian(
            linear(jr.key(0)),
            {"*weight": dist.Normal(0.0, scale), "*bias": wh.FanIn(scale)},
            likelihood=wh.regression(dist.HalfNormal(noise)),
        ),
        Y + shift,
        X,
    )
    run = lambda target: wh.infer(target, engine, key=jr.key(0), throw=False).sample.positions
    first = run(make(1.0, 1.0, 0.0))
    before = _cache.traces
    second = run(make(0.5, 2.0, 1.0))
    assert _cache.traces == before
    assert not np.allclose(first["weight"], second["weight"])


def test_part_of_another_model(key):
    class Robust(wh.Model):
        net: wh.Model
        df: Any = wh.latent(dist.Gamma(2.0, 0.1))

        def likelihood(self, x):
            return dist.StudentT(self.df, self.net(x)[:, 0], 0.5)

    target = wh.condition(Robust(wh.bayesian(linear(key), dist.Normal())), Y, X)
    assert [s.name for s in target.sites] == ["net.weight", "net.bias", "df"]
    values = target.variables(target.constrain(target.init(key=key)))
    mean = X @ values["net.weight"][0] + values["net.bias"]
    prior = sum(st.norm.logpdf(values[n]).sum() for n in ("net.weight", "net.bias"))
    prior += st.gamma(2.0, scale=10.0).logpdf(values["df"]) + np.log(values["df"])
    expected = prior + st.t(values["df"], mean, 0.5).logpdf(Y).sum()
    assert_allclose(target.log_density(target.init(key=key)), expected)


def test_several_inputs(key):
    class Two(eqx.Module):
        weight: jax.Array

        def __call__(self, a, b):
            return self.weight @ a + b["shift"]

    bnn = wh.bayesian(Two(jnp.zeros(3)), dist.Normal(), likelihood=wh.regression(1.0))
    target = wh.condition(bnn, Y, X, {"shift": Y})
    draw = bnn.sample_prior(key)
    assert_allclose(draw(X, {"shift": Y}), X @ draw.values["weight"] + Y)
    assert target.num_data == 30
