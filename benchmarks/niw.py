"""Speed of the family `niw`: a step of learning from tasks, and its memory.

    uv run python benchmarks/niw.py [--out benchmarks/results] [--small]

25 tasks of 20 points, a network of 1761 weights (1-40-40-1), 20 inner steps, float32: our step
beside one written by hand for this network alone, and beside MAML with derivatives through
every inner step. All are compiled first and then called in turn, so that load falls on all
alike; processor time of this process, the middle of several calls, and ratios of calls made
after each other. Memory is what XLA plans for the compiled step's own arrays.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from whence.models import niw
from whence.studies._niw_tasks import NOISE, mlp, sine_line

STEPS = 20


def in_turn(calls, rounds):
    """Return processor milliseconds of calls by name, `(round,)`, each round calling all."""
    for call in calls.values():
        call()
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            found[name].append(1e3 * (time.process_time() - begin))
    return {name: np.array(times) for name, times in found.items()}


def compiled_step(procedure, meta):
    """Return the compiled step of a procedure, and the arguments it is called with."""
    problem = meta.on(niw.Episodes(sine_line))
    state = procedure.init(problem, key=jr.key(0))
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(arrays, key):
        new, info = procedure.step(problem, eqx.combine(arrays, rest), 0, key=key)
        return eqx.filter(new, eqx.is_array), info.stats["loss"]

    return jax.jit(step).lower(arrays, jr.key(1)).compile(), (arrays, jr.key(1))


def by_hand(steps):
    """Return the diagonal scheme for this one network, as one would write it in a script."""
    sizes = (1, 40, 40, 1)
    keys = jr.split(jr.key(0), 3)
    start = [
        (jr.normal(k, (a, b)) / a**0.5, jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:])
    ]
    flat, unravel = jax.flatten_util.ravel_pytree(start)

    def f(w, x):
        layers = unravel(w)
        for i, (a, b) in enumerate(layers):
            x = x @ a + b
            x = jax.nn.relu(x) if i < 2 else x
        return x[..., 0]

    def nll(w, x, y):
        return jnp.sum((f(w, x) - y) ** 2) / (2 * NOISE**2)

    inner = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    outer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))

    def fit(m0, log_p, x, y):
        sd = jnp.exp(-log_p / 2)
        objective = lambda u: nll(m0 + sd * u, x, y) + jnp.sum(u**2) / 2

        def step(carry, _):
            u, state = carry
            updates, state = inner.update(jax.grad(objective)(u), state)
            return (u + updates, state), None

        zero = jnp.zeros_like(m0)
        (u, _), _ = jax.lax.scan(step, (zero, inner.init(zero)), None, length=steps)
        w = m0 + sd * u
        jacobian = jax.vmap(jax.grad(lambda w, x: f(w, x[None])[0]), (None, 0))(w, x)
        return w, jnp.sum(jacobian**2, 0) / NOISE**2, jax.grad(nll)(w, x, y)

    def loss(params, x, y, key):
        def one(x, y, key):
            m0, log_p = params
            held = jax.lax.stop_gradient((m0, log_p))
            w, a, g = jax.lax.stop_gradient(fit(*held, x, y))
            p = jnp.exp(log_p)
            v = 1 / (a + p)
            m = m0 + v * (a * (w - m0) - g)
            move = jnp.sqrt(v) * jr.normal(key, m.shape)
            fitted = (nll(m + move, x, y) + nll(m - move, x, y)) / 2
            return fitted + jnp.sum(-log_p - jnp.log(v) + p * v + p * (m - m0) ** 2 - 1) / 2

        return jnp.mean(jax.vmap(one)(x, y, jr.split(key, len(x))))

    def step(state, key):
        params, optimizer = state
        key_data, key_loss = jr.split(key)
        x, y = sine_line(key_data)
        value, gradient = jax.value_and_grad(loss)(params, x, y, key_loss)
        updates, optimizer = outer.update(gradient, optimizer)
        return (optax.apply_updates(params, updates), optimizer), value

    params = flat, jnp.full(flat.shape, jnp.log(100.0))
    args = (params, outer.init(params)), jr.key(1)
    return jax.jit(step).lower(*args).compile(), args


def programs():
    """Return functions from the number of inner steps to a compiled step and its arguments."""
    meta = niw.NIWMeta(mlp(jr.key(0)), niw.Gaussian(NOISE))
    found = {"by hand, diagonal": by_hand}
    for structure in ("diagonal", "full", "last_layer"):
        found[f"niw, {structure}"] = lambda n, s=structure: compiled_step(
            niw.OneTimeIterates(local=niw.GGNLaplace(steps=n, structure=s)), meta
        )
    found["niw, SGLD moments"] = lambda n: compiled_step(
        niw.OneTimeIterates(local=niw.SGLDMoments(steps=n, warmup=n // 2)), meta
    )
    found["MAML, unrolled"] = lambda n: compiled_step(niw.PointMeta(inner_steps=n), meta)
    return found


def measure(rounds):
    """Return a row of figures for each program."""
    calls, memory = {}, {}
    for name, make in programs().items():
        for steps in (STEPS, 80):
            program, args = make(steps)
            size = program.memory_analysis().temp_size_in_bytes / 2**20
            memory.setdefault(name, {})[steps] = size
            if steps == STEPS:
                calls[name] = lambda p=program, a=args: jax.block_until_ready(p(*a))
    times = in_turn(calls, rounds)
    hand, maml = times["by hand, diagonal"], times["MAML, unrolled"]
    return {
        name: {
            "ms": float(np.median(each)),
            "of by hand": float(np.median(each / hand)),
            "MAML of it": float(np.median(maml / each)),
            "MB": memory[name],
        }
        for name, each in times.items()
    }


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument("--small", action="store_true", help="few repetitions")
    arguments = parser.parse_args()
    rows = measure(10 if arguments.small else 40)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": [round(x, 1) for x in os.getloadavg()],
        "rows": rows,
    }
    lines = [
        f"{report['date']}, {report['machine']}; load {report['load']}",
        "",
        f"{'':20s} {'CPU ms':>8s} {'of by hand':>11s} {'MAML of it':>11s}"
        "   MB at 20 and 80 inner steps",
    ]
    for name, row in rows.items():
        sizes = " ".join(f"{size:8.1f}" for size in row["MB"].values())
        ratios = f"{row['of by hand']:11.2f} {row['MAML of it']:11.2f}"
        lines.append(f"{name:20s} {row['ms']:8.1f} {ratios}   {sizes}")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        (arguments.out / "niw.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.out / "niw.txt").write_text(text)


if __name__ == "__main__":
    main()
