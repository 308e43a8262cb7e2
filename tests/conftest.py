"""Settings of the whole test suite: type checks, strict promotion, float64, no disk cache."""

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


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Neither types nor ranks may be mixed; folders that cannot have it so override this."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
