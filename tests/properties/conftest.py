"""Models are drawn at random here, from priors that mix types."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks, as JAX comes."""
