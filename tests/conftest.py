"""Settings of the whole test suite: runtime type checks, float64, no persistent cache.

JAX may neither mix types nor promote ranks: a user may have it so, and so may then no engine.
"""

import os

os.environ.setdefault("WHENCE_CACHE", "off")

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)

hook = jaxtyping.install_import_hook("whence", "beartype.beartype")
hook.__enter__()  # stays on for the whole session


def pytest_addoption(parser):
    parser.addoption("--data", default=None, help="folder with posteriordb reference draws")


@pytest.fixture
def key():
    return jax.random.key(20261120)


@pytest.fixture(scope="module")
def standard_promotion():
    """Let a module's models mix types and ranks, as JAX does by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
