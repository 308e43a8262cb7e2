"""Speed of the family `autoencoder`: an outer step of DSWD, and the Dirichlet mixture.

    uv run python benchmarks/autoencoder.py

The step is compared with one written by hand in plain JAX, the same arithmetic; the mixture
with that of scikit-learn if it is installed. Processor time, best of several: ratios hold
on a loaded machine too.
"""

import importlib.util
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from whence.core import advance
from whence.models import autoencoder

DRAWS, BATCH, LINES, INNER, PENALTY = 8, 32, 200, 5, 2.2
DIM, LATENT, WIDTH = 784, 16, 128


def best(function, repeats=5):
    """Return the least processor time of a call, in ms, after one that compiles."""
    function()
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        found.append(1e3 * (time.process_time() - begin))
    return min(found)


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


def main():
    """Print both comparisons."""
    x = np.random.default_rng(0).beta(1, 2, size=(100, DIM)).astype(np.float32)
    steps = 20
    plain = by_hand(jnp.asarray(x))
    hand = best(lambda: jax.block_until_ready(plain(steps))) / steps
    networks = autoencoder.dense((DIM,), LATENT, (WIDTH,), key=0)
    model = autoencoder.BayesianAutoencoder(*networks)
    start = autoencoder.GaussianPrior.around(model.networks())
    problem = autoencoder.prior_problem(model, x, start=start)
    # A look at the whole set is a hundredth of a run: here there is one.
    procedure = autoencoder.DSWD(steps=steps, look_every=10**6, warmup=0)
    state = jax.jit(lambda key: procedure.init(problem, key=key))(jr.key(0))
    go = jax.jit(lambda state: advance(procedure, problem, state, 1, steps, key=jr.key(1))[0])
    own = best(lambda: jax.block_until_ready(go(state))) / steps
    print(f"DSWD, an outer step of {DRAWS} networks and {BATCH} images, {LINES} directions and")
    print(f"{INNER} inner steps: {own:.0f} ms, by hand {hand:.0f} ms; ratio {own / hand:.2f}")

    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, LATENT)) + 3 * rng.integers(0, 3, size=(200, 1))
    codes = codes.astype(np.float32)
    mixture = autoencoder.DirichletMixture(20, steps=100, tolerance=1e-30)
    mine = best(lambda: jax.block_until_ready(mixture.fit(codes).bound))
    print(
        f"Dirichlet mixture, 200 codes of {LATENT}, 20 components, 100 updates: {mine:.0f} ms"
    )
    many = np.stack([codes + 0.01 * i for i in range(16)])[None]
    each = best(lambda: jax.block_until_ready(mixture.fit(many).bound)) / 16
    print(f"  of 16 draws together: {each:.0f} ms each")
    if importlib.util.find_spec("sklearn") is None:
        print("  scikit-learn is not installed: no comparison")
        return
    from sklearn.mixture import BayesianGaussianMixture

    theirs = BayesianGaussianMixture(
        20, weight_concentration_prior=0.05, max_iter=100, tol=0, random_state=0
    )
    print(f"  scikit-learn: {best(lambda: theirs.fit(codes)):.0f} ms")


if __name__ == "__main__":
    main()
