"""What a leaf of a NUTS tree costs by dimension, beside numpyro's.

The target is a normal with a diagonal metric and a fixed step size, so that nearly all the
time goes into the tree. CPU microseconds a leaf, gradient included, the least of three runs.

    uv run python benchmarks/leaf.py --out benchmarks/results
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import whence as wh
from whence.running._loop import run

DRAWS = {10: 2000, 201: 1000, 2001: 300, 20001: 60}  # by dimension


class Normal(wh.AbstractTarget):
    """Independent normals."""

    scale: jax.Array

    def init(self, *, key):
        return jax.random.normal(key, self.scale.shape)

    def log_density(self, position):
        return -0.5 * jnp.sum((position / self.scale) ** 2)

    def constrain(self, position):
        return position


def measure(backend, dim):
    """Return CPU microseconds a leaf."""
    target = Normal(jnp.linspace(0.5, 2.0, dim))
    engine = wh.NUTS(
        chains=1,
        warmup=0,
        draws=DRAWS[dim],
        step_size=0.5 * dim**-0.25,
        metric="diag",
        backend=backend,
    )
    run(target, engine, key=jax.random.key(0))  # compiles
    found = []
    for number in range(3):
        begin = time.process_time()
        outcome = run(target, engine, key=jax.random.key(number))
        spent = time.process_time() - begin
        found.append(1e6 * spent / outcome.records[0].stats["n_steps"].sum())
    return min(found)


def main():
    """Measure every dimension, the libraries in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for dim in DRAWS:
        row = {"dim": dim, **{b: float(measure(b, dim)) for b in ("whence", "numpyro")}}
        rows.append(row)
        print(
            f"{dim:6d}  whence {row['whence']:8.2f}  numpyro {row['numpyro']:8.2f}", flush=True
        )
    if arguments.out:
        content = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "date": time.strftime("%Y-%m-%d"),
            "load": os.getloadavg(),
            "unit": "CPU microseconds a leaf",
            "rows": rows,
        }
        (arguments.out / "leaf.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
