"""Parts that the adapters share."""

import jax.numpy as jnp
from numpy.testing import assert_array_equal

from whence.inference.backends._library import strong, tree_depth


def test_depth_is_the_length_of_the_number_of_steps():
    steps = jnp.arange(1, 1025)
    expected = [int(n).bit_length() for n in range(1, 1025)]
    assert_array_equal(tree_depth(steps), expected)


def test_strong_removes_weak_types():
    tree = strong({"a": jnp.asarray(1.0) * 2, "b": 3, "c": jnp.float32(1)})
    assert not any(leaf.weak_type for leaf in tree.values())
    assert tree["c"].dtype == jnp.float32
