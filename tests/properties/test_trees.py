"""Random pytrees: targets over them, names of their leaves, flat vectors and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints
from scipy.special import expit

import whence as wh
from whence.core._tree import named_leaves, unravel

quick = settings(deadline=None, max_examples=40, derandomize=True)
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])
KEYS = st.sampled_from(["a", "b", "scale", "x1", "a b", "é"])


def trees(leaves):
    """Nested dicts, lists and tuples with at least one leaf."""
    inside = lambda children: st.one_of(
        st.dictionaries(KEYS, children, min_size=1, max_size=3),
        st.lists(children, min_size=1, max_size=3),
        st.tuples(children, children),
    )
    return st.recursive(leaves, inside, max_leaves=6)


# Support, and in NumPy its map and the logarithm of its derivative.
OPTIONS = [
    (None, lambda x: x, np.zeros_like),
    (constraints.real, lambda x: x, np.zeros_like),
    (constraints.positive, np.exp, lambda x: x),
    (constraints.greater_than(1.0), lambda x: 1 + np.exp(x), lambda x: x),
    (constraints.unit_interval, expit, lambda x: np.log(expit(x) * expit(-x))),
]


@st.composite
def supported(draw):
    """A tree of shapes, supports for parts of it, and by leaf which one that comes to."""
    tree = draw(trees(SHAPES.map(lambda shape: np.zeros(shape))))

    def choose(node):
        """Return supports (or `...` to leave the entry out) and the choice of each leaf."""
        leaves = len(jax.tree.leaves(node))
        if not isinstance(node, (dict, list, tuple)) or draw(st.integers(0, 3)) == 0:
            number = draw(st.integers(0, len(OPTIONS) - 1))
            return OPTIONS[number][0], [number] * leaves
        if isinstance(node, dict):
            parts = {key: choose(node[key]) for key in sorted(node)}
            out = {key for key in parts if draw(st.integers(0, 3)) == 0}
            numbers = [0 if key in out else n for key, (_, ns) in parts.items() for n in ns]
            return {k: s for k, (s, _) in parts.items() if k not in out}, numbers
        parts = [choose(child) for child in node]
        return type(node)(s for s, _ in parts), [n for _, ns in parts for n in ns]

    supports, numbers = choose(tree)
    seed = draw(st.integers(0, 2**16))
    return tree, supports, numbers, np.random.default_rng(seed)


def density(draw):
    """Differs by leaf and by entry, so that none can stand for another."""
    leaves = jax.tree.leaves(draw)
    return sum(
        (-0.5 * (x - i) ** 2 * (1 + jnp.arange(x.size).reshape(x.shape))).sum()
        for i, x in enumerate(leaves)
    )


@quick
@given(supported())
def test_targets_over_trees(case):
    tree, supports, numbers, rng = case
    target = wh.from_log_density(density, tree, supports)
    points = [jnp.asarray(rng.normal(size=x.shape)) for x in jax.tree.leaves(tree)]
    position = jax.tree.unflatten(jax.tree.structure(tree), points)
    maps = [OPTIONS[number][1:] for number in numbers]
    values = [
        np.asarray(forward(np.asarray(x))) for (forward, _), x in zip(maps, points, strict=True)
    ]
    draw = target.constrain(position)
    assert jax.tree.structure(draw) == jax.tree.structure(tree)
    for got, want in zip(jax.tree.leaves(draw), values, strict=True):
        assert_allclose(got, want, rtol=1e-12)
    for got, want in zip(jax.tree.leaves(target.unconstrain(draw)), points, strict=True):
        assert_allclose(got, want, atol=1e-10)
    volume = sum(np.sum(log(np.asarray(x))) for (_, log), x in zip(maps, points, strict=True))
    expected = float(density([jnp.asarray(v) for v in values])) + volume
    assert_allclose(float(target.log_density(position)), expected, rtol=1e-10, atol=1e-10)
    start = target.init(key=jax.random.key(0))
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(np.shape, tree)


DTYPES = st.sampled_from([np.float32, np.float64])
ARRAYS = st.tuples(st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 3)]), DTYPES)


@quick
@given(trees(ARRAYS.map(lambda a: np.empty(*a))), st.sampled_from([(), (4,), (2, 3)]))
def test_flat_vectors_and_back(tree, lead):
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=(*lead, *x.shape)).astype(x.dtype), tree)
    one = jax.tree.map(lambda x: x[(0,) * len(lead)], tree)
    flat = np.empty((*lead, ravel_pytree(one)[0].size))
    for index in np.ndindex(lead):
        flat[index] = ravel_pytree(jax.tree.map(lambda x: x[index], tree))[0]
    again = unravel(flat, one)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert got.dtype == want.dtype
        assert_array_equal(got, want)


@quick
@given(trees(SHAPES.map(lambda shape: np.zeros(shape))))
def test_every_leaf_has_a_name_of_its_own(tree):
    named, leaves = named_leaves(tree), jax.tree.leaves(tree)
    assert len(named) == len(leaves)
    assert all(a is b for a, b in zip(named.values(), leaves, strict=True))
    assert all(name and isinstance(name, str) for name in named)


def test_leaves_that_would_share_a_name_are_refused():
    tree = {"a": {"b": jnp.zeros(2)}, "a.b": jnp.ones(2)}
    with pytest.raises(ValueError, match="two leaves are called 'a.b'"):
        named_leaves(tree)
    with pytest.raises(ValueError, match="two leaves are called 'a.b'"):
        wh.from_log_density(lambda draw: draw["a.b"].sum(), tree)
