"""Log densities written by hand: Jacobians, supports, messages, data as leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import whence as wh
from whence.core import _cache
from whence.testing import compare_moments

SUPPORTS = {
    "real": (constraints.real, (2,)),
    "positive": (constraints.positive, (2,)),
    "interval": (constraints.interval(-1.0, 3.0), ()),
    "bounds": (constraints.interval(jnp.zeros(2), jnp.array([1.0, 5.0])), (2,)),
    "ordered": (constraints.ordered_vector, (3,)),
    "batch": (constraints.independent(constraints.unit_interval, 1), (2, 3)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_jacobian_is_that_of_constrain(name, key):
    support, shape = SUPPORTS[name]
    target = wh.from_log_density(
        lambda x: -0.5 * jnp.sum(jnp.square(x)), np.zeros(shape), support
    )
    position = target.init(key=key)
    draw = target.constrain(position)
    assert jnp.all(support(draw))
    flat, unravel = ravel_pytree(position)
    jacobian = jax.jacfwd(lambda u: ravel_pytree(target.constrain(unravel(u)))[0])(flat)
    expected = -0.5 * np.sum(np.square(draw)) + np.linalg.slogdet(jacobian)[1]
    assert_allclose(target.log_density(position), expected, rtol=1e-10)
    assert_allclose(target.unconstrain(draw), position, atol=1e-8)


def test_simplex_against_dirichlet(key):
    alpha = np.array([2.0, 3.0, 4.0])
    target = wh.from_log_density(
        lambda d: dist.Dirichlet(alpha).log_prob(d["p"]), {"p": alpha}, constraints.simplex
    )
    assert target.init(key=key)["p"].shape == (2,)
    posterior = wh.infer(target, wh.NUTS(draws=1000, chains=2), key=key)
    mean = alpha / alpha.sum()
    sd = np.sqrt(mean * (1 - mean) / (alpha.sum() + 1))
    compare_moments(posterior.variables, {"p": (mean, sd)}).check()


class Pair(eqx.Module):
    scale: jax.Array
    rest: dict


def test_supports_may_be_partial_or_a_prefix(key):
    fn = lambda d: -jnp.sum(d["a"] ** 2) - jnp.sum(d["b"][0]) - jnp.sum(d["b"][1]) - d["c"]
    example = {"a": jnp.zeros(3), "b": (jnp.ones(2), jnp.ones(())), "c": 1.0}
    partial = {"b": constraints.positive, "c": None}
    target = wh.from_log_density(fn, example, partial)
    draw = target.constrain(
        jax.tree.map(lambda x: -3.0 * jnp.ones_like(x), target.init(key=key))
    )
    assert draw["a"][0] == draw["c"] == -3.0
    assert_allclose(draw["b"][0], np.exp([-3.0, -3.0]))
    assert_allclose(draw["b"][1], np.exp(-3.0))


def test_draws_may_be_modules(key):
    example = Pair(jnp.ones(()), {"x": jnp.zeros(2)})
    fn = lambda d: dist.Gamma(3.0, 2.0).log_prob(d.scale) - 0.5 * jnp.sum(d.rest["x"] ** 2)
    supports = Pair(constraints.positive, {})
    target = wh.from_log_density(fn, example, supports)
    posterior = wh.infer(target, wh.NUTS(draws=1000, chains=2), key=key)
    assert set(posterior) == {"scale", "rest.x"}
    truth = {"scale": (1.5, 0.75**0.5), "rest.x": (np.zeros(2), np.ones(2))}
    compare_moments(posterior.variables, truth).check()
    assert posterior.draws.rest["x"].shape == (2, 1000, 2)


def _normal(data, x):
    return jnp.sum(dist.Normal(x, 1.0).log_prob(data))


def test_arrays_in_the_function_are_data(key):
    engine = wh.NUTS(draws=200, warmup=200, chains=2)
    means, counts = [], []
    for shift in (0.0, 10.0):
        fn = jax.tree_util.Partial(_normal, np.full(50, shift))
        posterior = wh.infer(wh.from_log_density(fn, 0.0), engine, key=key)
        means.append(posterior["x"].mean())
        counts.append(_cache.traces)
    assert counts[0] == counts[1]
    # sd of the mean is 1 / sqrt(50) over 400 correlated draws
    assert_allclose(np.diff(means), 10.0, atol=0.05)


def test_single_precision_stays_single(key):
    target = wh.from_log_density(
        lambda x: -jnp.sum(x), np.ones(2, np.float32), constraints.positive
    )
    position = target.init(key=key)
    assert position.dtype == target.log_density(position).dtype == jnp.float32


@pytest.mark.parametrize(
    ("fn", "example", "supports", "message"),
    [
        (jnp.sum, {}, None, "`example` must have at least one array"),
        (jnp.sum, {"n": 3}, None, "`example` at 'n' must be floating-point; got dtype int"),
        (jnp.sum, "text", None, "`example` must be an array of floats; got 'text'"),
        (jnp.sum, {"a": 1.0}, {"b": constraints.real}, "an entry at 'b'"),
        (jnp.sum, 1.0, "positive", "`supports` must be a constraint.*got 'positive'"),
        (jnp.sum, 1.0, constraints.boolean, "`supports` must be continuous"),
        (jnp.sum, 1.0, constraints.simplex, "cannot have the shape of `example`"),
        (jnp.sum, np.ones((2, 3)), constraints.corr_cholesky, "`supports` is CorrCholesky"),
        (lambda x: x, np.ones(2), None, r"must return one real number.*got shape \(2,\)"),
        (lambda x: x > 0, 1.0, None, "dtype bool"),
        (lambda x: x["mu"], {"a": 1.0}, None, "`fn` failed on a draw like `example`: 'mu'"),
    ],
)
def test_what_is_wrong_is_named(fn, example, supports, message):
    with pytest.raises(ValueError, match=message):
        wh.from_log_density(fn, example, supports)


def test_functions_only():
    with pytest.raises(Exception, match="fn"):  # the suite's type checker may speak first
        wh.from_log_density(3.0, 1.0)  # pyright: ignore[reportArgumentType]


def test_what_a_density_does_not_see_is_told():
    with pytest.warns(wh.InferenceWarning, match="no slope along 'b' of a draw"):
        wh.from_log_density(lambda x: -(x["a"] ** 2), {"a": 0.0, "b": 0.0})
    with pytest.raises(ValueError, match="Is a `return` missing"):
        wh.from_log_density(lambda x: None, {"a": 0.0})
