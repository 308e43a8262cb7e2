"""The folder of reference draws, and the table at the end."""

import pytest
from runs import HEAD

_FITS = []


@pytest.fixture
def reference_folder(request):
    folder = request.config.getoption("--data")
    if folder is None:
        pytest.skip("needs `--data DIR`, a folder with posteriordb reference draws")
    return folder


@pytest.fixture
def fits():
    """The list of fits made so far; what is added is shown in the table."""
    return _FITS


def pytest_terminal_summary(terminalreporter):
    if _FITS:
        terminalreporter.section("posteriordb: our NUTS against reference draws")
        for line in (HEAD, *(result.line for result in _FITS)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks: the models are others'."""
