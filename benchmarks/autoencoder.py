"""Speed of the family `autoencoder`: a step of SGHMC, an outer step of DSWD, the mixture.

    uv run python benchmarks/autoencoder.py --out benchmarks/results
    uv run --with scikit-learn python benchmarks/autoencoder.py    # with the mixture of that

Networks 784-128-16-128-784, 205,856 weights, float32. The steps are compared with some written
by hand in plain JAX, the same arithmetic; the mixture with that of scikit-learn if it is
installed. Programs are compiled, then timed in turns; the least processor time of each counts,
since other work on a machine only ever adds.
"""

import argparse
import importlib.util
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import whence as wh
from whence.core import advance, log_density_estimate
from whence.models import autoencoder
from whence.studies._bae_functions import scale_adapted

DRAWS, BATCH, LINES, INNER, PENALTY = 8, 32, 200, 5, 2.2
DIM, LATENT, WIDTH = 784, 16, 128
STEP, DECAY, ROWS = 3e-3, 0.05, 64  # of SGHMC, as published


def best(functions, repeats):
    """Return the least processor time of calls, in ms, in turns after one that compiles."""
    for function in functions.values():
        jax.block_until_ready(function())
    found = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.process_time()
            jax.block_until_ready(function())
            found[name].append(1e3 * (time.process_time() - begin))
    return {name: min(each) for name, each in found.items()}


def sampler(x, steps):
    """Return programs of some steps of scale-adapted SGHMC in its warm-up, and by hand."""
    networks = autoencoder.dense((DIM,), LATENT, (WIDTH,), key=0)
    target = wh.condition(autoencoder.BayesianAutoencoder(*networks), x)
    rule = {"steps": 2 * steps, "warmup": steps, "thin": steps, "batch_size": ROWS}
    engine = scale_adapted(STEP, DECAY, chains=1, **rule)
    state = jax.jit(lambda key: engine.init(target, key=key))(jr.key(0))
    key = jr.key(1)
    ours = jax.jit(lambda target, state: advance(engine, target, state, 0, 1, key=key)[0])

    def program(target):
        start, back = ravel_pytree(target.init(key=jr.key(0)))
        density = lambda q, rows: log_density_estimate(target, back(q), rows)

        def step(carry, key):
            q, p, tau, g, v = carry
            key_rows, key_noise = jr.split(key)
            rows = jr.randint(key_rows, (ROWS,), 0, len(x))
            slope = -jax.grad(density)(q, rows)
            rate = 1 / (tau + 1)
            tau = tau - tau * g**2 / (v + 1e-16) + 1
            g, v = g + rate * (slope - g), v + rate * (slope**2 - v)
            m = 1 / (jnp.sqrt(v) + 1e-16)
            q_noise = jnp.maximum(2 * STEP**2 * DECAY * m - STEP**4, 1e-16)
            noise = jnp.sqrt(q_noise) * jr.normal(key_noise, q.shape)
            p = (1 - DECAY) * p - STEP**2 * m * slope + noise
            return (q + p, p, tau, g, v), None

        one = jnp.ones_like(start)
        begin = start, jnp.zeros_like(start), one, one, one
        return jax.lax.scan(step, begin, jr.split(key, steps))[0]

    hand = jax.jit(program)
    return {"whence": lambda: ours(target, state), "hand": lambda: hand(target)}


def by_hand(x):
    """Return a function that makes some outer steps, without anything of the package."""
    sizes = [(WIDTH, DIM), (LATENT, WIDTH), (WIDTH, LATENT), (DIM, WIDTH)]
    keys = jr.split(jr.key(0), 4)
    means = [jr.normal(k, s) / np.sqrt(s[1]) for k, s in zip(keys, sizes)]
    biases = [jnp.zeros(s[0]) for s in sizes]
    psi = [(m, jnp.full(m.shape, -3.0)) for m in (*means, *biases)]
    phi = jr.normal(jr.key(1), (DIM, DIM)) / np.sqrt(DIM), jnp.zeros(DIM)
    slow, fast = optax.adam(1e-3), optax.adam(5e-4)

    def images(psi, batch, key):
        def one(key):
            w = [
                m + jnp.exp(s) * jr.normal(jr.fold_in(key, i), m.shape)
                for i, (m, s) in enumerate(psi)
            ]
            h = batch
            for i in range(4):
                h = h @ w[i].T + w[4 + i]
                h = jax.nn.sigmoid(h) if i == 3 else h if i == 1 else jax.nn.leaky_relu(h)
            return h

        return jax.vmap(one)(jr.split(key, DRAWS)).reshape(-1, DIM)

    def unit(v):
        return v / jnp.linalg.norm(v, axis=1, keepdims=True)

    def distance(made, batch, lines):
        a = jnp.sort(made @ lines.T, axis=0).reshape(BATCH, DRAWS, -1)
        b = jnp.sort(batch @ lines.T, axis=0)[:, None]
        return jnp.sqrt(jnp.mean((a - b) ** 2))

    def step(i, carry):
        psi, phi, state, inner = carry
        keys = jr.split(jr.fold_in(jr.key(2), i), 3)
        batch = x[jr.choice(keys[0], len(x), (BATCH,), replace=False)]
        lines = unit(jr.normal(keys[1], (LINES, DIM)))
        fixed = images(psi, batch, keys[2])

        def against(phi):
            mapped = unit(lines @ phi[0].T + phi[1])
            alike = jnp.abs(mapped @ mapped.T).mean()
            return PENALTY * alike - distance(fixed, batch, mapped)

        for _ in range(INNER):
            move, inner = fast.update(jax.grad(against)(phi), inner)
            phi = optax.apply_updates(phi, move)
        mapped = unit(lines @ phi[0].T + phi[1])
        loss = lambda psi: distance(images(psi, batch, keys[2]), batch, mapped)
        move, state = slow.update(jax.grad(loss)(psi), state)
        return optax.apply_updates(psi, move), phi, state, inner

    start = psi, phi, slow.init(psi), fast.init(phi)
    return jax.jit(lambda n: jax.lax.fori_loop(0, n, step, start))


def selection(x, steps):
    """Return programs of some outer steps of DSWD, and by hand."""
    plain = by_hand(jnp.asarray(x))
    networks = autoencoder.dense((DIM,), LATENT, (WIDTH,), key=0)
    model = autoencoder.BayesianAutoencoder(*networks)
    start = autoencoder.GaussianPrior.around(model.networks())
    problem = autoencoder.PriorProblem(model, x, start=start)
    # A look at the whole set is a hundredth of a run: here there is one.
    procedure = autoencoder.DSWD(steps=steps, look_every=10**6, warmup=0)
    state = jax.jit(lambda key: procedure.init(problem, key=key))(jr.key(0))
    go = jax.jit(lambda state: advance(procedure, problem, state, 1, steps, key=jr.key(1))[0])
    return {"whence": lambda: go(state), "hand": lambda: plain(steps)}


def mixture(rows, updates):
    """Return programs of some updates of a mixture of 20 components, and of scikit-learn."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(rows, LATENT)) + 3 * rng.integers(0, 3, size=(rows, 1))
    codes = codes.astype(np.float32)
    ours = autoencoder.DirichletMixture(20, steps=updates, tolerance=1e-30)
    programs = {"whence": lambda: ours.fit(codes).bound}
    if importlib.util.find_spec("sklearn") is not None:
        from sklearn.mixture import BayesianGaussianMixture

        settings = {"weight_concentration_prior": 0.05, "max_iter": updates, "random_state": 0}
        theirs = BayesianGaussianMixture(n_components=20, tol=0, **settings)
        programs["scikit-learn"] = lambda: theirs.fit(codes).lower_bound_
    return programs


def main():
    """Time everything and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    x = np.random.default_rng(0).beta(1, 2, size=(200, DIM)).astype(np.float32)
    found = {}
    for title, programs, count in (
        ("a step of SGHMC, 205,856 weights, 64 rows", sampler(x, 100), 100),
        ("an outer step of DSWD", selection(x[:100], 20), 20),
        ("an update of the mixture, 10,000 codes of 16", mixture(10_000, 20), 20),
    ):
        times = best(programs, arguments.repeats)
        found[title] = {name: each / count for name, each in times.items()}
        own = found[title]["whence"]
        said = [f"{name} {each:.3g}" for name, each in found[title].items()]
        rest = [f"{each / own:.2f}" for name, each in found[title].items() if name != "whence"]
        print(f"{title}: CPU ms {', '.join(said)}; over whence {', '.join(rest) or '-'}")
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "load before and after": [round(before, 2), round(os.getloadavg()[0], 2)],
        "jax": jax.__version__,
    }
    if arguments.out is not None:
        text = json.dumps({"about": machine, "cpu_ms": found}, indent=1)
        (arguments.out / "autoencoder.json").write_text(text + "\n")
        lines = [f"{k}: {v}" for k, v in machine.items()]
        for title, each in found.items():
            lines += ["", title]
            lines += [f"  {name:<14}{ms:>9.3f} CPU ms" for name, ms in each.items()]
        (arguments.out / "autoencoder.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
