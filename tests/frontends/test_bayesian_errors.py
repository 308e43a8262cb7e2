"""What `bayesian` and its targets refuse, and in which words."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh

RNG = np.random.default_rng(20261120)
X = RNG.normal(size=(30, 3))
Y = X @ np.array([1.0, -0.7, 0.2]) + 0.5 * RNG.normal(size=30)
COUNTS = RNG.poisson(2.0, size=30)
LABELS = RNG.integers(3, size=30)
BINARY = RNG.integers(2, size=30)
NETWORKS = {n: eqx.nn.MLP(3, n, 4, 1, activation=jnp.tanh, key=jr.key(0)) for n in (1, 2, 3)}


def linear(key, size=1):
    return eqx.nn.Linear(3, size, key=key)


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
    refuse("`scale` must be positive", lambda path, leaf: wh.FanIn(-1.0))
    refuse("location-scale", dist.HalfNormal(1.0), noncentered=True)


def test_bad_where():
    module = NETWORKS[1]

    def refuse(message, where):
        with pytest.raises(ValueError, match=message):
            wh.bayesian(module, dist.Normal(), where=where)

    refuse("must be a function", "layers")
    refuse("failed", lambda m: m.layer)
    refuse("must return arrays", lambda m: m.activation)
    refuse("must return arrays", lambda m: True)
    refuse("selects", lambda path, leaf: False)


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
