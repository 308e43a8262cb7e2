"""Another target is refused, and the message says in which array and how it differs."""

from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core._provenance import fingerprint, provenance, require_same


class Line(wh.Model):
    scale: Any
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.mu * x, self.scale)


X, Y = np.arange(3.0), np.ones(3)


def test_the_difference_is_named():
    target = wh.condition(Line(2.0), Y, X)
    content = provenance(target)
    assert content["data_sha256"] == fingerprint(target)
    require_same(wh.condition(Line(2.0), Y, X), content, "a.nc")
    for other, words in [
        (wh.condition(Line(2.0), Y, X + 1.0), "the values of `inputs.0` do"),
        (wh.condition(Line(3.0), Y, X), "the values of `model.scale` do"),
        (
            wh.condition(Line(2.0), np.ones(4), np.arange(4.0)),
            r"`y` is float64 \(4,\), and was float64 \(3,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=f"`target` .* a.nc, but its data differ: {words}"):
            require_same(other, content, "a.nc")
    with jax.enable_x64(False):
        single = wh.condition(Line(2.0), Y, X)
        with pytest.raises(ValueError, match="float64 is not on, as it was then. Call `whence"):
            require_same(single, content, "a.nc")
    with pytest.raises(ValueError, match=r"`y` is float32 \(3,\), and was float64 \(3,\)"):
        require_same(single, content, "a.nc")
