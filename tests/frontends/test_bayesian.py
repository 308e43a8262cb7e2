"""Modules as models: closed forms, heads by hand, priors by rule, engines, messages."""

import math
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


# Priors.


class Holder(eqx.Module):
    parts: dict

    def __call__(self, x):
        return sum(part(x) for part in self.parts.values())


def test_fan_in():
    key = jr.key(0)
    parts = {
        "linear": eqx.nn.Linear(5, 2, key=key),
        "scalar": eqx.nn.Linear("scalar", 2, key=key),
        "stacked": eqx.filter_vmap(lambda k: eqx.nn.Linear(5, 2, key=k))(jr.split(key, 4)),
        "conv": eqx.nn.Conv2d(6, 4, (3, 5), groups=2, key=key),
        "transpose": eqx.nn.ConvTranspose1d(6, 4, 3, key=key),
        "embedding": eqx.nn.Embedding(9, 4, key=key),
        "gru": eqx.nn.GRUCell(7, 4, key=key),
        "norm": eqx.nn.LayerNorm((4, 4)),
    }
    model = wh.bayesian(Holder(parts), wh.FanIn(3.0))
    priors = dict(zip(model.names, model.priors))
    expected = {
        "linear.weight": (0, 5),
        "linear.bias": (0, 1),
        "scalar.weight": (0, 1),
        "stacked.weight": (0, 5),
        "stacked.bias": (0, 1),
        "conv.weight": (0, 45),
        "conv.bias": (0, 1),
        "transpose.weight": (0, 18),
        "embedding.weight": (0, 1),
        "gru.weight_ih": (0, 7),
        "gru.weight_hh": (0, 4),
        "gru.bias_n": (0, 1),
        "norm.weight": (1, 1),
        "norm.bias": (0, 1),
    }
    for path, (mean, inputs) in expected.items():
        prior = priors[f"parts.{path}"]
        assert_allclose(prior.loc, mean, err_msg=path)
        assert_allclose(prior.scale, 3.0 / math.sqrt(inputs), err_msg=path)


@pytest.mark.slow
def test_wide_layers_keep_their_size(key):
    """What fan-in scaling is for: the prior of an output does not depend on the width."""
    sds = []
    for width in (8, 128):
        net = eqx.nn.MLP(2, "scalar", width, 1, activation=jnp.tanh, key=key)
        bnn = wh.bayesian(net, wh.FanIn())
        x = jnp.ones((1, 2))
        out = jax.jit(jax.vmap(lambda k, b=bnn: b.sample_prior(k)(x)[0]))(jr.split(key, 2000))
        sds.append(out.std())
    assert_allclose(sds[0], sds[1], rtol=0.08)


def test_priors_by_rule(key):
    module = Holder({"a": linear(key), "b": NETWORKS[1]})
    by_function = wh.bayesian(
        module, lambda path, leaf: dist.Normal(0.0, leaf.ndim) if "weight" in path else None
    )
    assert by_function.names == ("parts.a.weight", *_layers("weight"))
    assert_allclose([p.scale for p in by_function.priors], 2.0)
    by_type = wh.bayesian(
        module, {"*.bias": None, eqx.nn.MLP: dist.Laplace(0.0, 3.0), eqx.nn.Linear: wh.FanIn()}
    )
    assert by_type.names == ("parts.a.weight", *_layers("weight"))
    kinds = [type(p).__name__ for p in by_type.priors]
    assert kinds == ["Normal", "Laplace", "Laplace"]  # the first match, not the closest
    mixed = wh.bayesian(module, {"parts.a.*": lambda *_: wh.FanIn(2.0), "*": dist.Cauchy()})
    assert len(mixed.names) == 6


def _layers(name):
    return f"parts.b.layers.0.{name}", f"parts.b.layers.1.{name}"


def test_bad_priors():
    def refuse(message, prior, **kwargs):
        with pytest.raises(ValueError, match=message):
            wh.bayesian(NETWORKS[1], prior, **kwargs)

    refuse("no entry for `layers.0.bias`", {"*.weight": dist.Normal()})
    refuse("'\\*.wieght'", {"*.wieght": dist.Normal(), "*": dist.Normal()})
    refuse("Conv1d", {eqx.nn.Conv1d: dist.Normal(), "*": dist.Normal()})
    refuse("Keys of `prior`", {0: dist.Normal()})
    refuse("`layers.0.weight` must be a numpyro", 1.0)
    refuse("must be a numpyro", lambda path, leaf: "normal")
    refuse("must be a numpyro", dist.Normal)
    refuse("must be a numpyro", wh.FanIn)
    refuse("None for all", lambda path, leaf: None)
    refuse("discrete", dist.Poisson(1.0))
    refuse("`layers.0.weight` is to have shape", dist.Normal(jnp.zeros(7), 1.0))
    refuse("`scale` of `FanIn`", lambda path, leaf: wh.FanIn(-1.0))
    refuse("location-scale", dist.HalfNormal(1.0), noncentered=True)


# Which arrays.


def test_where(key):
    module = mlp(key)
    last = wh.bayesian(module, dist.Normal(), where=lambda m: m.layers[-1])
    assert last.names == ("layers.1.weight", "layers.1.bias")
    draw = last.sample_prior(key)
    assert_allclose(draw.module.layers[0].weight, module.layers[0].weight)
    assert not np.allclose(draw.module.layers[1].weight, module.layers[1].weight)
    several = wh.bayesian(
        module, dist.Normal(), where=lambda m: [m.layers[0].bias, m.layers[1].bias]
    )
    by_path = wh.bayesian(module, dist.Normal(), where=lambda path, _: path.endswith("bias"))
    assert several.names == by_path.names == ("layers.0.bias", "layers.1.bias")
    assert_allclose(jax.vmap(draw.module)(X), draw(X))

    def refuse(message, where):
        with pytest.raises(ValueError, match=message):
            wh.bayesian(module, dist.Normal(), where=where)

    refuse("must be a function", "layers")
    refuse("failed", lambda m: m.layer)
    refuse("must return arrays", lambda m: m.activation)
    refuse("must return arrays", lambda m: True)
    refuse("selects", lambda path, leaf: False)


def test_other_leaves(key):
    class Odd(eqx.Module):
        weight: jax.Array
        count: jax.Array
        table: np.ndarray
        power: float
        name: str

        def __call__(self, x):
            return self.weight @ x * self.count + self.table.sum() + self.power

    module = Odd(jnp.ones(3), jnp.array(2), np.array([1, 2]), 1.5, "odd")
    bnn = wh.bayesian(module, dist.Normal(), likelihood=wh.regression(1.0))
    assert bnn.names == ("weight",)
    draw = bnn.sample_prior(key)
    assert draw.module.name == "odd"
    assert_allclose(draw(X), 2 * X @ draw.values["weight"] + 4.5)
    positions = {"weight": np.zeros((2, 3, 3))}
    draws = wh.Posterior.from_draws(wh.condition(bnn, Y, X), positions).draws
    assert draws.module.weight.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="must be real"):
        wh.bayesian(eqx.tree_at(lambda m: m.weight, module, 1j * jnp.ones(3)), dist.Normal())


def test_start(key):
    module = linear(key)
    make = lambda **kw: wh.condition(
        wh.bayesian(module, wh.FanIn(0.01), likelihood=wh.regression(), **kw), Y, X
    )
    inits = eqx.filter_jit(
        lambda target: jax.vmap(lambda k: target.init(key=k))(jr.split(key, 200))
    )
    from_prior = inits(make())
    assert_allclose(from_prior["weight"].std(), 0.01 / math.sqrt(3), rtol=0.1)
    assert from_prior["sigma"].std() > 0.8  # uniform on (-2, 2)
    start = make(start="module").init(key=key)
    assert_allclose(start["weight"], module.weight)
    assert inits(make(start="uniform"))["weight"].std() > 1.0
    standardised = make(noncentered=True)
    assert_allclose(inits(standardised)["weight"].std(), 1.0, rtol=0.1)
    draw = standardised.constrain(start)
    assert_allclose(draw.values["weight"], 0.01 / math.sqrt(3) * module.weight)
    improper = dist.ImproperUniform(dist.constraints.real, (), ())
    flat = wh.bayesian(module, improper, likelihood=wh.poisson())
    assert np.isfinite(wh.condition(flat, COUNTS, X).init(key=key)["weight"]).all()


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


# What is refused.


def test_bad_modules(key):
    class WithDropout(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x):
            return self.dropout(self.linear(x))

    def refuse(message, module, **kwargs):
        with pytest.raises(ValueError, match=message):
            wh.bayesian(module, dist.Normal(), **kwargs)

    dropout = WithDropout(linear(key), eqx.nn.Dropout(0.5))
    refuse("inference_mode", dropout)
    wh.bayesian(eqx.nn.inference_mode(dropout), dist.Normal())
    norm = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")[0]
    refuse("state", eqx.nn.Sequential([linear(key, 3), norm]))
    refuse("instance", eqx.nn.MLP)
    refuse("instance", lambda x: x)
    refuse("floating-point", eqx.nn.Identity())
    refuse("`start`", linear(key), start="zero")
    refuse("`likelihood`", linear(key), likelihood=dist.Normal())
    refuse("`likelihood`", linear(key), likelihood="gaussian")
    refuse("`likelihood`", linear(key), likelihood=wh.regression)
    refuse("is a key", eqx.nn.Lambda(jax.tree_util.Partial(jr.normal, key)))

    class Sigma(eqx.Module):
        sigma: jax.Array

        def __call__(self, x):
            return self.sigma @ x

    refuse("'sigma'", Sigma(jnp.ones(3)), likelihood=wh.regression())


def test_bad_noise():
    for noise in (0.0, -1.0, np.nan, "loud", np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="`noise`"):
            wh.regression(noise)
    for outputs, noise, message in ((1, "output", "even"), (2, np.ones(30), "`noise`")):
        bnn = wh.bayesian(NETWORKS[outputs], dist.Normal(), likelihood=wh.regression(noise))
        with pytest.raises(ValueError, match=message):
            wh.condition(bnn, Y, X)


BAD_DATA = {
    "column": (wh.regression(), 1, Y[:, None], X, r"Pass `y\[:, 0\]`"),
    "square": (wh.regression(), 1, np.tile(Y, (30, 1)), X, r"shape \(30,\)"),
    "one row": (wh.regression(), 1, Y[None], X, r"shape \(30,\)"),
    "outputs": (wh.regression(), 2, Y, X, r"shape \(30, 2\)"),
    "rows": (wh.regression(), 1, Y[:-1], X, r"shape \(30,\)"),
    "features": (wh.regression(), 1, Y, X[:, :2], r"one row at a time.*\(2,\)"),
    "flat": (wh.regression(), 1, Y, X[:, 0], r"one row at a time.*\(\)"),
    "scalar": (wh.regression(), 1, Y, 1.0, "one row at a time"),
    "nan in y": (wh.regression(), 1, np.where(Y > 1, np.nan, Y), X, "NaN"),
    "nan in x": (wh.regression(), 1, Y, np.where(X > 1, np.nan, X), "NaN"),
    "empty": (wh.regression(), 1, Y[:0], X[:0], "empty"),
    "label": (wh.classification(), 3, LABELS + 1, X, "support"),
    "negative label": (wh.classification(), 3, LABELS - 1, X, "support"),
    "binary label": (wh.classification(), 1, BINARY + 1, X, "support"),
    "floats": (wh.classification(), 3, LABELS.astype(float), X, "integers"),
    "one-hot": (wh.classification(), 3, np.eye(3, dtype=int)[LABELS], X, r"shape \(30,\)"),
    "counts": (wh.poisson(), 1, COUNTS - 9, X, "support"),
    "fractions": (wh.poisson(), 1, COUNTS + 0.5, X, "support"),
    "forgotten": (lambda out: dist.Normal(out, 1.0), 1, Y, X, "drop the last axis"),
    "no distribution": (lambda out: out[:, 0], 1, Y, X, "must return a numpyro"),
    "dict": (wh.regression(), 1, {"y": Y}, X, "single array"),
    "no likelihood": (None, 1, Y, X, "has no likelihood"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name):
    head, outputs, y, x, message = BAD_DATA[name]
    bnn = wh.bayesian(NETWORKS[outputs], dist.Normal(), likelihood=head)
    with pytest.raises(ValueError, match=message):
        wh.condition(bnn, y, x)


def test_no_values_yet(key):
    bnn = wh.bayesian(linear(key), dist.Normal())
    with pytest.raises(ValueError, match="no values yet"):
        bnn(X)
    with pytest.raises(ValueError, match="one row at a time"):
        bnn.sample_prior(key)()
