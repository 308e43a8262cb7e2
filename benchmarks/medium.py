"""Twelve medium models: what a fit costs from a fresh process to its last draw.

Models of 3 to 805 latents (`_medium_models.py`) in float64, 4 chains of 500 + 500 steps,
three keys, samplers in turn, each measurement a fresh process. whence, numpyro's parallel
chains and blackjax get the same log density on unconstrained space and starts of the same
kind; nutpie compiles the same models written by hand in PyMC (`_medium_pymc.py`) with numba
and starts as it does by itself. That they are the same models is checked: posterior means of
whence and nutpie, the largest difference in Monte Carlo standard errors.

Times are CPU seconds (user + system, all threads): of the whole process, with and without
imports, from making the model to the draws; and of sampling with warm-up alone, after
tracing and compiling. BLAS has one thread, since chains run in parallel. Effective draws and
R-hat are those of the latents as the model names them, the same for all samplers. A run with
R-hat above 1.05 did not converge, and no ratio counts it. Compilation caches are off, or,
with --warm, on for all, each measurement preceded by one that fills them and is thrown away.

    uv run --group bench python benchmarks/medium.py --out benchmarks/results
    ... --check      are the models in PyMC the same? compares log densities, no sampling
    ... --models garch ordinal --samplers whence nutpie_diag --keys 1     a part
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

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SAMPLERS = ("whence", "numpyro_parallel", "blackjax_map", "nutpie_diag", "nutpie_low_rank")
CHAINS, WARMUP, DRAWS = 4, 500, 500
MOST_RHAT = 1.05


# -- one measurement, in its own process -------------------------------------------


def cpu():
    """Return the CPU seconds of this process and its children since it began."""
    return sum(os.times()[:4])


def measure(sampler, name, seed, means):
    """Run one sampler on one model; return figures as a dict.

    Args:
        sampler: One of `SAMPLERS`.
        name: A name in `_medium_models.MODELS`.
        seed: An integer.
        means: Where to write posterior means and their standard errors, by latent.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    if os.environ.get("BENCH_CACHE"):
        jax.config.update("jax_compilation_cache_dir", os.environ["BENCH_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    import numpy as np

    # Imports that a sampler needs are made before the clock starts.
    run = PREPARE[sampler.split("_")[0]](sampler)
    imported = cpu()
    result = run(name, seed)
    total = cpu()
    out = {"process": total, "process_less_imports": total - imported}
    out["sampling"] = result["sampling"]()
    draws = result["draws"]()
    return (
        out
        | judge(draws, means, np)
        | {key: result.get(key) for key in ("gradients_warmup", "gradients", "divergences")}
    )


def work(sampler, name, seed, means):
    """Print the figures of one measurement as a line of JSON."""
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(measure(sampler, name, int(seed), means)))


def judge(draws, means, np):
    """Return the smallest bulk ESS and largest R-hat; write means and standard errors."""
    from whence.diagnostics import convergence

    ess, rhat, kept = [], [], {}
    for name, value in draws.items():
        found = convergence(np.asarray(value))
        ess.append(np.where(np.isfinite(found.ess_bulk), found.ess_bulk, 1.0).ravel())
        rhat.append(np.where(np.isfinite(found.rhat), found.rhat, np.inf).ravel())
        kept[f"{name}.mean"] = value.mean((0, 1)).ravel()
        kept[f"{name}.mcse"] = value.std((0, 1)).ravel() / np.sqrt(ess[-1])
    np.savez(means, **kept)
    ess, rhat = np.concatenate(ess), np.concatenate(rhat)
    return {"min_ess": float(ess.min()), "rhat": float(rhat.max()), "latents": len(ess)}


def target_of(name):
    from _medium_models import make

    import whence as wh

    problem = make(name)
    return wh.condition(problem.model, problem.y, *problem.inputs)


def prepare_whence(sampler):
    del sampler
    import jax

    import whence as wh

    engine = wh.NUTS(chains=CHAINS, warmup=WARMUP, draws=DRAWS, keep_warmup=True)

    def run(name, seed):
        target = target_of(name)
        fit = lambda: wh.infer(target, engine, key=jax.random.key(seed), progress=False)
        posterior = fit()
        warm, stats = posterior.sample.warmup_stats, posterior.stats

        def sampling():
            # The same again: the same draws by the program that is there.
            begin = cpu()
            fit()
            return cpu() - begin

        constrain = lambda x: target.variables(target.constrain(x))
        return {
            "draws": lambda: jax.jit(jax.vmap(jax.vmap(constrain)))(posterior.sample.positions),
            "sampling": sampling,
            "gradients": int(stats["n_steps"].sum()),
            "gradients_warmup": int(warm["n_steps"].sum()),
            "divergences": int(stats["diverging"].sum()),
        }

    return run


def named(target, draws):
    """Return the latents by name of flat draws of shape `(chain, draw, dim)`."""
    import jax
    from jax.flatten_util import ravel_pytree

    unravel = ravel_pytree(target.init(key=jax.random.key(0)))[1]
    constrain = lambda x: target.variables(target.constrain(unravel(x)))
    return jax.jit(jax.vmap(jax.vmap(constrain)))(draws)


def prepare_numpyro(sampler):
    del sampler
    import numpyro

    numpyro.set_host_device_count(CHAINS)
    import jax
    import numpy as np
    from numpyro.infer import MCMC, NUTS, mcmc as module
    from nuts import flat_density
    from starts import finite_start

    spent = []

    def pmap(function):
        # numpyro traces, compiles and runs at once; apart, running can be timed.
        def call(*args):
            program = jax.pmap(function).lower(*args).compile()
            begin = cpu()
            out = jax.block_until_ready(program(*args))
            spent.append(cpu() - begin)
            return out

        return call

    module.pmap = pmap

    def run(name, seed):
        target = target_of(name)
        density, start, _ = flat_density(target)
        find = jax.jit(jax.vmap(finite_start(density, start)))
        fit = MCMC(
            NUTS(potential_fn=lambda x: -density(x)),
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="parallel",
            progress_bar=False,
        )
        fit.run(
            jax.random.key(seed),
            init_params=find(jax.random.split(jax.random.key(seed + 7), CHAINS)),
            extra_fields=("num_steps", "diverging"),
        )
        fields = fit.get_extra_fields(group_by_chain=True)
        draws = np.asarray(fit.get_samples(group_by_chain=True))
        return {
            "draws": lambda: named(target, draws),
            "sampling": lambda: spent[0],
            "gradients": int(np.sum(fields["num_steps"])),
            "divergences": int(np.sum(fields["diverging"])),
        }

    return run


def prepare_blackjax(sampler):
    del sampler
    import blackjax
    import jax
    import numpy as np
    from nuts import flat_density
    from starts import finite_start

    def run(name, seed):
        target = target_of(name)
        density, start, _ = flat_density(target)
        find = finite_start(density, start)

        def chain(key):
            key_start, key_warm, key_run = jax.random.split(key, 3)
            warm = blackjax.window_adaptation(blackjax.nuts, density)
            (state, parameters), info = warm.run(key_warm, find(key_start), WARMUP)
            kernel = blackjax.nuts(density, **parameters)

            def one(state, key):
                state, info = kernel.step(key, state)
                kept = state.position, info.num_integration_steps, info.is_divergent
                return state, kept

            _, out = jax.lax.scan(one, state, jax.random.split(key_run, DRAWS))
            return out, info.info.num_integration_steps.sum()

        # One chain after another, not vmapped: what is fastest on CPU.
        keys = jax.random.split(jax.random.key(seed), CHAINS)
        program = jax.jit(lambda keys: jax.lax.map(chain, keys)).lower(keys).compile()
        begin = cpu()
        (draws, steps, divergent), warm = jax.block_until_ready(program(keys))
        spent = cpu() - begin
        return {
            "draws": lambda: named(target, np.asarray(draws)),
            "sampling": lambda: spent,
            "gradients": int(steps.sum()),
            "gradients_warmup": int(warm.sum()),
            "divergences": int(divergent.sum()),
        }

    return run


def prepare_nutpie(sampler):
    import _medium_models
    import _medium_pymc
    import numpy as np
    import nutpie

    def run(name, seed):
        problem = _medium_models.make(name)
        model = _medium_pymc.make(name, problem.y, problem.inputs)
        compiled = nutpie.compile_pymc_model(model, backend="numba")
        begin = cpu()
        trace = nutpie.sample(
            compiled,
            draws=DRAWS,
            tune=WARMUP,
            chains=CHAINS,
            seed=seed,
            progress_bar=False,
            low_rank_modified_mass_matrix=sampler.endswith("low_rank"),
        )
        spent = cpu() - begin
        stats, warm = trace["sample_stats"], trace["warmup_sample_stats"]
        return {
            "draws": lambda: {
                site.name: np.asarray(trace["posterior"][site.name])
                for site in target_of(name).free
            },
            "sampling": lambda: spent,
            "gradients": int(np.asarray(stats["n_steps"]).sum()),
            "gradients_warmup": int(np.asarray(warm["n_steps"]).sum()),
            "divergences": int(np.asarray(stats["diverging"]).sum()),
        }

    return run


PREPARE = {
    "whence": prepare_whence,
    "numpyro": prepare_numpyro,
    "blackjax": prepare_blackjax,
    "nutpie": prepare_nutpie,
}


# -- the whole comparison ----------------------------------------------------------


def spawn(sampler, name, seed, means, cache, arguments):
    """Run one measurement in a fresh process; return its figures or its error."""
    command = [sys.executable, __file__, "--worker", sampler, name, str(seed), str(means)]
    environment = os.environ | {"WHENCE_CACHE": "off", "JAX_PLATFORMS": "cpu"}
    # On matrices of this size threads of BLAS mostly wait for each other, which costs CPU.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if arguments.warm:
        environment["BENCH_CACHE"] = str(cache / "jax")
    flags = f"base_compiledir={cache / 'pytensor'}"
    environment["PYTENSOR_FLAGS"] = flags
    environment["NUMBA_CACHE_DIR"] = str(cache / "numba")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {arguments.timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments, folder):
    """Measure everything, samplers in turn; return a list of records."""
    records = []
    for key in range(arguments.keys):
        for name in arguments.models:
            for sampler in arguments.samplers:
                record = {"sampler": sampler, "model": name, "key": key}
                with tempfile.TemporaryDirectory() as cache:
                    rest = folder / f"{name}-{sampler}-{key}.npz", Path(cache), arguments
                    if arguments.warm:
                        spawn(sampler, name, key + 1000, *rest)
                    record |= spawn(sampler, name, key, *rest)
                records.append(record)
                print(line(record), flush=True)
    return records


def line(record):
    """Return one record as a line of the table."""
    head = f"{record['model']:<18}{record['sampler']:<18}"
    if "error" in record:
        return f"{head} failed: {record['error']}"
    grads = [record["gradients_warmup"], record["gradients"]]
    text = "+".join("?" if g is None else f"{g / 1000:.0f}" for g in grads)
    bad = "  not converged" if record["rhat"] > MOST_RHAT else ""
    return (
        f"{head} process {record['process']:7.2f} cpu"
        f"  less imports {record['process_less_imports']:7.2f}"
        f"  sampling {record['sampling']:7.2f}  kgrad {text:>9}"
        f"  ESS {record['min_ess']:6.0f}  R-hat {record['rhat']:.3f}"
        f"  div {record['divergences']:3d}"
        f"  ESS/cpu-s {record['min_ess'] / record['process']:7.1f}"
        f"  of sampling {record['min_ess'] / max(record['sampling'], 1e-3):8.1f}{bad}"
    )


QUANTITIES = {
    "ESS per CPU second of the whole process": "process",
    "ESS per CPU second of the process less imports": "process_less_imports",
    "ESS per CPU second of sampling with warm-up": "sampling",
}


def rate(records, sampler, name, part):
    """Return the median of ESS per CPU second over converged runs, or None."""
    import numpy as np

    found = [
        r["min_ess"] / max(r[part], 1e-3)
        for r in records
        if r["sampler"] == sampler
        and r["model"] == name
        and "error" not in r
        and r["rhat"] <= MOST_RHAT
    ]
    return float(np.median(found)) if found else None


def summarise(records):
    """Return lines: geometric means over models of ratios to the best peer on each."""
    import numpy as np

    names = list(dict.fromkeys(r["model"] for r in records))
    peers = list(dict.fromkeys(r["sampler"] for r in records if r["sampler"] != "whence"))
    unconverged = [
        f"{r['model']} {r['sampler']} key {r['key']} ({r['rhat']:.2f})"
        for r in records
        if "error" not in r and r["rhat"] > MOST_RHAT
    ]
    lines = [
        f"No ratio counts a run with R-hat above {MOST_RHAT} on either side; left out: "
        + (", ".join(unconverged) or "none")
        + "."
    ]
    for what, part in QUANTITIES.items():
        ratios, missing = {}, []
        for name in names:
            ours = rate(records, "whence", name, part)
            theirs = {p: v for p in peers if (v := rate(records, p, name, part)) is not None}
            if ours is None or not theirs:
                missing.append(name)
                continue
            best = max(theirs, key=theirs.get)
            ratios[name] = ours / theirs[best], best
        if ratios:
            mean = float(np.exp(np.mean([np.log(r) for r, _ in ratios.values()])))
            each = ", ".join(f"{n} {r:.2f} ({best})" for n, (r, best) in ratios.items())
            none = f"; no ratio: {', '.join(missing)}" if missing else ""
            over = f"over the best peer on each of {len(ratios)} models"
            lines.append(f"{what}, {over}: {mean:.2f}x ({each}{none})")
    return lines


def pooled(records, folder, name, samplers):
    """Return posterior means and standard errors over the converged runs of some samplers."""
    import numpy as np

    runs = [
        np.load(folder / f"{r['model']}-{r['sampler']}-{r['key']}.npz")
        for r in records
        if r["model"] == name
        and r["sampler"] in samplers
        and "error" not in r
        and r["rhat"] <= MOST_RHAT
    ]
    if not runs:
        return None
    latents = [key[: -len(".mean")] for key in runs[0].files if key.endswith(".mean")]
    return {
        latent: (
            np.mean([run[f"{latent}.mean"] for run in runs], 0),
            np.sqrt(np.sum([run[f"{latent}.mcse"] ** 2 for run in runs], 0)) / len(runs),
        )
        for latent in latents
    }


def transcriptions(records, folder):
    """Return lines: the largest difference of whence's means from nutpie's, by model."""
    import numpy as np

    lines = ["Posterior means of whence less nutpie's, in their standard error, the largest:"]
    for name in dict.fromkeys(r["model"] for r in records):
        ours = pooled(records, folder, name, ["whence"])
        theirs = pooled(records, folder, name, ["nutpie_diag", "nutpie_low_rank"])
        if ours is None or theirs is None:
            lines.append(f"  {name:<18} not compared")
            continue
        worst = {}
        for latent, (mean, error) in ours.items():
            other, error_other = theirs[latent]
            worst[latent] = np.max(abs(mean - other) / np.hypot(error, error_other))
        latent = max(worst, key=worst.get)
        count = sum(mean.size for mean, _ in ours.values())
        lines.append(f"  {name:<18} {worst[latent]:.1f} ({latent}; of {count} latents)")
    return lines


def compare_densities(name, points=5):
    """Return how much the log densities of the two versions of a model differ, in nats.

    The two have the same unconstrained coordinates. A constant does not matter: returned is
    the spread of the difference over random points, and the spread of the log density.

    Args:
        name: A name in `_medium_models.MODELS`.
        points: How many.
    """
    import _medium_models
    import _medium_pymc
    import jax
    import numpy as np
    from pytensor.compile.mode import Mode

    problem, target = _medium_models.make(name), target_of(name)
    model = _medium_pymc.make(name, problem.y, problem.inputs)
    theirs = model.compile_logp(mode=Mode(linker="py", optimizer="fast_compile"))
    ours = jax.jit(lambda x: target.log_density(x))
    start = model.initial_point()
    # PyMC's names of unconstrained values: "sigma_log__", "beta_z", "mu".
    values = {full: _latent_of(full, [site.name for site in target.free]) for full in start}
    found = []
    for seed in range(points):
        x = target.init(key=jax.random.key(seed))
        x = {latent: 0.5 * np.asarray(value) for latent, value in x.items()}
        found.append((float(ours(x)), float(theirs({f: x[n] for f, n in values.items()}))))
    left, right = np.array(found).T
    return float(np.ptp(left - right)), float(np.ptp(left))


def _latent_of(value, latents):
    """Return the latent that a PyMC value variable stands for."""
    stem = value.removesuffix("__")
    fits = [n for n in latents if stem == n or stem.startswith(f"{n}_")]
    return max(fits, key=len)


def about(arguments, load):
    """Return what the figures depend on."""
    from importlib import metadata

    versions = {}
    for package in ("whence", "jax", "numpyro", "blackjax", "nutpie", "pymc", "numba"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "load before and after": [round(x, 2) for x in (load, os.getloadavg()[0])],
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": DRAWS,
        "caches": "warm" if arguments.warm else "off",
        "versions": versions,
    }


def main():
    """Parse arguments; measure, or be the worker."""
    if "--worker" in sys.argv:
        work(*sys.argv[sys.argv.index("--worker") + 1 :])
        return
    from _medium_models import MODELS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--keys", type=int, default=3, help="how many")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for a run")
    parser.add_argument("--warm", action="store_true", help="with compilation caches")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true", help="only compare log densities")
    arguments = parser.parse_args()
    if arguments.check:
        import jax

        jax.config.update("jax_enable_x64", True)
        for name in arguments.models:
            off, spread = compare_densities(name)
            print(
                f"{name:<18} differ by {off:.1e} nats over a range of {spread:.1e}", flush=True
            )
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        records = compare(arguments, Path(folder))
        summary = ["", *transcriptions(records, Path(folder)), "", *summarise(records)]
    print("\n".join(summary))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        facts = about(arguments, load)
        content = {"about": facts, "records": records, "summary": summary}
        name = "medium_warm" if arguments.warm else "medium"
        (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        text = "\n".join([str(facts), "", *map(line, records), *summary])
        (arguments.out / f"{name}.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
