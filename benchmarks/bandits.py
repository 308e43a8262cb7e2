"""CPU time per instance-round of Thompson sampling with unknown variances, ten arms.

Against a loop in Python with NumPy, one instance at a time, and against NumPy vectorised by
hand over the instances. All take turns on one core, so that other load on the machine meets
all of them alike; medians over the turns are printed.

    python benchmarks/bandits.py --out benchmarks/results
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.random as jr
import numpy as np

from whence.models.bandit import NormalGamma, VarTS, sample_instances, simulate

ARMS, INSTANCES, HORIZON, TURNS = 10, 1_000, 1_000, 7
LOOP_HORIZON = 5_000  # of one instance


def loop(rng):
    """Play one instance, a round at a time."""
    scale = 1 / np.sqrt(rng.gamma(4.0, 1.0, ARMS))
    means = rng.normal(0, scale)
    mu, kappa = np.zeros(ARMS), np.ones(ARMS)
    alpha, beta = np.full(ARMS, 4.0), np.ones(ARMS)
    for _ in range(LOOP_HORIZON):
        precision = rng.gamma(alpha) / beta
        arm = np.argmax(mu + rng.standard_normal(ARMS) / np.sqrt(kappa * precision))
        error = means[arm] + scale[arm] * rng.standard_normal() - mu[arm]
        beta[arm] += kappa[arm] * error**2 / (2 * (kappa[arm] + 1))
        mu[arm] += error / (kappa[arm] + 1)
        kappa[arm] += 1
        alpha[arm] += 0.5


def vectorised(rng, dtype):
    """Play all instances at once."""
    shape, rows = (INSTANCES, ARMS), np.arange(INSTANCES)
    scale = (1 / np.sqrt(rng.gamma(4.0, 1.0, shape))).astype(dtype)
    means = rng.normal(0, scale).astype(dtype)
    mu, kappa = np.zeros(shape, dtype), np.ones(shape, dtype)
    alpha, beta = np.full(shape, 4.0, dtype), np.ones(shape, dtype)
    for _ in range(HORIZON):
        precision = rng.standard_gamma(alpha, dtype=dtype) / beta
        noise = rng.standard_normal(shape, dtype)
        at = (rows, np.argmax(mu + noise / np.sqrt(kappa * precision), axis=1))
        error = means[at] + scale[at] * rng.standard_normal(INSTANCES, dtype) - mu[at]
        beta[at] += kappa[at] * error**2 / (2 * (kappa[at] + 1))
        mu[at] += error / (kappa[at] + 1)
        kappa[at] += 1
        alpha[at] += 0.5


def ours(seed, dtype):
    """Simulate; instances and rewards included."""
    with jax.enable_x64(dtype == np.float64):
        prior = NormalGamma(*(dtype(x) for x in (0, 1, 4, 1)), arms=ARMS)
        environment = sample_instances(prior, instances=INSTANCES, key=jr.key(seed))
        simulate({"x": VarTS(prior)}, environment, horizon=HORIZON, key=jr.key(seed + 1))


def seconds(function, *arguments):
    """Return CPU seconds of all threads."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def measure():
    """Take turns and return a report, in microseconds per instance-round."""
    types = {"float32": np.float32, "float64": np.float64}
    first = {name: round(seconds(ours, 0, dtype), 2) for name, dtype in types.items()}
    taken = {"NumPy loop": []}
    for kind in ("NumPy vectorised", "whence"):
        taken |= {f"{kind}, {name}": [] for name in types}
    for turn in range(TURNS):
        rng = np.random.default_rng(turn)
        taken["NumPy loop"].append(seconds(loop, rng) / LOOP_HORIZON)
        for name, dtype in types.items():
            rounds = INSTANCES * HORIZON
            spent = seconds(vectorised, rng, dtype), seconds(ours, turn, dtype)
            taken[f"NumPy vectorised, {name}"].append(spent[0] / rounds)
            taken[f"whence, {name}"].append(spent[1] / rounds)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one of {os.cpu_count()} cores",
        "load": [round(x, 1) for x in os.getloadavg()],
        "jax": jax.__version__,
        "size": {"arms": ARMS, "instances": INSTANCES, "rounds": HORIZON, "turns": TURNS},
        "first call, CPU s": first,
        "microseconds": {k: [round(1e6 * x, 4) for x in v] for k, v in taken.items()},
    }


def as_text(report):
    """Return a table: medians, ranges, and medians of the ratios to ours in float32."""
    times = report["microseconds"]
    lines = [
        f"{report['date']}, {report['machine']}, load {report['load'][0]}, jax {report['jax']}",
        f"{report['size']}; CPU microseconds per instance-round, medians",
        "",
        f"{'':<27}{'median':>7}  {'range':<18}{'over whence, float32':>20}",
    ]
    for name, values in times.items():
        middle = np.median(values)
        span = f"{min(values):.3f} to {max(values):.3f}"
        ratio = np.median(np.divide(values, times["whence, float32"]))
        lines.append(f"{name:<27}{middle:7.3f}  {span:<18}{ratio:20.1f}")
    lines += ["", f"first call with compilation, CPU s: {report['first call, CPU s']}"]
    return "\n".join(lines) + "\n"


def main():
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for bandits.json and bandits.txt")
    out = parser.parse_args().out
    report = measure()
    text = as_text(report)
    print(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bandits.json").write_text(json.dumps(report, indent=1) + "\n")
        (out / "bandits.txt").write_text(text)


if __name__ == "__main__":
    main()
