"""One line of `src` broken at a time: does the default suite notice?

The mutations are in `mutations.json`: a file, a piece of text that occurs in it once, what
stands there instead, and the test files that are known to notice. Each is run in a copy of
the working tree; the suite must pass without them, which this script does not check.

    uv run python benchmarks/mutations.py               # all, two at a time
    ... --only smc         those whose file's name contains this
    ... --whole            what its test files do not notice: the whole default suite

Writes `benchmarks/results/mutations.json`, which the page of `record.py` shows.
"""

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MUTATIONS = ROOT / "benchmarks" / "mutations.json"
RESULTS = ROOT / "benchmarks" / "results" / "mutations.json"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".pytest_cache", "__pycache__", "site")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
LIMIT = 1_800  # seconds; a mutation that hangs has been noticed

Mutation = dict[str, Any]


def pytest(folder: Path, tests: list[str]) -> tuple[str, str]:
    """Run tests on a copy; return `killed`, `survived` or `broken`, and by which test."""
    compiled = ROOT / ".pytest_cache" / "jax"
    variables = {"PYTHONPATH": str(folder / "src"), "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", *tests]
    where = {"cwd": folder, "env": os.environ | variables, "timeout": LIMIT}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **where)
    except subprocess.TimeoutExpired:
        return "killed", "no end"
    # 1: a test failed; 2 and more: nothing was run, or a file could not be imported.
    outcome = {0: "survived", 1: "killed"}.get(done.returncode, "broken")
    return outcome, (FAILED.findall(done.stdout) or [""])[0]


def judge(mutation: Mutation, folder: Path, whole: bool) -> dict[str, Any]:
    """Plant one mutation in a copy, run its tests, and take it out again."""
    path = folder / mutation["file"]
    text, begin = path.read_text(), time.perf_counter()
    if text.count(mutation["old"]) != 1:
        raise ValueError(f"{mutation['file']}: {mutation['old']!r} is not there exactly once")
    path.write_text(text.replace(mutation["old"], mutation["new"]))
    try:
        outcome, test = pytest(folder, mutation["tests"])
        if outcome == "survived" and whole:
            outcome, test = pytest(folder, [])
    finally:
        path.write_text(text)
    seconds = round(time.perf_counter() - begin, 1)
    return {key: mutation[key] for key in ("file", "old", "new")} | {
        "outcome": outcome,
        "test": test,
        "seconds": seconds,
    }


def main() -> None:
    """Judge all that are asked for and keep the others' results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--whole", action="store_true", help="try all tests on survivors")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    listed = json.loads(MUTATIONS.read_text())
    chosen = [one for one in listed if arguments.only in one["file"]]
    name = lambda one: (one["file"], one["old"], one["new"])
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = {name(one): one for one in old if name(one) in map(name, listed)}

    with tempfile.TemporaryDirectory() as scratch:
        folders: queue.Queue[Path] = queue.Queue()
        for job in range(arguments.jobs):
            copy = Path(scratch) / str(job)
            shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
            folders.put(copy)

        def work(mutation: Mutation) -> None:
            folder = folders.get()
            try:
                result = judge(mutation, folder, arguments.whole)
            finally:
                folders.put(folder)
            found[name(mutation)] = result
            print(f"{result['outcome']:<9}{mutation['file']}: {mutation['old']}", flush=True)
            RESULTS.write_text(json.dumps(list(found.values()), indent=1) + "\n")

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(work, chosen))
    killed = sum(one["outcome"] == "killed" for one in found.values())
    print(f"{killed} of {len(found)} are noticed")


if __name__ == "__main__":
    main()
