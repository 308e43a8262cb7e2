"""Filters beside a loop by hand, tempered SMC beside blackjax, and the pictures of the docs.

    python benchmarks/smc.py                    all, to benchmarks/results/smc.json and smc.txt
    python benchmarks/smc.py --small            the same, small: that it runs; printed
    python benchmarks/smc.py --pictures FOLDER  docs/img/filtering.png and evidence.png

Runs are interleaved, A B A B ..., and the median of each is reported with its range, since
other work on the machine drifts. The loop by hand is what a person would write for this one
model: one key a step, systematic resampling whenever half of the sample is lost, no genealogy,
no errors. What the library adds (a key for each particle, family shares) is the rest.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.inference.smc._filter import run_filter

PHI, SIGMA, BETA = 0.95, 0.3, 0.7


class Volatility(wh.StateSpaceModel):
    """Stochastic volatility with known parameters."""

    def initial(self):
        return dist.Normal(0.0, SIGMA / jnp.sqrt(1 - PHI**2))

    def transition(self, x, t):
        return dist.Normal(PHI * x, SIGMA)

    def emission(self, x, t):
        return dist.Normal(0.0, BETA * jnp.exp(x / 2))


class Tracking(wh.StateSpaceModel):
    """Four states, two channels, for the Kalman filters."""

    def initial(self):
        return dist.Normal(jnp.zeros(4), 1.0)

    def transition(self, x, t):
        move = jnp.eye(4) + 0.1 * jnp.eye(4, k=2)
        return dist.Normal(move @ x, 0.1)

    def emission(self, x, t):
        return dist.Normal(x[:2], 0.5)


def returns(times: int) -> np.ndarray:
    """Draw data of the volatility model."""
    rng = np.random.default_rng(0)
    x = np.zeros(times)
    for t in range(1, times):
        x[t] = PHI * x[t - 1] + SIGMA * rng.normal()
    return (BETA * np.exp(x / 2) * rng.normal(size=times)).astype(np.float32)


def by_hand(y, particles, key):
    """Return the log evidence by a bootstrap filter in plain JAX."""

    def log_density(x, y):
        return (
            -0.5 * (jnp.log(2 * jnp.pi) + x)
            - jnp.log(BETA)
            - 0.5 * (y / BETA) ** 2 / jnp.exp(x)
        )

    def step(carry, at):
        x, log_w = carry
        y, key = at
        key_resample, key_move = jr.split(key)
        w = jax.nn.softmax(log_w)
        points = (jnp.arange(particles) + jr.uniform(key_resample)) / particles
        resample = 1 / jnp.sum(w**2) < particles / 2
        ancestors = jax.lax.cond(
            resample,
            lambda: jnp.searchsorted(jnp.cumsum(w), points).astype(jnp.int32),
            lambda: jnp.arange(particles, dtype=jnp.int32),
        )
        x = x[ancestors]
        log_w = jnp.where(resample, -jnp.log(particles), jax.nn.log_softmax(log_w))
        x = PHI * x + SIGMA * jr.normal(key_move, (particles,))
        log_w = log_w + log_density(x, y)
        return (x, log_w), jax.nn.logsumexp(log_w)

    key_first, key_rest = jr.split(key)
    x = SIGMA / jnp.sqrt(1 - PHI**2) * jr.normal(key_first, (particles,))
    log_w = log_density(x, y[0]) - jnp.log(particles)
    rest = (y[1:], jr.split(key_rest, len(y) - 1))
    first = jax.nn.logsumexp(log_w)
    _, increments = jax.lax.scan(step, (x, log_w), rest)
    return first + jnp.sum(increments)


def interleaved(functions: dict, repeats: int) -> dict:
    """Time compiled functions of a key in turn; seconds."""
    for function in functions.values():
        jax.block_until_ready(function(jr.key(0)))
    seconds = {name: [] for name in functions}
    for i in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(jr.key(i)))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": float(np.median(s)), "least": min(s), "most": max(s)}
        for name, s in seconds.items()
    }


def particle_filters(particles: int, times: int, repeats: int) -> dict:
    """Time bootstrap filters, and say what evidence each finds."""
    y = returns(times).astype(jnp.result_type(float))
    target = wh.condition(Volatility(), y)
    sequence, data = target.sequence, jnp.asarray(y)
    settings = wh.ParticleFilter(particles)

    def evidence(key):
        return run_filter(settings, sequence, sequence.constrain({}), key=key)[
            0
        ].log_evidence.value

    functions = {
        "whence": jax.jit(evidence),
        "by hand": jax.jit(lambda key: by_hand(data, particles, key)),
    }
    found = interleaved(functions, repeats)
    for name, function in functions.items():
        values = [float(function(jr.key(100 + i))) for i in range(5)]
        found[name]["log_evidence"] = [float(np.mean(values)), float(np.std(values))]
    return {"particles": particles, "times": times, **found}


def kalman_filters(times: int, repeats: int) -> dict:
    """Time the sequential filter beside the associative scan, values and gradients."""
    y = np.random.default_rng(0).normal(size=(times, 2)).astype(np.float32)
    functions = {}
    for name, parallel in (("sequential", False), ("associative", True)):
        target = wh.condition(Tracking(parallel=parallel), y)
        density = lambda key, target=target: target.model.log_likelihood(
            target.y + 0 * jr.uniform(key)
        )
        functions[name] = jax.jit(density)
    return {"times": times, **interleaved(functions, repeats)}


class Logistic(wh.Model):
    """Logistic regression with standard normal coefficients."""

    beta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(20,))

    def likelihood(self, x):
        return dist.Bernoulli(logits=x @ self.beta)


def blackjax_tempered(x, y, particles: int):
    """Return a compiled function of a key: log evidence and acceptance rate, by blackjax.

    HMC with the covariance of the posterior as its metric, a step size of 0.5 of its units and
    three leapfrog steps, five times at each temperature: about what `TemperedSMC` comes to.
    """
    import blackjax
    import blackjax.smc.resampling as resampling
    from blackjax.smc import extend_params

    dim = x.shape[1]
    log_prior = lambda b: -0.5 * jnp.sum(b**2) - 0.5 * dim * jnp.log(2 * jnp.pi)
    log_likelihood = lambda b: jnp.sum(y * (x @ b) - jax.nn.softplus(x @ b))
    mode = jnp.zeros(dim)
    for _ in range(20):
        gradient = jax.grad(lambda b: log_prior(b) + log_likelihood(b))(mode)
        hessian = jax.hessian(lambda b: log_prior(b) + log_likelihood(b))(mode)
        mode = mode - jnp.linalg.solve(hessian, gradient)
    parameters = {
        "step_size": 0.5,
        "inverse_mass_matrix": jnp.linalg.inv(-hessian),
        "num_integration_steps": 3,
    }
    algorithm = blackjax.adaptive_tempered_smc(
        log_prior,
        log_likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        extend_params(parameters),
        resampling.systematic,
        0.5,
        num_mcmc_steps=5,
    )

    def run(key):
        key_start, key_steps = jr.split(key)
        state = algorithm.init(jr.normal(key_start, (particles, dim)))

        def step(carry):
            i, state, total, _ = carry
            state, info = algorithm.step(jr.fold_in(key_steps, i), state)
            rate = jnp.mean(info.update_info.acceptance_rate)
            return i + 1, state, total + info.log_likelihood_increment, rate

        zero = jnp.zeros(())
        carry = (0, state, zero, zero)
        found = jax.lax.while_loop(lambda c: c[1].tempering_param < 1, step, carry)
        return found[2], found[3]

    return jax.jit(run)


def tempered(rows: int, particles: int, repeats: int) -> dict:
    """Time tempered samplers and say what evidence each finds; work is seconds x variance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 20)).astype(np.float32)
    y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-x @ rng.normal(size=20)))).astype(int)
    target = wh.condition(Logistic(), y, x)
    other = blackjax_tempered(jnp.asarray(x), jnp.asarray(y, jnp.float32), particles)
    engines = {
        "whence": wh.TemperedSMC(particles=particles),
        "whence, waste-free": wh.TemperedSMC(particles=particles, chains=particles // 16),
    }
    functions = {
        name: lambda key, engine=engine: wh.infer(target, engine, key=key, progress=False)
        for name, engine in engines.items()
    }
    values: dict = {name: [] for name in (*functions, "blackjax")}

    def noted(name, function):
        def call(key):
            found = function(key)
            evidence = found.log_evidence if name != "blackjax" else found[0]
            values[name].append(float(evidence))

        return call

    functions["blackjax"] = other
    seconds = interleaved({name: noted(name, f) for name, f in functions.items()}, repeats)
    for name, found in seconds.items():
        del values[name][0]  # of the run that compiled
        found["log_evidence"] = [float(np.mean(values[name])), float(np.std(values[name]))]
        found["work"] = found["median"] * float(np.var(values[name]))
    seconds["blackjax"]["acceptance_rate"] = float(other(jr.key(0))[1])
    return {"rows": rows, "dim": 20, "particles": particles, "repeats": repeats, **seconds}


def pictures(folder: str) -> None:
    """Draw what the docs show, from runs made here."""
    import re

    import matplotlib.pyplot as plt

    page = (Path(__file__).parents[1] / "docs/filtering.md").read_text()
    first = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    names: dict = {}
    for block in first:
        exec(block, names)
    level, flow = names["level"], names["flow"]
    years, future = 1871 + np.arange(len(flow)), 1971 + np.arange(20)
    ahead = names["ahead"].reshape(-1, 20)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.plot(years, flow, "k.", label="flow")
    low, high = level.quantile([0.05, 0.95])
    axes.plot(years, level.mean, "C0", label="level, smoothed")
    axes.fill_between(years, low, high, color="C0", alpha=0.3)
    axes.plot(future, ahead.mean(0), "C1", label="flow, forecast")
    axes.fill_between(future, *np.quantile(ahead, [0.05, 0.95], axis=0), color="C1", alpha=0.3)
    axes.axvspan(1911, 1920, color="0.9", zorder=0)
    axes.set(xlabel="year", ylabel="10$^8$ m$^3$")
    axes.legend(frameon=False, ncols=3)
    figure.savefig(f"{folder}/filtering.png", dpi=110, bbox_inches="tight")
    _evidence_picture(folder)


class Mean(wh.Model):
    """A normal mean with a conjugate prior."""

    mu: jax.Array = wh.latent(dist.Normal(jnp.zeros(3), 1.0))

    def likelihood(self):
        return dist.Normal(self.mu, 0.5)


def _evidence_picture(folder: str) -> None:
    import matplotlib.pyplot as plt
    from scipy.stats import multivariate_normal

    y = 1.0 + 0.5 * np.random.default_rng(3).normal(size=(20, 3))
    target = wh.condition(Mean(), y)
    truth = multivariate_normal(np.zeros(20), 0.25 * np.eye(20) + 1.0).logpdf(y.T).sum()
    runs: dict = {"tempered": [], "row by row": [], "bridge": []}
    for seed in range(30):
        for name, engine in (
            ("tempered", wh.TemperedSMC(particles=500)),
            ("row by row", wh.DataTemperedSMC(particles=500)),
        ):
            posterior = wh.infer(target, engine, key=seed)
            runs[name].append((posterior.log_evidence, posterior.log_evidence_error))
        chains = wh.infer(target, wh.NUTS(chains=2, warmup=200, draws=250), key=seed)
        runs["bridge"].append(tuple(wh.bridge_sampling(chains, key=seed)))
    figure, axes = plt.subplots(figsize=(8, 3))
    for i, (name, found) in enumerate(runs.items()):
        values, errors = np.array(found).T
        at = i + np.linspace(-0.3, 0.3, len(values))
        axes.errorbar(at, values - truth, errors, fmt=".", lw=1, label=name)
    axes.axhline(0, color="k", lw=1)
    axes.set_xticks(range(3), list(runs))
    axes.set_ylabel("log evidence minus exact")
    figure.savefig(f"{folder}/evidence.png", dpi=110, bbox_inches="tight")


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--pictures", default=None)
    options = parser.parse_args()
    if options.pictures:
        pictures(options.pictures)
        return
    sizes = [(10_000, 500, 5), (10_000, 5), (500, 1_024, 8)]
    if options.small:
        sizes = [(500, 50, 3), (500, 3), (50, 64, 3)]
    load = os.getloadavg()[0]
    found = {
        "device": str(jax.devices()[0]),
        "cores": os.cpu_count(),
        "load before": load,
        "particle filters, float32": particle_filters(*sizes[0]),
        "Kalman filters": kalman_filters(*sizes[1]),
        "tempered SMC, float32": tempered(*sizes[2]),
    }
    with jax.enable_x64(True):
        found["particle filters, float64"] = particle_filters(*sizes[0])
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items())
    print(text)
    if not options.small:
        folder = Path(__file__).parent / "results"
        (folder / "smc.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "smc.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
