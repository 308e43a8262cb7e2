"""Run the page on variational inference, for its picture: `python docs/variational.py`."""

import os
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
blocks = re.findall(r"```python\n(.*?)```", (HERE / "variational.md").read_text(), re.DOTALL)
os.chdir(HERE / "img")
namespace = {"__name__": "__docs__"}
for block in blocks:
    exec(compile(block, "variational.md", "exec"), namespace)
