"""NUTS end to end: whence against numpyro, blackjax, tensorflow-probability and nutpie.

Every measurement is a fresh process: it imports (not counted), makes the same target in
float64, fits it with 4 chains of 1000 + 1000 steps (the first run: trace, compile, warm-up,
sampling), and fits it again with another key and other data of the same shape (the refit).
Samplers take turns on each posterior, so that a noisy machine is noisy for all. All peers
get whence's own log density on unconstrained space, jitted: the models are the same to the
last bit, and what differs is the engine. Times are CPU seconds (user + system), wall-clock
seconds beside them. A run whose R-hat is above 1.05 did not converge: no ratio counts it.

    uv run --group bench python benchmarks/nuts.py --repeats 3 --out benchmarks/results
    ... --data DIR        also posteriors that are not shipped (diamonds)
    ... --cache           once more in a second process with a warm persistent cache
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

SHIPPED = {
    "eight_schools": "eight_schools-eight_schools_noncentered",
    "arK": "arK-arK",
    "garch11": "garch-garch11",
    "gp": "gp_pois_regr-gp_pois_regr",
    "hmm_drive": "bball_drive_event_0-hmm_drive_0",
    "gauss_mix": "low_dim_gauss_mix-low_dim_gauss_mix",
    "logmesquite": "mesquite-logmesquite",
    "kidiq_interaction": None,  # made below: its data are shipped with another model
    "radon_like": None,  # synthetic: a hierarchical regression in 389 dimensions
    "diamonds": "diamonds-diamonds",  # needs --data
}
SAMPLERS = (
    "whence",
    "numpyro_parallel",
    "numpyro_vectorized",
    "blackjax_map",
    "blackjax_dense_map",
    "tfp",
    "nutpie_diag",
    "nutpie_low_rank",
)
CHAINS, WARMUP, DRAWS = 4, 1000, 1000
MOST_RHAT = 1.05


# -- one measurement, in its own process -------------------------------------------


class Clock:
    """CPU seconds of this process and its children, and wall-clock seconds."""

    def __init__(self):
        self.start = self._now()

    @staticmethod
    def _now():
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system, time.perf_counter()

    def lap(self):
        cpu, wall = self._now()
        out = {"cpu": cpu - self.start[0], "wall": wall - self.start[1]}
        self.start = (cpu, wall)
        return out


def make_problem(name, data):
    """Return the model, observed data and inputs of a posterior of the set."""
    import numpy as np
    import numpyro.distributions as dist

    from whence.testing import ZOO, load_shipped, shipped
    from whence.testing._zoo_regression import column, regression_of

    if name == "kidiq_interaction":
        both = lambda c: {"h": c["mom_hs"], "q": c["mom_iq"], "hq": c["mom_hs"] * c["mom_iq"]}
        build = regression_of(column("kid_score"), both, dist.HalfCauchy(2.5))
        return build(load_shipped("kidiq-kidscore_momhsiq")[0])
    if name == "radon_like":
        return radon_like(np)
    full = SHIPPED[name]
    if full in shipped():
        return ZOO[full].build(load_shipped(full)[0])
    if data is None:
        raise SystemExit(f"{name} needs --data DIR with {full}.data.json")
    return ZOO[full].build(json.loads((Path(data) / f"{full}.data.json").read_text()))


def radon_like(np):
    """386 group intercepts (non-centred) and a slope, n = 12,000; made by a fixed seed."""
    from typing import Any

    import numpyro.distributions as dist

    import whence as wh
    from whence.testing import Problem

    class Radon(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 10.0))
        tau: Any = wh.latent(dist.HalfNormal(1.0))
        alpha: Any = wh.latent(
            lambda m: dist.Normal(m.mu, m.tau), dims="county", noncentered=True
        )
        beta: Any = wh.latent(dist.Normal(0.0, 10.0))
        sigma: Any = wh.latent(dist.HalfNormal(1.0))

        def likelihood(self, county, floor):
            return dist.Normal(self.alpha[county] + self.beta * floor, self.sigma)

    rng = np.random.default_rng(0)
    county = rng.choice(386, 12_000, p=rng.dirichlet(np.full(386, 0.7)))
    floor = rng.binomial(1, 0.2, 12_000).astype(float)
    alpha = 1.2 + 0.35 * rng.normal(size=386)
    y = alpha[county] - 0.6 * floor + 0.8 * rng.normal(size=12_000)
    return Problem(Radon(coords={"county": 386}), y, (county, floor))


def perturbed(problem, np):
    """Return other data of the same shapes (and the same support)."""
    move = lambda v: v * 1.001 if np.asarray(v).dtype.kind == "f" else v
    y = (
        {k: move(v) for k, v in problem.y.items()}
        if isinstance(problem.y, dict)
        else move(problem.y)
    )
    return problem._replace(y=y)


def measure(sampler, name, seed, data):
    """Run one sampler on one posterior twice; return figures as a dict."""
    import jax

    jax.config.update("jax_enable_x64", True)
    if os.environ.get("BENCH_CACHE"):
        jax.config.update("jax_compilation_cache_dir", os.environ["BENCH_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    import numpy as np

    import whence as wh

    # Imports that a sampler needs are made before the clock starts.
    run = PREPARE[sampler.split("_")[0]](sampler)
    problem = make_problem(name, data)
    clock = Clock()
    target = wh.condition(problem.model, problem.y, *problem.inputs)
    first = run(target, seed)
    out = {"first": clock.lap(), **judge(target, first, np)}
    clock.lap()
    other = perturbed(problem, np)
    target = wh.condition(other.model, other.y, *other.inputs)
    run(target, seed + 1000)
    out["refit"] = clock.lap()
    out["parts"] = first.get("parts", {})
    return out


def judge(target, result, np):
    """Bulk ESS, R-hat and gradients; on unconstrained positions, the same for all."""
    from whence.diagnostics import convergence

    draws = result["draws"]
    found = convergence(draws)
    return {
        "min_ess": float(np.min(np.where(np.isfinite(found.ess_bulk), found.ess_bulk, 0.0))),
        "rhat": float(np.max(np.where(np.isfinite(found.rhat), found.rhat, np.inf))),
        "gradients_warmup": result.get("gradients_warmup"),
        "gradients": result.get("gradients"),
        "mean_lp": float(np.mean(result["lp"])) if "lp" in result else None,
        "dim": int(draws.shape[-1]),
    }


def flat(positions, np):
    import jax

    leaves = jax.tree.leaves(positions)
    return np.concatenate([np.asarray(x).reshape(*x.shape[:2], -1) for x in leaves], axis=-1)


def flat_density(target):
    """Return the log density of a flat vector, a start, and its dimension."""
    import jax
    from jax.flatten_util import ravel_pytree

    example = jax.eval_shape(lambda: target.init(key=jax.random.key(0)))
    zero = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), example)
    x0, unravel = ravel_pytree(zero)
    start = lambda key: ravel_pytree(target.init(key=key))[0]
    return lambda x: target.log_density(unravel(x)), start, x0.size


def prepare_whence(sampler):
    import numpy as np

    import whence as wh

    backend = {"tfp": "tfp"}.get(sampler, "whence")

    def run(target, seed):
        import jax

        engine = wh.NUTS(
            chains=CHAINS, warmup=WARMUP, draws=DRAWS, backend=backend, keep_warmup=True
        )
        posterior = wh.infer(target, engine, key=jax.random.key(seed), progress=False)
        warm = posterior.sample.warmup_stats or {}
        steps = posterior.stats.get("n_steps")
        return {
            "draws": flat(posterior.sample.positions, np),
            "lp": posterior.stats["lp"],
            "gradients": None if steps is None else int(steps.sum()),
            "gradients_warmup": int(warm["n_steps"].sum()) if "n_steps" in warm else None,
            "parts": posterior.seconds,
        }

    return run


def prepare_numpyro(sampler):
    import numpy as np
    import numpyro

    method = sampler.split("_")[1]
    if method == "parallel":
        numpyro.set_host_device_count(CHAINS)
    from numpyro.infer import MCMC, NUTS

    def run(target, seed):
        import jax

        density, start, _ = flat_density(target)
        starts = jax.vmap(start)(jax.random.split(jax.random.key(seed + 7), CHAINS))
        mcmc = MCMC(
            NUTS(potential_fn=lambda x: -density(x)),
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method=method,
            progress_bar=False,
        )
        mcmc.run(
            jax.random.key(seed),
            init_params=starts,
            extra_fields=("num_steps", "potential_energy"),
        )
        fields = mcmc.get_extra_fields(group_by_chain=True)
        return {
            "draws": np.asarray(mcmc.get_samples(group_by_chain=True)),
            "lp": -np.asarray(fields["potential_energy"]),
            "gradients": int(np.sum(fields["num_steps"])),
        }

    return run


def prepare_blackjax(sampler):
    import blackjax
    import numpy as np

    diagonal = "dense" not in sampler

    def run(target, seed):
        import jax

        density, start, _ = flat_density(target)

        def chain(key):
            key_start, key_warm, key_run = jax.random.split(key, 3)
            warm = blackjax.window_adaptation(
                blackjax.nuts, density, is_mass_matrix_diagonal=diagonal
            )
            (state, parameters), info = warm.run(key_warm, start(key_start), WARMUP)
            kernel = blackjax.nuts(density, **parameters)

            def one(state, key):
                state, info = kernel.step(key, state)
                return state, (state.position, state.logdensity, info.num_integration_steps)

            _, out = jax.lax.scan(one, state, jax.random.split(key_run, DRAWS))
            return out, info.info.num_integration_steps.sum()

        # One chain after another, not vmapped: what is fastest on CPU.
        fit = jax.jit(lambda keys: jax.lax.map(chain, keys))
        (draws, lp, steps), warm = fit(jax.random.split(jax.random.key(seed), CHAINS))
        return {
            "draws": np.asarray(draws),
            "lp": np.asarray(lp),
            "gradients": int(steps.sum()),
            "gradients_warmup": int(warm.sum()),
        }

    return run


def prepare_nutpie(sampler):
    import numpy as np
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    low_rank = sampler.endswith("low_rank")

    def run(target, seed):
        import jax

        density, start, dim = flat_density(target)
        gradient = jax.jit(jax.value_and_grad(density))
        gradient(np.zeros(dim))

        def make_logp():
            def logp(x):
                value, grad = gradient(x)
                return float(value), np.asarray(grad)

            return logp

        def make_expand(*_):
            return lambda x: {"x": np.asarray(x)}

        model = from_pyfunc(
            dim,
            make_logp,
            make_expand,
            [np.dtype("float64")],
            [(dim,)],
            ["x"],
            make_initial_point_fn=lambda s: np.asarray(start(jax.random.key(s % 2**31))),
        )
        trace = nutpie.sample(
            model,
            draws=DRAWS,
            tune=WARMUP,
            chains=CHAINS,
            cores=1,
            seed=seed,
            progress_bar=False,
            low_rank_modified_mass_matrix=low_rank,
            return_raw_trace=False,
        )
        stats, warm = trace["sample_stats"], trace["warmup_sample_stats"]
        return {
            "draws": np.asarray(trace["posterior"]["x"]),
            "lp": np.asarray(stats["logp"]),
            "gradients": int(np.asarray(stats["n_steps"]).sum()),
            "gradients_warmup": int(np.asarray(warm["n_steps"]).sum()),
        }

    return run


PREPARE = {
    "whence": prepare_whence,
    "tfp": prepare_whence,
    "numpyro": prepare_numpyro,
    "blackjax": prepare_blackjax,
    "nutpie": prepare_nutpie,
}


# -- the whole comparison ----------------------------------------------------------


def spawn(sampler, name, seed, arguments, cache=None):
    """Run one measurement in a fresh process; return its figures or its error."""
    command = [sys.executable, __file__, "--worker", sampler, name, str(seed)]
    if arguments.data:
        command += ["--data", str(arguments.data)]
    environment = dict(os.environ, WHENCE_CACHE="off", JAX_PLATFORMS="cpu")
    if cache:
        environment["BENCH_CACHE"] = cache
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {arguments.timeout} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments):
    """Measure everything, interleaved; return a list of records."""
    records = []
    for repeat in range(arguments.repeats):
        for name in arguments.posteriors:
            for sampler in arguments.samplers:
                record = {"sampler": sampler, "posterior": name, "repeat": repeat}
                with tempfile.TemporaryDirectory() as folder:
                    cache = folder if arguments.cache else None
                    record |= spawn(sampler, name, repeat, arguments, cache)
                    if arguments.cache and "error" not in record:
                        second = spawn(sampler, name, repeat + 50, arguments, cache)
                        record["second_process"] = second.get("first")
                records.append(record)
                print(line(record), flush=True)
    return records


def line(record):
    """Return one record as a line of the table."""
    head = f"{record['posterior']:<18}{record['sampler']:<20}"
    if "error" in record:
        return f"{head} failed: {record['error']}"
    grads = [record["gradients_warmup"], record["gradients"]]
    text = "+".join("?" if g is None else f"{g / 1000:.0f}" for g in grads)
    per = record["min_ess"] / record["first"]["cpu"]
    second = record.get("second_process")
    return (
        f"{head} first {record['first']['cpu']:7.2f} cpu {record['first']['wall']:7.2f} wall"
        f"  refit {record['refit']['cpu']:7.3f}"
        + (f"  2nd process {second['cpu']:6.2f}" if second else "")
        + f"  kgrad {text:>9}  ESS {record['min_ess']:7.0f}  R-hat {record['rhat']:.3f}"
        f"  ESS/cpu-s {per:8.1f}"
    )


def summarise(records):
    """Return geometric means over posteriors of ratios to the best peer.

    Runs that did not converge, of whence or of a peer, count in none, be it of times.
    """
    import numpy as np

    def converged(record):
        return "error" not in record and record["rhat"] <= MOST_RHAT

    def median(sampler, name, value):
        found = [
            value(r)
            for r in records
            if r["sampler"] == sampler and r["posterior"] == name and converged(r)
        ]
        found = [v for v in found if v is not None]
        return float(np.median(found)) if found else None

    names = sorted({r["posterior"] for r in records})
    peers = sorted({r["sampler"] for r in records} - {"whence"})
    jax_peers = [p for p in peers if not p.startswith("nutpie")]
    quantities = {
        "ESS per CPU second, first fit in a fresh process, over the best JAX peer": (
            lambda r: r["min_ess"] / r["first"]["cpu"],
            jax_peers,
        ),
        "ESS per CPU second, first fit in a fresh process, over nutpie on a JAX callback": (
            lambda r: r["min_ess"] / r["first"]["cpu"],
            [p for p in peers if p.startswith("nutpie")],
        ),
        "speed of a refit over numpyro's": (
            lambda r: 1 / r["refit"]["cpu"],
            [p for p in peers if p.startswith("numpyro")],
        ),
        "ESS per sampling gradient over nutpie with its low-rank metric": (
            lambda r: r["min_ess"] / r["gradients"] if r["gradients"] else None,
            ["nutpie_low_rank"],
        ),
        "warm-up gradients fewer than nutpie with its low-rank metric": (
            lambda r: 1 / r["gradients_warmup"] if r["gradients_warmup"] else None,
            ["nutpie_low_rank"],
        ),
        "speed of the first fit in a second process over the best JAX peer": (
            lambda r: 1 / r["second_process"]["cpu"] if r.get("second_process") else None,
            jax_peers,
        ),
    }
    left_out = [
        f"{r['posterior']} {r['sampler']} ({r['rhat']:.2f})"
        for r in records
        if "error" not in r and not converged(r)
    ]
    lines = [
        f"No ratio counts a run with R-hat above {MOST_RHAT} on either side; left out: "
        + (", ".join(left_out) or "none")
        + "."
    ]
    for what, (value, others) in quantities.items():
        ratios = {}
        for name in names:
            ours = median("whence", name, value)
            theirs = [v for p in others if (v := median(p, name, value)) is not None]
            if ours is not None and theirs:
                ratios[name] = ours / max(theirs)
        if ratios:
            mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
            each = ", ".join(f"{n} {r:.2f}" for n, r in ratios.items())
            lines.append(f"{what}: {mean:.2f}x ({each})")
    return lines


def main():
    """Parse arguments; measure, or be the worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300.0)
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--posteriors", nargs="+", choices=list(SHIPPED))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--worker", nargs=3, metavar=("SAMPLER", "POSTERIOR", "SEED"))
    arguments = parser.parse_args()
    if arguments.worker:
        import warnings

        warnings.simplefilter("ignore")
        sampler, name, seed = arguments.worker
        print(json.dumps(measure(sampler, name, int(seed), arguments.data)))
        return
    if arguments.posteriors is None:
        arguments.posteriors = [n for n in SHIPPED if n != "diamonds" or arguments.data]
    records = compare(arguments)
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": DRAWS,
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"about": about, "records": records}, indent=1)
        (arguments.out / "nuts.json").write_text(content)
    summary = summarise(records)
    print("\n".join(summary))
    if arguments.out:
        text = "\n".join([str(about), "", *map(line, records), "", *summary])
        (arguments.out / "nuts.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
