"""Run the code of pages, for their pictures: `python docs/pictures.py diffusion`."""

import os
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
os.chdir(HERE / "img")
for page in sys.argv[1:]:
    text = (HERE / f"{page}.md").read_text()
    namespace = {"__name__": "__docs__"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, f"{page}.md", "exec"), namespace)
