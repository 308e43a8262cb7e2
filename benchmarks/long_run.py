"""What a store costs: time and peak memory of a long run, with and without it.

Each case runs in a fresh process, in turn, several times over; the table gives medians.

    python benchmarks/long_run.py [--draws 10000] [--dimension 4000] [--repeats 3]
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = ("memory", "store", "store, then diagnose")


def measure(case: str, draws: int, dimension: int) -> dict[str, float]:
    """Run one case in this process."""
    import warnings

    import jax
    import numpy as np

    import whence as wh

    warnings.simplefilter("ignore")
    target = wh.from_log_density(lambda x: -0.5 * (x**2).sum(), np.zeros(dimension, np.float32))
    engine = wh.SGLD(chains=2, warmup=0, steps=draws, thin=1, step_size=0.1)  # cheap draws
    folder = Path(tempfile.mkdtemp())
    wh.infer(target, engine, key=jax.random.key(1), until=wh.Until(max_draws=100))  # compile
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    store = None if case == "memory" else folder / "run"
    posterior = wh.infer(target, engine, key=jax.random.key(0), store=store)
    seconds = time.perf_counter() - begin
    if case.endswith("diagnose"):
        posterior.diagnose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    shutil.rmtree(folder)
    draws_mib = 2 * draws * dimension * np.dtype(np.float32).itemsize / 2**20
    return {"seconds": seconds, "peak_mib": peak - before, "disk_mib": size, "mib": draws_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=4_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help="run this one here, print JSON")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.draws, arguments.dimension)))
        return
    found = {case: [] for case in CASES}
    for _ in range(arguments.repeats):
        for case in CASES:
            command = [sys.executable, __file__, "--case", case]
            command += ["--draws", str(arguments.draws)]
            command += ["--dimension", str(arguments.dimension)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[case].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {platform.system()}")
    for case, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(
            f"{case}: {middle['seconds']:.1f} s, peak {middle['peak_mib']:.0f} MiB above the "
            f"start, {middle['disk_mib']:.0f} MiB on disk, draws {middle['mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
