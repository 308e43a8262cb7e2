"""Chains on a CPU: threads, one vmapped program, or a mesh of host devices?

A hierarchical regression (40 groups, 1200 rows, 83 latents), NUTS, the same number of steps.
The ways take turns within one process that has as many host devices as cores; the first run
of each, which compiles, is left out. Medians of wall-clock and CPU seconds, and ratios to
threads, which is the default.

    python benchmarks/devices.py --repeats 5 --out benchmarks/results
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import whence as wh

CORES = os.cpu_count() or 1
MESH = wh.mesh(chain=CORES)  # before JAX starts

import jax  # noqa: E402
import numpy as np  # noqa: E402
import numpyro.distributions as dist  # noqa: E402

WAYS = {
    "threads (default)": {},
    "vmapped": {"vectorised": True},
    f"mesh(chain={CORES})": {"mesh": MESH},
    f"mesh(chain={CORES}), vmapped": {"mesh": MESH, "vectorised": True},
}


class Hierarchical(wh.Model):
    mean: jax.Array = wh.latent(dist.Normal(0.0, 2.0))
    spread: jax.Array = wh.latent(dist.HalfNormal(1.0))
    level: jax.Array = wh.latent(
        lambda m: dist.Normal(m.mean, m.spread), shape=(40,), noncentered=True
    )
    slope: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(40,))
    noise: jax.Array = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, group, x):
        return dist.Normal(self.level[group] + self.slope[group] * x, self.noise)


def make_target():
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(40), 30), rng.normal(size=1200)
    level, slope = 0.5 + 0.7 * rng.normal(size=40), 0.3 * rng.normal(size=40)
    y = level[group] + slope[group] * x + 0.5 * rng.normal(size=1200)
    return wh.condition(Hierarchical(), y, group, x)


def measure(chains, repeats):
    target = make_target()
    engine = wh.NUTS(chains=chains, warmup=1000, draws=1000)
    found = {name: [] for name in WAYS}
    for repeat in range(repeats + 1):
        for name, how in WAYS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            posterior = wh.infer(target, engine, key=jax.random.key(repeat), **how)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            gradients = int(np.sum(np.asarray(posterior.stats["n_steps"])))
            run = posterior.seconds["warmup"] + posterior.seconds["sampling"]
            if repeat:
                found[name].append({"run": run, "cpu": cpu, "gradients": gradients})
            print(f"{chains} chains, {name}: {wall:.2f} s", flush=True)
    middle = lambda runs, what: statistics.median(r[what] for r in runs)
    rows = {n: {w: middle(r, w) for w in ("run", "cpu", "gradients")} for n, r in found.items()}
    first = rows["threads (default)"]
    for row in rows.values():
        row["run_ratio"] = row["run"] / first["run"]
        row["cpu_ratio"] = row["cpu"] / first["cpu"]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # short runs
    wh.enable_x64()
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{CORES} cores, {platform.machine()}, jax {jax.__version__}, float64",
        "chains": {str(chains): measure(chains, arguments.repeats) for chains in (4, 8)},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "devices.json").write_text(json.dumps(report, indent=1) + "\n")
    for chains, rows in report["chains"].items():
        for name, row in rows.items():
            print(chains, name, {k: round(v, 3) for k, v in row.items()})


if __name__ == "__main__":
    main()
