"""Kernels of an infinitely wide network, and inference with them.

Three layers of ReLU, 2000 inputs of 20 features, one core. Kernels against a recursion
written by hand in JAX (whole matrix, one fused program) and, with `--peer`, against
neural-tangents, which needs an old JAX: the script makes it an environment of its own. Each
is a process that measures when it is its turn, so that other load on the machine meets all
of them alike. Times are CPU seconds, medians over turns; nothing counts before the second
call. Then how evidence and predictions divide into kernel, Cholesky and the rest; time and
memory of a kernel of 20,000 inputs; and, with `--many 50000`, of conditioning on as many.

    python benchmarks/nngp.py [--peer FOLDER] [--many ROWS] --out benchmarks/results
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, FEATURES, NEW, LARGE = 2000, 20, 200, 20_000
TURNS = 5
LAYERS, WEIGHT, BIAS = 3, 2.0, 0.1
PEER = ("jax==0.4.30", "jaxlib==0.4.30", "neural-tangents==0.6.5", "tf2jax<0.3.7")


def data(rows, dtype):
    """Return inputs and observations of a made-up regression with noise of 0.3."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, FEATURES))
    signal = np.sin(x[:, 0]) + x[:, 1] * x[:, 2] / 2 + np.abs(x[:, 3])
    return x.astype(dtype), (signal + 0.3 * rng.normal(size=rows)).astype(dtype)


# -- what is measured, in its own process ------------------------------------------


def network():
    """Return our description."""
    from whence.models.nngp import Dense, ReLU, Serial

    hidden = [layer for _ in range(LAYERS) for layer in (Dense(WEIGHT, BIAS), ReLU())]
    return Serial(*hidden, Dense())


def process(noise=0.1):
    """Return the scale mixture."""
    from whence.models.nngp import InverseGamma, ScaleMixture

    return ScaleMixture(network(), InverseGamma(2.0, 1.0), noise)


def by_hand(ntk):
    """Return the recursion as one would write it: whole matrices, the library's arctan2."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def kernels(x):
        k = BIAS + WEIGHT * (x @ x.T) / x.shape[1]
        q = BIAS + WEIGHT * jnp.sum(x**2, axis=1) / x.shape[1]
        t = k
        for layer in range(LAYERS):
            last = layer == LAYERS - 1
            weight, bias = (1.0, 0.0) if last else (WEIGHT, BIAS)
            root = jnp.sqrt(jnp.maximum(q[:, None] * q - k**2, 0))
            turn = jnp.pi - jnp.arctan2(root, k)
            k = bias + weight * (root + turn * k) / (2 * jnp.pi)
            t = k + weight * turn / (2 * jnp.pi) * t
            q = bias + weight * q / 2
        return (k, t) if ntk else k

    return kernels


def tasks_whence(dtype):
    """Return what to time, by name; each returns arrays."""
    import jax
    import jax.numpy as jnp

    net, model = network(), process()
    x, y = (jnp.asarray(a) for a in data(ROWS + NEW, dtype))
    x, y, new = x[:ROWS], y[:ROWS], x[ROWS:]
    hand, hand_both = by_hand(False), by_hand(True)
    covariance = net.nngp(x) + 0.1 * jnp.eye(ROWS, dtype=x.dtype)
    given = model.condition(x, y)
    evidence = lambda noise: process(noise).log_evidence(x, y)
    jitted, gradient = jax.jit(evidence), jax.jit(jax.grad(evidence))
    noise = jnp.asarray(0.1, x.dtype)
    return {
        "nngp": lambda: net.nngp(x),
        "nngp+ntk": lambda: net.kernel(x),
        "hand nngp": lambda: hand(x),
        "hand nngp+ntk": lambda: hand_both(x),
        "cholesky": lambda: jnp.linalg.cholesky(covariance),
        "evidence": lambda: model.condition(x, y).log_evidence,
        "evidence, in one program": lambda: jitted(noise),
        "its gradient by noise": lambda: gradient(noise),
        "prediction at 200 points": lambda: given.observation(new).mean,
    }


def tasks_peer(dtype):
    """Return the same kernels by neural-tangents."""
    import jax
    from neural_tangents import stax  # pyright: ignore[reportMissingImports]

    dense = lambda: stax.Dense(1, W_std=WEIGHT**0.5, b_std=BIAS**0.5)
    hidden = [layer for _ in range(LAYERS) for layer in (dense(), stax.Relu())]
    kernel = stax.serial(*hidden, stax.Dense(1, W_std=1.0, b_std=0.0))[2]
    x = jax.numpy.asarray(data(ROWS + NEW, dtype)[0][:ROWS])
    nngp, both = (jax.jit(lambda x, g=g: kernel(x, None, g)) for g in ("nngp", ("nngp", "ntk")))
    return {"nngp": lambda: nngp(x), "nngp+ntk": lambda: tuple(both(x))}


def worker(name, dtype, folder):
    """Warm up, save the kernels for comparison, then measure what each line asks for."""
    import jax
    import numpy as np

    tasks = {"whence": tasks_whence, "peer": tasks_peer}[name](dtype)
    for task in tasks.values():
        jax.block_until_ready(task())
    np.save(
        Path(folder) / f"{name}.npy", np.stack([np.asarray(k) for k in tasks["nngp+ntk"]()])
    )
    print("READY", *tasks, sep="|", flush=True)
    for line in sys.stdin:
        start = time.process_time()
        jax.block_until_ready(tasks[line.strip()]())
        print(time.process_time() - start, flush=True)


def large():
    """Print time and memory of one kernel of many inputs, in float32."""
    import resource

    import jax.numpy as jnp

    net, x = network(), jnp.asarray(data(LARGE, "float32")[0])
    net.nngp(x[:300]).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    net.nngp(x).block_until_ready()  # compilation counts: the shape is new
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matrix = LARGE**2 * 4 / 2**30
    report = {"rows": LARGE, "cpu": seconds, "matrix GiB": matrix}
    report |= {"peak GiB": peak / 2**20, "peak before GiB": before / 2**20}
    print("RESULT " + json.dumps(report))


def many(rows):
    """Print time, memory and errors of conditioning on many rows."""
    import resource

    import jax
    import numpy as np

    from whence.models.nngp import condition_large

    x, y = data(rows + 128, "float32")
    wall, start = time.time(), time.process_time()
    given = condition_large(process(), x[:rows], y[:rows], key=jax.random.key(0))
    report = {"rows": rows, "cpu": time.process_time() - start, "wall": time.time() - wall}
    report |= {"steps": given.steps, "quadratic": float(given.quadratic)}
    report |= {"log evidence": float(given.log_evidence), "remarks": given.remarks}
    report |= {"log evidence error": given.log_evidence_error}
    wall, start = time.time(), time.process_time()
    law = given.observation_marginals(x[rows:])
    report["cpu, 128 points"] = time.process_time() - start
    report["wall, 128 points"] = time.time() - wall
    report["nll"] = -float(np.mean(law.log_prob(y[rows:])))
    report["rmse"] = float(np.sqrt(np.mean((law.mean - y[rows:]) ** 2)))
    report["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    some = min(rows, 4000)
    exact = process().condition(x[:some].astype(float), y[:some])
    mean = exact.observation(x[rows:].astype(float)).mean
    report |= {
        "rows of Cholesky": some,
        "its rmse": float(np.sqrt(np.mean((mean - y[rows:]) ** 2))),
    }
    report["its log evidence per row"] = float(exact.log_evidence) / some
    print("RESULT " + json.dumps(report))


# -- turns -------------------------------------------------------------------------


def environment(dtype, *, one_core=True):
    """Return variables of a process: its precision and threads."""
    own = {"JAX_ENABLE_X64": str(int(dtype == "float64")), "JAX_PLATFORMS": "cpu"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if one_core else {}
    return {**os.environ, **own, **threads}


def start(python, name, dtype, folder):
    """Start a worker on one core, and return it with the names of its tasks."""
    command = [python, __file__, "--worker", name, dtype, folder]
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0))
        pin = lambda: os.sched_setaffinity(0, {core})
    else:
        pin = None
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, env=environment(dtype), preexec_fn=pin, **pipes)
    assert child.stdout is not None
    for line in child.stdout:  # libraries may print while they are imported
        if line.startswith("READY|"):
            return child, line.strip().split("|")[1:]
    sys.exit(f"The process of {name} ended before it measured anything.")


def measure(child, task):
    """Return the CPU seconds of one call."""
    child.stdin.write(task + "\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def compare(pythons, dtype):
    """Return medians and ranges of every task of every process, and how kernels differ."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        children = {n: start(python, n, dtype, folder) for n, python in pythons.items()}
        taken = {f"{n}: {task}": [] for n, (_, tasks) in children.items() for task in tasks}
        for _ in range(TURNS):
            for name, (child, tasks) in children.items():
                for task in tasks:
                    taken[f"{name}: {task}"].append(measure(child, task))
        for child, _ in children.values():
            child.communicate()  # an end of its input ends it
        kernels = [np.load(Path(folder) / f"{name}.npy") for name in children]
    report = {
        task: {"median": np.median(t), "low": min(t), "high": max(t)}
        for task, t in taken.items()
    }
    if len(kernels) > 1:
        report["largest relative difference"] = np.max(np.abs(kernels[1] / kernels[0] - 1))
    return report


def make_peer(folder):
    """Return the Python of an environment with neural-tangents, made if it is not there."""
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--python", "3.11", folder], check=True)
        subprocess.run(["uv", "pip", "install", "--python", str(python), *PEER], check=True)
    return str(python)


def apart(*arguments, dtype="float64", one_core):
    """Return the result of a fresh process."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(
        command, env=environment(dtype, one_core=one_core), capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(done.stderr)
    return json.loads(lines[-1].removeprefix("RESULT "))


def as_text(report):
    """Return a table in plain text."""
    lines = [f"{report['date']}, {report['machine']}; load {report['load']}; CPU milliseconds"]
    for dtype in ("float32", "float64"):
        lines.append("")
        for task, t in report[dtype].items():
            if isinstance(t, dict):
                low, middle, high = (1e3 * t[k] for k in ("low", "median", "high"))
                lines.append(f"{dtype}  {task:<38}{middle:8.1f}  ({low:.1f} to {high:.1f})")
            else:
                lines.append(f"{dtype}  {task:<38}{t:8.1e}")
    for name in ("large", "many"):
        if name in report:
            lines += ["", *(f"{name}  {key}: {value}" for key, value in report[name].items())]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument("--peer", help="environment of neural-tangents, made if missing")
    parser.add_argument("--many", type=int, help="rows to condition on without Cholesky")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=("large", "many"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
    elif arguments.one:
        large() if arguments.one == "large" else many(arguments.many)
    else:
        everything(arguments)


def everything(arguments):
    """Measure all that was asked for, print it and write it."""
    pythons = {"whence": sys.executable}
    if arguments.peer:
        pythons["peer"] = make_peer(arguments.peer)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": [round(x, 1) for x in os.getloadavg()],
        **{dtype: compare(pythons, dtype) for dtype in ("float32", "float64")},
        "large": apart("--one", "large", dtype="float32", one_core=True),
    }
    if arguments.many:
        report["many"] = apart("--one", "many", "--many", str(arguments.many), one_core=False)
    text = as_text(report)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        numbers = json.dumps(report, indent=1, default=float)
        (arguments.out / "nngp.json").write_text(numbers + "\n")
        (arguments.out / "nngp.txt").write_text(text)


if __name__ == "__main__":
    main()
