"""A loop that compiles again and again for a plain number is told so, once, by name."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.running._recompiled import note_compilation


class Ridge(wh.Model):
    scale: Any
    degree: int = 1
    a: Any = wh.latent(lambda m: dist.Normal(0.0, m.scale))

    def likelihood(self):
        return dist.Normal(self.a, 1.0)


def _target(scale, rows=3, degree=1):
    return wh.condition(Ridge(scale, degree), np.zeros(rows))


def test_the_number_is_named_at_the_third_fit():
    engine = wh.SGLD(steps=7, step_size=1e-2, warmup=0, chains=1)
    said = []
    for scale in (1.0, 2.5, 7.0, 8.0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wh.infer(_target(scale), engine, key=0, throw=False)
        said.append([str(w.message) for w in caught if "compiled 3 times" in str(w.message)])
    assert [len(texts) for texts in said] == [0, 0, 1, 0]
    assert "`model.scale` changed (1, 2.5, 7)" in said[2][0]
    assert "`jnp.asarray(7.0)`" in said[2][0]


def test_what_is_no_loop_over_a_number_is_not_remarked_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1.5, 2.5, 3.5):
            note_compilation(_target(jnp.asarray(scale)), "arrays")
            note_compilation(_target(scale), f"engine {scale}")
            note_compilation(_target(scale, rows=int(10 * scale)), "shapes")
        for degree in (1, 2):
            note_compilation(_target(1.0, degree=degree), "degrees")
    with pytest.warns(wh.InferenceWarning, match="`model.degree` changed"):
        note_compilation(_target(1.0, degree=3), "degrees")
