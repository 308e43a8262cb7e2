"""Stochastic-gradient samplers, steps per second: whence, blackjax and a scan by hand.

A network 101-67-67-5 (11,730 weights) with tanh units and standard normal priors, 10,000 rows
of made-up data, batches of 256, float32, one chain. Three programs make the updates of SGLD,
and three those of SGHMC (one gradient an update, momentum never drawn anew):

- whence: the engine through `whence.infer`, reshuffled batches; the time of its loop alone;
- blackjax: its gradient estimator and integrator in a `lax.scan`, rows drawn with replacement
  (its `sghmc` draws the momentum at every call, so its integrator is called directly);
- hand: the arithmetic written out in a `lax.scan` on one flat vector, reshuffled batches.

Each is compiled by a first run and then timed in turns, `--repeats` times, in one process; the
table has the best and the median, since other work on a machine only ever adds.

    uv run python benchmarks/sgmcmc.py --out benchmarks/results
    uv run python benchmarks/sgmcmc.py --steps 200 --repeats 1      # a look
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from blackjax.sgmcmc.diffusions import overdamped_langevin, sghmc
from blackjax.sgmcmc.gradients import grad_estimator
from jax.flatten_util import ravel_pytree

import whence as wh
from whence.core import log_density_estimate

ROWS, BATCH, THIN = 10_000, 256, 50
STEP, MOMENTUM_STEP, FRICTION = 1e-6, 1e-3, 100.0


def make_target(seed: int = 0):
    """Return the network on made-up data, and how many weights it has."""
    module = eqx.nn.MLP(101, 5, 67, 2, activation=jnp.tanh, key=jr.key(0))
    model = wh.bayesian(module, dist.Normal(0.0, 1.0), likelihood=wh.classification())
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 101)).astype(np.float32)
    y = np.argmax(x[:, :5] + rng.normal(size=(ROWS, 5)), axis=1).astype(np.int32)
    target = wh.condition(model, y, x)
    flat, _ = ravel_pytree(target.init(key=jr.key(1)))
    return target, flat.size


def whence(engine):
    """Return a function that makes updates and returns seconds."""

    def run(target, steps, key):
        made = engine(steps)
        posterior = wh.infer(target, made, key=key, progress=False, throw=False)
        return posterior.seconds["warmup"] + posterior.seconds["sampling"]

    return run


def scanned(program):
    """Return a function that times a compiled program."""

    def run(target, steps, key):
        start = target.init(key=jr.key(1))
        begin = time.perf_counter()
        jax.block_until_ready(program(target, start, steps, key))
        return time.perf_counter() - begin

    return run


def blackjax_program(move, with_momentum: bool):
    def program(target, start, steps, key):
        zeros = jax.tree.map(jnp.zeros_like, start)
        gradient = grad_estimator(
            target.log_prior,
            lambda x, row: target.log_likelihood(x, row[None]).sum(),
            target.num_data,
        )

        def body(carry, i):
            position, momentum = carry
            key_rows, key_move = jr.split(jr.fold_in(key, i))
            rows = jr.randint(key_rows, (BATCH,), 0, ROWS)
            if with_momentum:
                # Of the library's order: position first, then the gradient there.
                position, momentum = move(
                    key_move, position, momentum, gradient(position, rows), MOMENTUM_STEP
                )
            else:
                position = move(key_move, position, gradient(position, rows), STEP)
            return (position, momentum), None

        return jax.lax.scan(body, (start, zeros), jnp.arange(steps))[0]

    return jax.jit(program, static_argnums=2)


def hand_program(with_momentum: bool):
    def program(target, start, steps, key):
        flat, form = ravel_pytree(start)
        per_epoch = ROWS // BATCH

        def body(carry, i):
            q, p, order = carry
            key_rows, key_noise = jr.split(jr.fold_in(key, i))
            shuffled = lambda: jr.permutation(key_rows, ROWS)[: per_epoch * BATCH]
            order = jax.lax.cond(i % per_epoch == 0, shuffled, lambda: order)
            rows = jax.lax.dynamic_slice_in_dim(order, i % per_epoch * BATCH, BATCH)
            force = jax.grad(lambda x: log_density_estimate(target, form(x), rows))
            noise = jr.normal(key_noise, q.shape, q.dtype)
            if with_momentum:
                h, friction = MOMENTUM_STEP, FRICTION
                q = q + h * p
                p = (1 - h * friction) * p + h * force(q) + (2 * h * friction) ** 0.5 * noise
            else:
                q = q + STEP * force(q) + (2 * STEP) ** 0.5 * noise
            return (q, p, order), None

        order = jnp.zeros(per_epoch * BATCH, jnp.int32)
        return jax.lax.scan(body, (flat, jnp.zeros_like(flat), order), jnp.arange(steps))[0]

    return jax.jit(program, static_argnums=2)


def engine_of(make, **settings):
    common = {"chains": 1, "batch_size": BATCH, "warmup": 0, "checks": 0.0, "thin": THIN}
    return whence(lambda steps: make(steps=steps, **common, **settings))


PROGRAMS = {
    "SGLD": {
        "whence": engine_of(wh.SGLD, step_size=STEP),
        "blackjax": scanned(blackjax_program(overdamped_langevin(), with_momentum=False)),
        "hand": scanned(hand_program(with_momentum=False)),
    },
    "SGHMC": {
        "whence": engine_of(wh.SGHMC, step_size=MOMENTUM_STEP, friction=FRICTION),
        "blackjax": scanned(blackjax_program(sghmc(FRICTION), with_momentum=True)),
        "hand": scanned(hand_program(with_momentum=True)),
    },
}


def main() -> None:
    """Measure and print; write a JSON file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    target, weights = make_target()
    load = os.getloadavg()[0]
    results: dict[str, Any] = {}
    print(f"{weights} weights, {options.steps} updates, load {load:.1f}")
    for method, programs in PROGRAMS.items():
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for run in programs.values():
            run(target, options.steps, jr.key(0))  # compiles
        for repeat in range(options.repeats):
            for name, run in programs.items():
                seconds[name].append(run(target, options.steps, jr.key(repeat + 1)))
        for name, taken in seconds.items():
            best, middle = options.steps / min(taken), options.steps / float(np.median(taken))
            results[f"{method} {name}"] = {"best": best, "median": middle, "seconds": taken}
            print(f"{method:6} {name:9} {best:8.0f} updates/s at best, {middle:8.0f} median")
    if options.out:
        about = {"weights": weights, "steps": options.steps, "load": load}
        about |= {
            "jax": jax.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        (options.out / "sgmcmc.json").write_text(
            json.dumps({"about": about, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
