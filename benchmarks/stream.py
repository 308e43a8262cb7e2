"""Data on disk: the speed of a stream beside the same rows in memory, and its memory.

A linear regression by SGLD in float32, 20 covariates, batches of 1,000 rows. `--rows` rows
are written to a folder and read back as a stream of slabs; beside it, in turns, the first
million of them in memory. Each run is a process of its own and reports updates per second
(after compilation) and its largest resident memory, which counts pages of files that the
system keeps. With more rows than memory, slabs come from the disk itself.

    uv run python benchmarks/stream.py --rows 100000000 --folder /tmp/stream
    ... --out benchmarks/results
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

FEATURES, BATCH, THIN, SLAB, MEMORY_ROWS = 20, 1_000, 50, 1_000_000, 1_000_000


def write(folder: Path, rows: int) -> None:
    """Write rows of a regression with known coefficients, some at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "x.npy").exists() and np.load(folder / "x.npy", mmap_mode="r").shape[
        0
    ] == rows:
        return
    make = lambda name, shape: np.lib.format.open_memmap(folder / name, "w+", np.float32, shape)
    x, y = make("x.npy", (rows, FEATURES)), make("y.npy", (rows,))
    slope = np.linspace(-1, 1, FEATURES, dtype=np.float32)
    rng = np.random.default_rng(0)
    for start in range(0, rows, SLAB):
        stop = min(start + SLAB, rows)
        x[start:stop] = rng.standard_normal((stop - start, FEATURES), dtype=np.float32)
        y[start:stop] = x[start:stop] @ slope + rng.standard_normal(stop - start, np.float32)


def largest_memory() -> float:
    """Return the largest resident memory of this process, in GiB.

    `getrusage` would count what its parent, which may have written the files, held before.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 2**20


def measure(kind: str, folder: Path, updates: int) -> dict:
    """Train once; return updates per second and memory."""
    from typing import Any

    import numpyro.distributions as dist

    import whence as wh

    class Regression(wh.Model):
        slope: Any = wh.latent(dist.Normal(0.0, 1.0), shape=FEATURES)

        def likelihood(self, x):
            return dist.Normal(x @ self.slope, 1.0)

    arrays = tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in "yx")
    if kind == "memory":
        target = wh.condition(Regression(), *(np.array(a[:MEMORY_ROWS]) for a in arrays))
    else:
        target = wh.condition(Regression(), wh.Stream(arrays, slab=SLAB))
    rows = target.num_data
    assert rows is not None
    engine = wh.SGLD(batch_size=BATCH, step_size=0.2 / rows, steps=updates, chains=1, thin=THIN)
    posterior = wh.infer(target, engine, key=0)
    seconds = posterior.seconds["warmup"] + posterior.seconds["sampling"]
    error = np.abs(posterior["slope"].mean((0, 1)) - np.linspace(-1, 1, FEATURES)).max()
    return {
        "kind": kind,
        "rows": rows,
        "updates": updates,
        "updates_per_second": updates / seconds,
        "largest_memory_gib": largest_memory(),
        "largest_error": float(error),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=("memory", "stream"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.worker, given.folder, given.updates)))
        return
    write(given.folder, given.rows)
    records = []
    for _ in range(given.repeats):
        for kind in ("memory", "stream"):
            command = [sys.executable, __file__, "--worker", kind, *sys.argv[1:]]
            begin = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            record = json.loads(done.stdout.splitlines()[-1])
            record["process_seconds"] = time.perf_counter() - begin
            records.append(record)
            print(record)
    about = {
        "machine": f"{platform.machine()}, 2 cores",
        "date": datetime.now(UTC).date().isoformat(),
        "batch": BATCH,
        "slab": SLAB,
        "gib_on_disk": given.rows * (FEATURES + 1) * 4 / 2**30,
    }
    if given.out:
        text = json.dumps({"about": about, "records": records}, indent=1)
        (given.out / "stream.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
