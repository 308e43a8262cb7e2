"""Strict promotion, as outside of the families of models."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Neither types nor ranks may be mixed."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
