"""The libraries that frontends are compared with here mix types themselves."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks, as JAX comes."""
