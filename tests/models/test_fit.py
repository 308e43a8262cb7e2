"""Training by Adam: steps in closed form, batches, and losses that are not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.core._results import InferenceError
from whence.models._fit import AbstractFit, Adam, minimised, run


class Slope(AbstractFit):
    """A linear loss, along which Adam makes steps of its rate; or the logarithm of one."""

    slopes: Any
    logarithm: bool = False

    @property
    def num_data(self):
        return len(self.slopes)

    def start(self, *, key):
        return jnp.array([0.5, 2.0])

    def loss(self, params, rows, *, key):
        slopes = self.slopes if rows is None else self.slopes[rows]
        value = jnp.mean(slopes @ params)
        return jnp.log(value) if self.logarithm else value


def _cosine(steps, end):
    return end + (1 - end) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


@pytest.mark.parametrize("batch_size", [None, 3])
def test_steps_are_as_long_as_their_rate(batch_size):
    problem = Slope(jnp.tile(jnp.array([1.0, -3.0]), (7, 1)))
    state, trace = run(problem, Adam(60, 0.2, batch_size), key=jax.random.key(0))
    moved = 0.2 * _cosine(60, 0.1).sum() * np.array([-1.0, 1.0])
    assert_allclose(state.params, np.array([0.5, 2.0]) + moved, rtol=1e-6)
    # The loss before the last step, which was the shortest.
    last = problem.loss(state.params, None, key=None) + 4 * 0.2 * _cosine(60, 0.1)[-1]
    assert_allclose(trace["loss"][-1], last, rtol=1e-6)


def test_steps_that_shrink_to_nothing():
    scales = jnp.array([1.0, 2.0, 3.0, 4.0])
    found = minimised(lambda x: -5.0 * x, jnp.asarray(1.0), 30, 0.5)
    assert_allclose(found, 1.0 + 0.5 * _cosine(30, 0.0).sum(), rtol=1e-6)
    # Steps see an entry each of what they differ by: Adam's means of these, by its definition.
    x, mean, square = 1.0, 0.0, 0.0
    for t, (scale, rate) in enumerate(zip(np.asarray(scales), 0.5 * _cosine(4, 0.0)), 1):
        mean, square = 0.9 * mean + 0.1 * scale, 0.999 * square + 0.001 * scale**2
        x -= rate * (mean / (1 - 0.9**t)) / np.sqrt(square / (1 - 0.999**t))
    found = minimised(lambda x, scale: scale * x, jnp.asarray(1.0), 4, 0.5, scales)
    assert_allclose(found, x, rtol=1e-6)


def test_a_loss_that_is_not_finite_is_named():
    problem = Slope(jnp.ones((4, 2)), logarithm=True)
    with pytest.raises(InferenceError, match="the loss was not finite"):
        run(problem, Adam(100, 1.0), key=jax.random.key(0))
    with pytest.raises(ValueError, match="must be a fit of this family"):
        run(None, Adam(), key=jax.random.key(0))
