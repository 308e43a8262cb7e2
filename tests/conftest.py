"""Settings of the whole suite: type checks, strict promotion, float64, quick compilation."""

import datetime
import functools
import inspect
import json
import os
import sys
import time
import types
import zlib
from pathlib import Path

# Most of the time is XLA's: programs run once are not worth optimising, and both workers
# (and the next run) may share what one has compiled. Set before JAX is imported.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nor compile these modules in every process
sys.dont_write_bytecode = False
os.environ.setdefault("WHENCE_CACHE", "off")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import beartype  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)

jaxtyped = jaxtyping.jaxtyped


def quickly_typed(*, typechecker):
    """Check types as `jaxtyping.jaxtyped` does, for less than half of its time.

    It binds the arguments of every call and checks them twice, for its messages. Sizes of
    axes are compared only where a function names any.
    """

    def decorate(item):
        is_plain = isinstance(item, types.FunctionType)
        if not is_plain or inspect.isgeneratorfunction(item) or names_later(item):
            return jaxtyped(typechecker=typechecker)(item)
        checked = beartype.beartype(item)
        if not any("jaxtyping." in repr(a) for a in item.__annotations__.values()):
            return checked

        @functools.wraps(item)
        def call(*args, **kwargs):
            with jaxtyped("context"):
                return checked(*args, **kwargs)

        return call

    return decorate


def names_later(function):
    """Whether an annotation has text in it: what it names may not be there, even later."""
    given = function.__annotations__.values()
    return any(isinstance(a, str) or "ForwardRef(" in repr(a) for a in given)


jaxtyping.jaxtyped = quickly_typed
hook = jaxtyping.install_import_hook("whence", "beartype.beartype")
hook.__enter__()  # stays on for the whole session


def pytest_addoption(parser):
    parser.addoption("--data", default=None, help="folder with posteriordb reference draws")
    parser.addoption(
        "--part", default="0/1", help="K/N: the tests of part K, from 0, of N parts"
    )
    parser.addoption(
        "--until", type=float, default=None, help="no test begins later: seconds since 1970"
    )
    parser.addoption("--dates", default=None, help="JSON file: when each test last passed")


def pytest_collection_modifyitems(config, items):
    part, parts = map(int, config.getoption("--part").split("/"))
    items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part]


def pytest_runtest_setup(item):
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time left")


def pytest_sessionfinish(session):
    """Write down, for `--dates`, what passed today and how long it took."""
    path = session.config.getoption("--dates")
    if path is None or hasattr(session.config, "workerinput"):
        return
    found = session.config.pluginmanager.get_plugin("terminalreporter").stats
    dates = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    for report in [*found.get("failed", []), *found.get("skipped", [])]:
        dates.setdefault(report.nodeid, None)
    today = datetime.date.today().isoformat()
    for report in found.get("passed", []):
        dates[report.nodeid] = {"date": today, "seconds": round(report.duration, 1)}
    Path(path).write_text(json.dumps(dates, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def key():
    return jax.random.key(20261120)


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Neither types nor ranks may be mixed; folders that cannot have it so override this."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def standard():
    """Types and ranks mix as JAX comes, for a test whose own model mixes them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


STORAGE_ALONE = """
import sys, types
whence = types.ModuleType("whence")
whence.__path__ = [sys.argv.pop(1)]
sys.modules["whence"] = whence
"""


@pytest.fixture
def storage_process():
    """Return commands that run a script with `whence.storage`, but without JAX: at once."""
    from whence import __path__ as folders

    def command(script, *arguments):
        return [sys.executable, "-c", STORAGE_ALONE + script, *folders, *map(str, arguments)]

    return command
