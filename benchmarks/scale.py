"""Cost against rows of data: gradients (NUTS), BBVI and SGLD on a logistic regression.

Every measurement is a fresh process with one number of rows (25 covariates, float32), so that
peak memory is its own. For a gradient it gives, beside the time of the model's own target:

- one pass over the covariates (their sum), which measures the bandwidth of wherever they lie;
- the two products of a gradient by hand, `X @ b` and `r @ X`, and the second written as a
  multiplication and a sum;
- the gradient made in blocks of 1,000 rows, each read once, by `lax.scan`: value and gradient
  inside it, and by differentiating through it;
- minor page faults per call, which say whether temporary arrays come fresh from the system.

CPU seconds are user + system; wall-clock seconds are worth reading on an idle machine only.

    uv run python benchmarks/scale.py --out benchmarks/results
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROWS = (10_000, 100_000, 1_000_000)
DIM, BATCH, BLOCK = 25, 1_000, 1_000
SGLD_STEPS = 10_000
TASKS = ("gradient", "BBVI", "SGLD")


# -- one measurement, in its own process -------------------------------------------


def make_target(rows):
    """Return a logistic regression, its covariates and a position."""
    import jax
    import numpy as np
    import numpyro.distributions as dist

    import whence as wh

    class Logistic(wh.Model):
        b: jax.Array = wh.latent(dist.Normal(0.0, 2.0), shape=(DIM,))

        def likelihood(self, x):
            return dist.Bernoulli(logits=x @ self.b)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, DIM)).astype(np.float32)
    b = (0.3 * rng.normal(size=DIM)).astype(np.float32)
    y = (rng.random(rows) < 1 / (1 + np.exp(-x @ b))).astype(np.int32)
    return wh.condition(Logistic(), y, x), b


def timed(function, *args, repeats=15):
    """Return microseconds (least wall, median CPU) and page faults of a compiled call."""
    import jax
    import numpy as np

    function = jax.jit(function)
    jax.block_until_ready(function(*args))
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu, before = [], [], faults()
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*args))
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {
        "wall_us": round(1e6 * min(wall), 1),
        "cpu_us": round(1e6 * float(np.median(cpu)), 1),
        "faults": round((faults() - before) / repeats, 1),
    }


def by_hand(b, x, y):
    """The log density without the model, up to a constant."""
    import jax
    import jax.numpy as jnp

    logits = x @ b
    return jnp.sum(y * logits - jax.nn.softplus(logits)) - jnp.sum(b**2) / 8


def in_blocks(b, x, y):
    """As `by_hand`, by a scan over blocks of rows."""
    import jax
    import jax.numpy as jnp

    def add(total, block):
        return total + by_hand(b, *block) + jnp.sum(b**2) / 8, None

    blocks = x.reshape(-1, BLOCK, DIM), y.reshape(-1, BLOCK)
    return jax.lax.scan(add, -jnp.sum(b**2) / 8, blocks)[0]


def gradient_in_blocks(b, x, y):
    """Value and gradient, both made inside the scan: nothing is kept for a way back."""
    import jax
    import jax.numpy as jnp

    def add(total, block):
        found = jax.value_and_grad(lambda c: by_hand(c, *block) + jnp.sum(c**2) / 8)(b)
        return jax.tree.map(jnp.add, total, found), None

    blocks = x.reshape(-1, BLOCK, DIM), y.reshape(-1, BLOCK)
    return jax.lax.scan(add, (-jnp.sum(b**2) / 8, -b / 4), blocks)[0]


def measure_gradient(rows):
    """Return times of a gradient and its parts."""
    import jax
    import jax.numpy as jnp

    target, b = make_target(rows)
    x, y = jnp.asarray(target.inputs[0]), jnp.asarray(target.y, jnp.float32)
    b = jnp.asarray(b)
    model = lambda b, target: jax.value_and_grad(lambda c: target.log_density({"b": c}))(b)
    found = {
        "model target": timed(model, b, target),
        "by hand": timed(jax.value_and_grad(by_hand), b, x, y),
        "blocks, gradient inside": timed(gradient_in_blocks, b, x, y),
        "blocks, differentiated": timed(jax.value_and_grad(in_blocks), b, x, y),
        "one pass, sum(X)": timed(jnp.sum, x),
        "X @ b": timed(jnp.matmul, x, b),
        "r @ X": timed(jnp.matmul, y, x),
        "sum(r * X)": timed(lambda r, x: (r[:, None] * x).sum(0), y, x),
    }
    for record in found.values():
        record["gb_per_s"] = round(x.nbytes / 1e3 / record["cpu_us"], 2)
    return found


def measure_engine(rows, engine):
    """Return seconds and memory of a first run and of another with what is compiled."""
    import jax

    import whence as wh

    engines = {
        "BBVI": wh.BBVI(batch_size=BATCH),
        "SGLD": wh.SGLD(chains=1, steps=SGLD_STEPS, batch_size=BATCH),
    }
    target, _ = make_target(rows)
    memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record: dict[str, Any] = {"memory_before_mb": round(memory())}
    for number, name in enumerate(("first", "again")):
        start = time.perf_counter(), time.process_time()
        found = wh.infer(target, engines[engine], key=jax.random.key(number), progress=False)
        record[name] = {
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "sampling_wall_s": round(found.seconds["sampling"] + found.seconds["warmup"], 2),
        }
    record["memory_peak_mb"] = round(memory())
    if engine == "BBVI":
        fit = found.record
        record["updates"] = 5 * len(fit.elbo)  # five to a value of the trace
        record["checked"] = 0 if fit.log_weights_is is None else fit.log_weights_is.size
        record["ok"] = found.diagnose().ok
    return record


# -- all of them -------------------------------------------------------------------


def spawn(task, rows):
    """Run one measurement in a fresh process."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "WHENCE_CACHE": "off"}
    command = [sys.executable, __file__, "--task", task, "--rows", str(rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}


def setting():
    """Return where and when this was measured."""
    from importlib.metadata import version

    names = ("whence", "jax", "jaxlib", "numpyro", "optax", "numpy")
    return {
        "machine": f"{platform.machine()} ({cpu_name()}), {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in names},
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def cpu_name():
    """Return the processor's name, as far as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "?")


def as_text(record):
    """Return a table for people."""
    lines = [str(record["setting"]), ""]
    for rows, found in record["gradient"].items():
        lines.append(f"gradient, {int(rows):,} rows (load {found['load']:.1f})")
        for name, value in found.items():
            if name != "load":
                lines.append(
                    f"  {name:24s}{value['cpu_us']:>10.0f} us CPU"
                    f"{value['wall_us']:>10.0f} us wall"
                    f"{value['gb_per_s']:>7.1f} GB/s of X{value['faults']:>9.0f} page faults"
                )
    for task in TASKS[1:]:
        lines += ["", f"{task}, batches of {BATCH:,}"]
        lines += [f"  {int(rows):>9,} rows  {found}" for rows, found in record[task].items()]
    return "\n".join(lines) + "\n"


def main():
    """Measure one thing, or all and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.task:
        rows, task = arguments.rows, arguments.task
        found = measure_gradient(rows) if task == "gradient" else measure_engine(rows, task)
        print(json.dumps(found))
        return
    record = {"setting": setting()}
    record |= {task: {str(rows): spawn(task, rows) for rows in ROWS} for task in TASKS}
    print(as_text(record))
    if arguments.out:
        (arguments.out / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / "scale.txt").write_text(as_text(record))


if __name__ == "__main__":
    main()
