"""Speed of the family `niw`: a step of learning from tasks, and its memory.

    uv run python benchmarks/niw.py [--small]

25 tasks of 20 points, a network of 1761 weights (1-40-40-1), 20 inner steps, float32: our step
beside one written by hand for this network alone, and beside MAML with derivatives through
every inner step. Wall and processor time, best of several, in one run. Memory is what XLA
plans for the compiled step's own arrays.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from whence.models import niw
from whence.studies._niw_tasks import NOISE, mlp, sine_line

STEPS = 20


def best(function, repeats):
    """Return the least wall and processor time of a call, in ms, after one that compiles."""
    function()
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        found.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return tuple(min(column) for column in zip(*found))


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


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="few repetitions")
    repeats = 3 if parser.parse_args().small else 30
    meta = niw.NIWMeta(mlp(jr.key(0)), niw.Gaussian(NOISE))
    rows = {"by hand, diagonal": by_hand}
    for structure in ("diagonal", "full", "last_layer"):
        rows[f"niw, {structure}"] = lambda n, s=structure: compiled_step(
            niw.OneTimeIterates(local=niw.GGNLaplace(steps=n, structure=s)), meta
        )
    rows["niw, SGLD moments"] = lambda n: compiled_step(
        niw.OneTimeIterates(local=niw.SGLDMoments(steps=n, warmup=n // 2)), meta
    )
    rows["MAML, unrolled"] = lambda n: compiled_step(niw.PointMeta(inner_steps=n), meta)
    print(f"{'':20s} {'wall ms':>9s} {'cpu ms':>9s}   MB at 10, 20, 80 inner steps")
    for name, make in rows.items():
        memory = []
        for steps in (10, STEPS, 80):
            program, args = make(steps)
            memory.append(program.memory_analysis().temp_size_in_bytes / 2**20)
            if steps == STEPS:
                run = lambda p=program, a=args: jax.block_until_ready(p(*a))
                wall, cpu = best(run, repeats)
        sizes = " ".join(f"{size:8.1f}" for size in memory)
        print(f"{name:20s} {wall:9.1f} {cpu:9.1f}   {sizes}")


if __name__ == "__main__":
    main()
