"""Model families are tested as JAX comes: their formulas mix types and ranks throughout."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard; engines, targets and posteriors are tested under strict promotion."""
