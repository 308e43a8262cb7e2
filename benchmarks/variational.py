"""Variational inference beside numpyro and blackjax, on logistic regression.

First the speed of an update: mean field and full rank, 10 draws each, on 1,000 rows of 25
covariates with all data, in updates per CPU second once compiled. All take data as arguments
and keep the bounds that they report. Then how long a fit takes
until its evidence lower bound is within one nat of the best that any of them finds, by the same
draws of noise on the same density: whence by its default, numpyro and blackjax by Adam at each
step size of a grid. Turns are interleaved in one process, so that other load on the machine
meets all alike; times are CPU seconds, medians over turns, without compilation.

    python benchmarks/variational.py [--small] --out benchmarks/results
"""

import argparse
import functools
import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import whence as wh

ROWS, COLUMNS, DRAWS = 1_000, 25, 10
RATES = (0.003, 0.01, 0.03, 0.1)
FAMILIES = ("mean field", "full rank")
KEPT = 10_000  # bounds of a call


class Logistic(wh.Model):
    beta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=COLUMNS)

    def likelihood(self, x):
        return dist.Bernoulli(logits=x @ self.beta)


def data():
    """Return correlated covariates, and outcomes of a regression on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS)) + rng.normal(size=(ROWS, 1))
    logits = x @ (rng.normal(size=COLUMNS) / 3)
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return x.astype(np.float32), y


X, Y = data()
TARGET = wh.condition(Logistic(), Y, X)


def log_density(beta):
    """Return the log joint density, the one that all three are held to."""
    return TARGET.log_density({"beta": beta})


def bound(loc, root, samples=4_000):
    """Return the evidence lower bound of a Gaussian, by the same noise for all."""
    return float(_bound(jnp.asarray(loc), jnp.asarray(root), samples))


@functools.partial(jax.jit, static_argnums=2)
def _bound(loc, root, samples):
    noise = jr.normal(jr.key(7), (samples, COLUMNS))
    values = jax.vmap(log_density)(loc + noise @ root.T)
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(root))))
    return values.mean() + log_det + COLUMNS / 2 * (1 + jnp.log(2 * jnp.pi))


# -- each: start(key) -> state, advance(state, key, updates) -> state, read(state) -> Gaussian


class Whence:
    """The engine's own step, as the loop compiles it: some updates a call."""

    def __init__(self, family, steps):
        members = {"mean field": wh.MeanField(), "full rank": wh.FullRank()}
        self.engine = wh.BBVI(family=members[family], steps=steps, samples=DRAWS)
        self.block = -(-steps // 2_000)  # updates in one of its steps
        engine = self.engine

        @jax.jit
        def many(target, state, first, key, number):
            def body(i, state):
                return engine.step(target, state, first + i, key=jr.fold_in(key, i))[0]

            return jax.lax.fori_loop(0, number, body, state)

        self._many = many

    def start(self, key):
        return self.engine.init(TARGET, key=key), 0, key

    def advance(self, state, updates):
        state, first, key = state
        number = max(updates // self.block, 1)
        key = jr.fold_in(key, first)
        new = self._many(TARGET, state, jnp.int32(first), key, jnp.int32(number))
        return jax.block_until_ready(new), first + number, key

    def read(self, state):
        found = self.engine.family.describe(state[0].params)
        root = found.get("scale_tril")
        return found["loc"], jnp.diag(found["scale"]) if root is None else root


class Numpyro:
    """SVI with an automatic guide, `Trace_ELBO` of as many draws."""

    def __init__(self, family, rate):
        from numpyro.infer import SVI, Trace_ELBO, autoguide

        def model(x, y):
            beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([COLUMNS]).to_event(1))
            numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

        guides = {
            "mean field": autoguide.AutoNormal,
            "full rank": autoguide.AutoMultivariateNormal,
        }
        self.svi = SVI(model, guides[family](model), optax.adam(rate), Trace_ELBO(DRAWS))

        def many(state, number, *data):
            def one(i, carry):
                state, loss = self.svi.update(carry[0], *data)
                return state, carry[1].at[i].set(loss, mode="drop")

            return jax.lax.fori_loop(0, number, one, (state, jnp.zeros(KEPT)))

        self._many, self.data = jax.jit(many), (jnp.asarray(X), jnp.asarray(Y))

    def start(self, key):
        return self.svi.init(key, *self.data)

    def advance(self, state, updates):
        return jax.block_until_ready(self._many(state, jnp.int32(updates), *self.data))[0]

    def read(self, state):
        found = self.svi.get_params(state)
        if "auto_loc" in found:
            return found["auto_loc"], found["auto_scale_tril"]
        return found["beta_auto_loc"], jnp.diag(found["beta_auto_scale"])


class Blackjax:
    """`meanfield_vi` and `fullrank_vi`, sticking the landing."""

    def __init__(self, family, rate):
        import blackjax

        makers = {"mean field": blackjax.meanfield_vi, "full rank": blackjax.fullrank_vi}
        make = lambda density: makers[family](density, optax.adam(rate), DRAWS)
        self.vi, self.full = make(log_density), family == "full rank"

        def many(target, state, key, number):
            vi = make(lambda beta: target.log_density({"beta": beta}))

            def one(i, carry):
                state, info = vi.step(jr.fold_in(key, i), carry[0])
                return state, carry[1].at[i].set(info.elbo, mode="drop")

            return jax.lax.fori_loop(0, number, one, (state, jnp.zeros(KEPT)))

        self._many = jax.jit(many)

    def start(self, key):
        return self.vi.init(jnp.zeros(COLUMNS)), key

    def advance(self, state, updates):
        state, key = state
        key, own = jr.split(key)
        new, _ = self._many(TARGET, state, own, jnp.int32(updates))
        return jax.block_until_ready(new), key

    def read(self, state):
        state = state[0]
        if not self.full:
            return state.mu, jnp.diag(jnp.exp(state.rho))
        from blackjax.vi.fullrank_vi import _unflatten_cholesky

        return state.mu, _unflatten_cholesky(state.chol_params, COLUMNS)


def candidates(family, steps):
    """Return what is measured, by name."""
    found = {"whence": Whence(family, steps)}
    for rate in RATES:
        found[f"numpyro, adam({rate})"] = Numpyro(family, rate)
        found[f"blackjax, adam({rate})"] = Blackjax(family, rate)
    return found


def seconds(function):
    """Return what a call returned and the CPU seconds that it took."""
    begin = time.process_time()
    value = function()
    return value, time.process_time() - begin


def speed(found, updates, turns):
    """Return updates per CPU second, the median of interleaved turns."""
    rates = {}
    states = {name: one.advance(one.start(jr.key(0)), updates) for name, one in found.items()}
    for _ in range(turns):
        for name, one in found.items():
            _, spent = seconds(lambda: one.advance(states[name], updates))
            rates.setdefault(name, []).append(updates / spent)
    return {name: float(np.median(values)) for name, values in rates.items()}


def paths(found, chunk, steps, turns):
    """Return CPU seconds and bounds along fits, by name: a list of turns of pairs."""
    taken = {name: [] for name in found}
    for turn in range(turns):
        for name, one in found.items():
            state, spent, path = one.start(jr.key(turn)), 0.0, []
            for _ in range(steps // chunk):
                state, more = seconds(lambda: one.advance(state, chunk))
                spent += more
                path.append((spent, bound(*one.read(state))))
            taken[name].append(path)
    return taken


def arrival(path, goal):
    """Return when a path is at its goal for good; infinite if it is not."""
    late = [i for i, (_, value) in enumerate(path) if not value >= goal]
    first = late[-1] + 1 if late else 0
    return path[first][0] if first < len(path) else np.inf


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a try: fewer updates and turns")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    steps, chunk, turns = (1_000, 100, 1) if options.small else (10_000, 100, 5)
    lines, record = [], {"jax": jax.__version__, "machine": platform.machine()}
    for family in FAMILIES:
        found = candidates(family, steps)
        rates = speed(found, chunk if options.small else 1_000, turns)
        taken = paths(found, chunk, steps, turns)
        best = max(value for fits in taken.values() for path in fits for _, value in path)
        when = {
            name: float(np.median([arrival(path, best - 1) for path in fits]))
            for name, fits in taken.items()
        }
        last = {
            name: float(np.median([path[-1][1] for path in fits]))
            for name, fits in taken.items()
        }
        record[family] = {"rates": rates, "arrival": when, "last": last, "best": best}
        lines += [f"{family}: best bound {best:.2f} nats", ""]
        head = ("updates/s", "s to best - 1", "last bound")
        lines.append(f"{'':28}{head[0]:>12}{head[1]:>16}{head[2]:>14}")
        for name in found:
            row = f"{rates[name]:>12.0f}{when[name]:>16.3f}{last[name]:>14.2f}"
            lines.append(f"{name:28}{row}")
        lines.append("")
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "variational.txt").write_text(text)
        (options.out / "variational.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
