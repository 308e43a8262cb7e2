"""Tests of the loop, as JAX comes: not yet written for strict promotion."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks, as JAX comes."""
