"""Run the page of recipes and put its pictures into `docs/img`: `python docs/recipes.py`."""

import os
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
blocks = re.findall(r"```python\n(.*?)```", (HERE / "recipes.md").read_text(), re.DOTALL)
os.chdir(HERE / "img")
namespace = {"__name__": "__docs__"}
for block in blocks:
    exec(compile(block, "recipes.md", "exec"), namespace)
