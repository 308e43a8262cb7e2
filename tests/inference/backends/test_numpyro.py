"""Options of NumPyro."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jaxtyping import Array
from numpy.testing import assert_array_equal

from whence.core._target import AbstractTarget
from whence.inference.backends import NumpyroNUTS
from whence.running._infer import infer
from whence.testing import Gaussian, compare_moments


class Looped(AbstractTarget):
    """A standard Gaussian whose sum is a `while_loop`: no reverse-mode gradient."""

    scale: Array

    def init(self, *, key):
        return jr.normal(key, (2,))

    def log_density(self, position):
        def add(carry):
            i, total = carry
            return i + 1, total - 0.5 * (position[i] / self.scale) ** 2

        return jax.lax.while_loop(lambda c: c[0] < 2, add, (0, jnp.zeros(())))[1]

    def constrain(self, position):
        return {"x": position}


def test_forward_mode_and_a_fixed_step_size(key):
    engine = NumpyroNUTS(
        warmup=200,
        draws=500,
        step_size=0.7,
        options={"forward_mode_differentiation": True, "adapt_step_size": False},
    )
    posterior = infer(Looped(jnp.ones(())), engine, key=key)
    assert_array_equal(posterior.stats["step_size"], 0.7)
    truth = {"x": (jnp.zeros(2), jnp.ones(2))}
    compare_moments({"x": posterior.sample.positions}, truth).check(
        min_ess=400.0, max_rhat=1.03
    )


def test_initial_metric_must_fit_the_target():
    engine = NumpyroNUTS(options={"inverse_mass_matrix": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"shape \(3,\) here; got \(2,\)"):
        jax.eval_shape(lambda: engine.init(Gaussian(3), key=jr.key(0)))
