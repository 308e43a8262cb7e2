"""Do chains find the posterior from the usual starts? whence, numpyro, blackjax, nutpie.

The problems of `_hard_starts.py`, each with 10 keys of 4 chains of NUTS at its defaults,
700 warm-up steps and 300 draws, in float32 and float64. Every library gets whence's own log
density on the flat unconstrained space, and the same kind of start: uniform on (-2, 2) in
unconstrained space, drawn anew, up to 100 times, until log density and gradient are finite.
(whence draws its own in this way; for the others it is done here, as Stan, PyMC and numpyro
do it for models of theirs.) nutpie calls the density from Python, in float64 only, and has a
time limit for each key; what is beyond the limit is not measured.

A chain is lost, by one rule for all (`verdicts`), if it is not finite, stands still, or ends
elsewhere than the reference: long runs by two libraries in float64, from good starts, in
`results/starts_reference.json` with their joint R-hat. The log densities that count are those
of the chain's draws in float64, whatever the chain ran in. Not being lost does not mean to
have converged.

    uv run --group bench python benchmarks/starts.py --out benchmarks/results
    ... --libraries whence --problems survival metres --keys 3 --precision float32   a part
    ... --reference --problems survival     makes the reference anew

From a script of your own, with this folder on `sys.path`:

    from starts import load_reference, lost, run_whence
    draws, lp = run_whence("survival", key=0)
    lost(draws, lp, load_reference("survival"))  # one bool for each chain
"""

import argparse
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
REFERENCE = HERE / "results" / "starts_reference.json"
LIBRARIES = ("whence", "numpyro", "blackjax", "nutpie")
PRECISIONS = ("float32", "float64")
CHAINS, WARMUP, DRAWS, MAX_TRIES = 4, 700, 300, 100
MOST_RHAT = 1.02  # of a reference


# -- the judge ---------------------------------------------------------------------


def load_reference(problem):
    """Return the reference of a problem: mean, sd, lp_mean, lp_sd, several_modes.

    Args:
        problem: A name in `_hard_starts.PROBLEMS`.

    Raises:
        ValueError: If there is none, or its two libraries disagree.
    """
    found = json.loads(REFERENCE.read_text()).get(problem)
    if found is None or not found["rhat"] < MOST_RHAT:
        rhat = f"R-hat {found['rhat']:.3f}" if found else "none"
        raise ValueError(
            f"{problem} needs a reference with R-hat below {MOST_RHAT}; got {rhat}."
        )
    return found


def verdicts(draws, lp, reference):
    """Say of each chain how it is lost; an empty string if it is not.

    Args:
        draws: Flat unconstrained draws, shape `(chain, draw, dim)`.
        lp: Their log densities in nats, shape `(chain, draw)`.
        reference: As `load_reference` returns.

    Returns:
        For each chain "not finite", "still" (the standard deviation of some coordinate is
        below a thousandth of the reference's), "low" (the mean log density is below the
        reference's by more than 20 nats and 10 standard deviations), "elsewhere" (the mean
        of some coordinate is 5 standard deviations or more away; not asked where the
        posterior has several modes), or "".
    """
    import numpy as np

    draws, lp = np.asarray(draws, np.float64), np.asarray(lp, np.float64)
    mean, sd = np.asarray(reference["mean"]), np.asarray(reference["sd"])
    low = reference["lp_mean"] - max(20.0, 10.0 * reference["lp_sd"])
    found = []
    for x, density in zip(draws, lp):
        if not (np.isfinite(x).all() and np.isfinite(density).all()):
            found.append("not finite")
        elif (x.std(0) < 1e-3 * sd).any():
            found.append("still")
        elif density.mean() < low:
            found.append("low")
        elif not reference["several_modes"] and (abs(x.mean(0) - mean) > 5 * sd).any():
            found.append("elsewhere")
        else:
            found.append("")
    return found


def lost(draws, lp, reference):
    """Return for each chain whether it is lost; see `verdicts`."""
    import numpy as np

    return np.array([bool(word) for word in verdicts(draws, lp, reference)])


# -- the libraries -----------------------------------------------------------------


def make_target(problem):
    """Return the target of a problem in the precision that is set."""
    import _hard_starts

    import whence as wh

    made = _hard_starts.make(problem)
    return wh.condition(made.model, made.y, *made.inputs)


def density_in_float64(problem):
    """Return a function from draws `(chain, draw, dim)` to log densities in float64."""
    import jax
    import numpy as np
    from nuts import flat_density

    with jax.enable_x64(True):
        density = flat_density(make_target(problem))[0]
        batch = jax.jit(lambda x: jax.lax.map(density, x, batch_size=50))

    def evaluate(draws):
        draws = np.asarray(draws, np.float64)
        with jax.enable_x64(True):
            return np.asarray(batch(draws.reshape(-1, draws.shape[-1]))).reshape(
                draws.shape[:-1]
            )

    return evaluate


def run_whence(problem, *, key, engine=None):
    """Run whence once; return draws and their log densities in float64.

    Args:
        problem: A name in `_hard_starts.PROBLEMS`.
        key: An integer.
        engine: An engine other than `NUTS(chains=4, warmup=700, draws=300)`.
    """
    draws = prepare_whence(make_target(problem), engine)(key)
    return draws, density_in_float64(problem)(draws)


def prepare_whence(target, engine=None):
    """Return a function from an integer key to draws."""
    import jax
    import numpy as np
    from nuts import flat

    import whence as wh

    engine = engine or wh.NUTS(chains=CHAINS, warmup=WARMUP, draws=DRAWS)

    def run(key):
        posterior = wh.infer(
            target, engine, key=jax.random.key(key), progress=False, throw=False
        )
        return flat(posterior.sample.positions, np)

    return run


def finite_start(density, start):
    """Return a function from a key to the first start with a finite value and gradient."""
    import jax
    import jax.numpy as jnp

    gradient = jax.value_and_grad(density)

    def bad(carry):
        x, tries, _ = carry
        value, slope = gradient(x)
        fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
        return ~fine & (tries < MAX_TRIES)

    def again(carry):
        _, tries, key = carry
        now, later = jax.random.split(key)
        return start(now), tries + 1, later

    def find(key):
        return jax.lax.while_loop(bad, again, again((None, 0, key)))[0]

    return find


def one_program(chain):
    """Return a function from an integer key to draws, all keys by one compiled program.

    Args:
        chain: From a key to the draws of one chain.
    """
    import jax
    import numpy as np

    fit = jax.jit(lambda key: jax.lax.map(chain, jax.random.split(key, CHAINS)))
    return lambda key: np.asarray(fit(jax.random.key(key)))


def prepare_numpyro(target):
    import jax
    from numpyro.infer import NUTS
    from nuts import flat_density

    density, start, _ = flat_density(target)
    find = finite_start(density, start)

    def chain(key):
        key_start, key_run = jax.random.split(key)
        kernel = NUTS(potential_fn=lambda x: -density(x))
        state = kernel.init(key_run, WARMUP, find(key_start), (), {})

        def one(state, _):
            state = kernel.sample(state, (), {})
            return state, state.z

        return jax.lax.scan(one, state, None, length=WARMUP + DRAWS)[1][WARMUP:]

    return one_program(chain)


def prepare_blackjax(target):
    import blackjax
    import jax
    from nuts import flat_density

    density, start, _ = flat_density(target)
    find = finite_start(density, start)

    def chain(key):
        key_start, key_warm, key_run = jax.random.split(key, 3)
        warm = blackjax.window_adaptation(blackjax.nuts, density)
        (state, parameters), _ = warm.run(key_warm, find(key_start), WARMUP)
        kernel = blackjax.nuts(density, **parameters)

        def one(state, key):
            state, _ = kernel.step(key, state)
            return state, state.position

        return jax.lax.scan(one, state, jax.random.split(key_run, DRAWS))[1]

    return one_program(chain)


def prepare_nutpie(target, limit):
    import jax
    import numpy as np
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc
    from nuts import flat_density

    density, start, dim = flat_density(target)
    find = jax.jit(finite_start(density, start))
    gradient = jax.jit(jax.value_and_grad(density))
    gradient(np.zeros(dim))

    def logp(x):
        value, slope = gradient(x)
        return float(value), np.asarray(slope)

    model = from_pyfunc(
        dim,
        lambda: logp,
        lambda *_: lambda x: {"x": np.asarray(x)},
        [np.dtype("float64")],
        [(dim,)],
        ["x"],
        make_initial_point_fn=lambda s: np.asarray(find(jax.random.key(s % 2**31))),
    )

    def run(key):
        sampler = nutpie.sample(
            model,
            draws=DRAWS,
            tune=WARMUP,
            chains=CHAINS,
            cores=1,
            seed=key,
            progress_bar=False,
            blocking=False,
        )
        try:
            trace = sampler.wait(timeout=limit)
        except TimeoutError:
            sampler.abort()
            raise
        return np.asarray(trace["posterior"]["x"])

    return run


def prepare(library, target, limit):
    """Return a function from an integer key to draws of shape `(chain, draw, dim)`."""
    if library == "nutpie":
        return prepare_nutpie(target, limit)
    return {
        "whence": prepare_whence,
        "numpyro": prepare_numpyro,
        "blackjax": prepare_blackjax,
    }[library](target)


# -- a worker: one library, one precision, problems in turn ------------------------


def tell(**what):
    print(json.dumps(what), flush=True)


def work(library, precision, problems, keys, limit):
    """Print a line of JSON for each key of each problem."""
    import warnings

    import jax

    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", precision == "float64")
    for problem in problems:
        tell(begin=problem)
        reference = load_reference(problem)
        try:
            run = prepare(library, make_target(problem), limit)
            density = density_in_float64(problem)
        except Exception as error:  # a library that refuses a problem loses its chains
            for key in keys:
                tell(problem=problem, key=key, verdicts=[_short(error)] * CHAINS)
            continue
        for key in keys:
            clock = time.process_time()
            try:
                draws = run(key)
                words = verdicts(draws, density(draws), reference)
            except TimeoutError:
                words = None
            except Exception as error:
                words = [_short(error)] * CHAINS
            tell(problem=problem, key=key, verdicts=words, cpu=time.process_time() - clock)


def _short(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"


# -- the whole comparison ----------------------------------------------------------


def measure(library, precision, problems, keys, arguments):
    """Run workers until all problems have had their time; yield a record for each.

    A problem that takes longer than `arguments.limit` is cut short: what it has is kept,
    and a new worker goes on with the next.
    """
    left = list(problems)
    while left:
        yield from _one_worker(library, precision, left, keys, arguments)


def _one_worker(library, precision, left, keys, arguments):
    command = [sys.executable, __file__, "--worker", library, precision]
    command += ["--problems", *left, "--key-list", *map(str, keys)]
    command += ["--limit-per-key", str(arguments.limit_per_key)]
    environment = os.environ | {"WHENCE_CACHE": "off", "JAX_PLATFORMS": "cpu"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # threads that wait for each other count as work
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    lines, errors = queue.Queue(), []

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    # Both pipes are read all the time, lest the worker wait for room in one.
    threading.Thread(target=read, daemon=True).start()
    threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True).start()
    record, deadline = None, time.monotonic() + 120 + arguments.limit
    while left:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            process.kill()
            line = "late"
        if line is None or line == "late":
            process.wait()
            record = record or _record(library, precision, left[0])
            why = (errors or ["?"])[-1].strip()[:200]
            record["error"] = f"more than {arguments.limit:.0f} s" if line else why
            left.pop(0)
            yield record
            return
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        if "begin" in told:
            record = _record(library, precision, told["begin"])
            deadline = time.monotonic() + arguments.limit
        elif told["verdicts"] is not None:
            record["verdicts"][str(told["key"])] = told["verdicts"]
            record["cpu"] += told.get("cpu", 0.0)
        if "key" in told and told["key"] == keys[-1]:
            left.pop(0)
            yield record
            record = None
    process.wait()


def _record(library, precision, problem):
    return {
        "problem": problem,
        "library": library,
        "precision": precision,
        "verdicts": {},
        "cpu": 0.0,
        "date": time.strftime("%Y-%m-%d"),
    }


def count(record):
    """Return the numbers of chains lost and measured."""
    words = [word for chain in record["verdicts"].values() for word in chain]
    return sum(map(bool, words)), len(words)


def line(record):
    """Return one record as a line of text."""
    found, measured = count(record)
    how = {}
    for chain in record["verdicts"].values():
        for word in filter(None, chain):
            how[word] = how.get(word, 0) + 1
    text = ", ".join(f"{n} {word}" for word, n in sorted(how.items()))
    head = f"{record['problem']:<20}{record['library']:<10}{record['precision']:<9}"
    text = f"{head} lost {found:3d} of {measured:3d}  {record['cpu']:7.1f} cpu-s  {text}"
    return text + (f"  ({record['error']})" if record.get("error") else "")


def table(records):
    """Return lines: chains lost by problem, library and precision, and totals."""
    columns = [
        (library, precision)
        for library in LIBRARIES
        for precision in PRECISIONS
        if any((r["library"], r["precision"]) == (library, precision) for r in records)
    ]
    cell = {(r["problem"], r["library"], r["precision"]): r for r in records}
    problems = list(dict.fromkeys(r["problem"] for r in records))
    names = [f"{library} {precision[-2:]}" for library, precision in columns]
    lines = [" " * 20 + "".join(f"{name:>14}" for name in names)]
    show = lambda n: f"{n[0]} of {n[1]}" if n[1] else "not measured"
    for problem in problems:
        counts = [count(cell.get((problem, *c), {"verdicts": {}})) for c in columns]
        lines.append(f"{problem:<20}" + "".join(f"{show(n):>14}" for n in counts))
    for title, rows in _totals(columns, cell, problems):
        sums = [
            tuple(map(sum, zip(*(count(cell[p, *c]) for p in rows if (p, *c) in cell))))
            for c in columns
        ]
        lines.append(f"{title:<20}" + "".join(f"{show(n or (0, 0)):>14}" for n in sums))
    return lines


def _totals(columns, cell, problems):
    """Return the rows to sum: all, and those that every library was measured on in full."""
    full = [
        p
        for p in problems
        if len({count(cell.get((p, *c), {"verdicts": {}}))[1] for c in columns}) == 1
    ]
    return [("total", problems), (f"total of {len(full)} full", full)]


def results(arguments, records):
    """Write records and table, what is there of other parts kept."""
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": [round(x, 2) for x in os.getloadavg()],
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": DRAWS,
        "versions": versions(),
    }
    path = arguments.out / "starts.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text())["records"] if path.exists() else []
    key = lambda r: (r["problem"], r["library"], r["precision"])
    merged = {key(r): r for r in known} | {key(r): r for r in records}
    records = sorted(merged.values(), key=_order)
    path.write_text(json.dumps({"about": about, "records": records}, indent=1) + "\n")
    text = [str(about), "", "Chains lost", "", *table(records), "", *map(line, records)]
    (arguments.out / "starts.txt").write_text("\n".join(text) + "\n")


def _order(record):
    import _hard_starts

    problems = list(_hard_starts.PROBLEMS)
    return (
        problems.index(record["problem"]),
        LIBRARIES.index(record["library"]),
        record["precision"],
    )


def versions():
    """Return the versions of the libraries that are installed."""
    from importlib import metadata

    found = {}
    for name in ("whence", "jax", "numpyro", "blackjax", "nutpie"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main():
    """Parse arguments; measure, make the reference, or be the worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", help="by default all")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--keys", type=int, default=10, help="how many")
    parser.add_argument("--repeat", type=int, default=0, help="other keys: which set of them")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for a problem")
    parser.add_argument("--limit-per-key", type=float, default=60.0, help="seconds, of nutpie")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reference", action="store_true", help="make it anew")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--key-list", nargs="+", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        rest = arguments.problems, arguments.key_list, arguments.limit_per_key
        work(*arguments.worker, *rest)
        return
    import _hard_starts

    problems = arguments.problems or list(_hard_starts.PROBLEMS)
    if unknown := set(problems) - set(_hard_starts.PROBLEMS):
        raise SystemExit(f"no such problem: {', '.join(sorted(unknown))}")
    if arguments.reference:
        from _starts_reference import make_reference

        make_reference(problems, REFERENCE)
        return
    keys = [1000 * arguments.repeat + i for i in range(arguments.keys)]
    records = []
    for precision in arguments.precision:
        for library in arguments.libraries:
            if library == "nutpie" and precision == "float32":
                continue
            for record in measure(library, precision, problems, keys, arguments):
                records.append(record)
                print(line(record), flush=True)
    print("\n".join(["", *table(records)]))
    if arguments.out:
        results(arguments, records)


if __name__ == "__main__":
    main()
