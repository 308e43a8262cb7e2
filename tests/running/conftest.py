"""Runs are compared here, of models that mix types and ranks."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks, as JAX comes."""
