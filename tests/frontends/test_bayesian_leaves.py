"""Which arrays of a module become latents, with which priors, and where they start."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh

RNG = np.random.default_rng(20261120)
X = RNG.normal(size=(30, 3))
Y = X @ np.array([1.0, -0.7, 0.2]) + 0.5 * RNG.normal(size=30)
COUNTS = RNG.poisson(2.0, size=30)


def linear(key):
    return eqx.nn.Linear(3, 1, key=key)


def mlp(key):
    return eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=key)


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
    module = Holder({"a": linear(key), "b": mlp(key)})
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
