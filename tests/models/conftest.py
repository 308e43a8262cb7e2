"""Model families are used as JAX comes: their formulas mix types and ranks throughout."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _standard(standard_promotion):
    """Engines and targets are tested without it, so that a strict user can run them."""
