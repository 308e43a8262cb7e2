"""Does whence work on this accelerator, and what does it gain over the CPU?

First four engines on a regression whose posterior and evidence are known in closed form;
then compile and run times of larger problems, on the accelerator and on the CPU of the same
machine. Every measurement is a fresh process without a persistent cache. Without an
accelerator it says so and ends with exit code 0.

    python benchmarks/gpu_check.py --out benchmarks/results
    ... --force     on whatever there is, with small problems: does the script itself work?
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ENGINES = ("NUTS", "SGLD", "BBVI", "TemperedSMC")
PROBLEMS = ("NUTS", "ChEES", "SGLD", "BBVI", "TemperedSMC")
# Chains are what an accelerator takes many of at no cost; a CPU runs one per core.
SIZES = {
    "large": {"rows": 100_000, "chains": 256, "cpu_chains": 4, "particles": 4096, "steps": 200},
    "small": {"rows": 500, "chains": 8, "cpu_chains": 4, "particles": 128, "steps": 20},
}


# -- one measurement, in its own process -------------------------------------------


def conjugate():
    """Return a normal linear regression, and its posterior mean, deviations and evidence."""
    import jax
    import numpy as np
    import numpyro.distributions as dist
    from scipy.stats import multivariate_normal

    import whence as wh

    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 5)) * [1.0, 0.5, 2.0, 1.0, 1.0]
    y = x @ rng.normal(size=5) + 0.7 * rng.normal(size=200)

    class Regression(wh.Model):
        beta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(5,))

        def likelihood(self, x):
            return dist.Normal(x @ self.beta, 0.7)

    covariance = np.linalg.inv(np.eye(5) + x.T @ x / 0.49)
    mean = covariance @ x.T @ y / 0.49
    evidence = multivariate_normal.logpdf(y, np.zeros(200), x @ x.T + 0.49 * np.eye(200))
    target = wh.condition(Regression(), y, x)
    return target, mean, np.sqrt(np.diag(covariance)), float(evidence)


def check(name, size):
    """Compare one engine with the closed form; errors are in posterior deviations."""
    import jax
    import numpy as np

    import whence as wh

    del size
    target, mean, deviation, evidence = conjugate()
    engine = {
        "NUTS": wh.NUTS(chains=16, draws=1000),
        # Precisions are 100 to 1600: at this step size SGLD widens a deviation by 2% at
        # most, and 16 chains of 80,000 updates are worth about 3000 independent draws.
        "SGLD": wh.SGLD(chains=16, steps=100_000, step_size=5e-5, batch_size=50),
        "BBVI": wh.BBVI(family=wh.FullRank()),
        "TemperedSMC": wh.TemperedSMC(particles=4096),
    }[name]
    posterior = wh.infer(target, engine, key=jax.random.key(7), throw=False)
    draws = np.asarray(posterior["beta"], dtype=np.float64).reshape(-1, 5)
    weights = np.full(len(draws), 1 / len(draws))
    if posterior.log_weights is not None:
        weights = np.exp(np.asarray(posterior.log_weights, dtype=np.float64)).ravel()
        weights /= weights.sum()
    found = weights @ draws
    spread = np.sqrt(weights @ (draws - found) ** 2)
    report = {
        "mean_error": float(np.max(np.abs(found - mean) / deviation)),
        "deviation_ratio": float(np.max(np.abs(np.log(spread / deviation)))),
        "seconds": posterior.seconds,
    }
    # A tenth of a deviation is far above the Monte Carlo error of these sizes (a fiftieth),
    # SGLD's own bias included, and far below what a wrong gradient or a wrong key makes.
    report["ok"] = report["mean_error"] < 0.1 and report["deviation_ratio"] < 0.15
    if posterior.log_evidence is not None:
        report["evidence_error"] = float(posterior.log_evidence - evidence)
        report["ok"] = report["ok"] and abs(report["evidence_error"]) < 0.3
    return report


def measure(name, size):
    """Time one engine on a logistic regression; `work` is what it did per second."""
    import jax
    import numpy as np
    import numpyro.distributions as dist

    import whence as wh

    on_cpu = jax.default_backend() == "cpu"
    chains = size["cpu_chains" if on_cpu else "chains"]
    rng = np.random.default_rng(2)
    x = rng.normal(size=(size["rows"], 20)).astype(np.float32)
    y = (rng.random(size["rows"]) < 1 / (1 + np.exp(-x @ rng.normal(size=20)))).astype(np.int32)

    class Logistic(wh.Model):
        beta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(20,))

        def likelihood(self, x):
            return dist.Bernoulli(logits=x @ self.beta)

    steps = size["steps"]
    engine = {
        "NUTS": wh.NUTS(chains=chains, warmup=steps, draws=steps),
        "ChEES": wh.ChEES(chains=max(chains, 4), warmup=steps, draws=steps),
        "SGLD": wh.SGLD(chains=chains, steps=100 * steps, batch_size=min(256, size["rows"])),
        "BBVI": wh.BBVI(steps=5 * steps, samples=10),
        "TemperedSMC": wh.TemperedSMC(particles=size["particles"] // (16 if on_cpu else 1)),
    }[name]
    target = wh.condition(Logistic(), y, x)
    fit = lambda key: wh.infer(target, engine, key=jax.random.key(key), throw=False)
    first, second = fit(1), fit(2)  # the second compiles nothing
    seconds = second.seconds["warmup"] + second.seconds["sampling"]
    if name in ("NUTS", "ChEES"):
        unit, seconds = "chain-gradients/s", second.seconds["sampling"]
        count = float(np.sum(np.asarray(second.stats["n_steps"])))
    elif name == "SGLD":
        unit, count = "chain-updates/s", 100.0 * steps * chains
    elif name == "BBVI":
        unit, count = "updates/s", 5.0 * steps
    else:
        unit, count = "particles/s, prior to posterior", float(engine.particles)
    return {
        "chains": chains,
        "compile": first.seconds["trace"] + first.seconds["compile"],
        "run": seconds,
        "unit": unit,
        "work": count / seconds,
    }


def child(kind, name, size):
    import warnings

    import jax

    warnings.simplefilter("ignore")  # runs too short to have converged
    found = {"check": check, "measure": measure}[kind](name, SIZES[size])
    found["device"] = jax.devices()[0].device_kind
    print("RESULT " + json.dumps(found))


# -- all of them -------------------------------------------------------------------


def run(kind, name, size, *, cpu):
    environment = os.environ | {"WHENCE_CACHE": "off"}
    if cpu:
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, __file__, "--child", kind, name, size]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        return {"ok": False, "error": done.stderr[-2000:]}
    return json.loads(lines[-1].removeprefix("RESULT "))


def accelerator():
    """Return the kind of the default device, or None on a CPU; JAX starts in a child."""
    script = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    name, kind = done.stdout.strip().splitlines()[-1].split("|")
    return None if name == "cpu" else kind


def as_markdown(report):
    lines = [
        f"# whence on {report['device']}",
        "",
        f"{report['date']}, {report['machine']}",
        "",
    ]
    lines += ["| engine | mean, error in SD | SD, log ratio | log evidence, error | ok |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, r in report["checks"].items():
        if "error" in r:
            lines.append(f"| {name} | {r['error'].strip().splitlines()[-1:]} | | | no |")
            continue
        evidence = f"{r['evidence_error']:.3f}" if "evidence_error" in r else ""
        lines.append(
            f"| {name} | {r['mean_error']:.3f} | {r['deviation_ratio']:.3f} | {evidence} | "
            f"{'yes' if r['ok'] else 'NO'} |"
        )
    head = "chains, compile s, run s, work"
    lines += ["", f"| engine | unit | device: {head} | CPU: {head} | ratio of work |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, pair in report["times"].items():
        if any("error" in r for r in pair.values()):
            lines.append(f"| {name} | failed: see the JSON | | | |")
            continue
        cells = [
            f"{r['chains']}, {r['compile']:.2f}, {r['run']:.2f}, {r['work']:.3g}"
            for r in pair.values()
        ]
        ratio = pair["device"]["work"] / pair["cpu"]["work"]
        unit = pair["device"]["unit"]
        lines.append(f"| {name} | {unit} | {cells[0]} | {cells[1]} | {ratio:.3g} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--force", action="store_true", help="without an accelerator, small")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    device = accelerator()
    if device is None and not arguments.force:
        print("There is no accelerator here; nothing to check (--force runs it on the CPU).")
        return
    size = "small" if arguments.force else "large"
    report = {
        "device": device or f"no accelerator ({platform.processor() or 'CPU'}), small sizes",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "sizes": SIZES[size],
        "checks": {name: run("check", name, size, cpu=False) for name in ENGINES},
        "times": {
            name: {w: run("measure", name, size, cpu=w == "cpu") for w in ("device", "cpu")}
            for name in PROBLEMS
        },
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    text = as_markdown(report)
    (arguments.out / "gpu_check.md").write_text(text)
    print(text)
    failed = [name for name, r in report["checks"].items() if not r["ok"]]
    failed += [
        n for n, pair in report["times"].items() if any("error" in r for r in pair.values())
    ]
    sys.exit(f"Failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
