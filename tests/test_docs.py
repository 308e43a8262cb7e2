"""Every Python block of the README and of the docs runs, page by page."""

import re
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: what is shown to users runs as JAX comes."""


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
@pytest.mark.filterwarnings("ignore")
def test_blocks_run(page, tmp_path, monkeypatch):
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {"__name__": "__docs__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    assert jax.config.jax_enable_x64  # pages leave the suite's precision alone
