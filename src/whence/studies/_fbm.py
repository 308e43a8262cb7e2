"""Equations with memory: H recovered, bridges, an H that varies, the Nile, moving digits.

After Daems, Opper, Crevecoeur and Birdal (2024), "Variational inference for SDEs driven by
fractional noise", arXiv:2310.12975; the H that varies is that of Tong and others (2022),
arXiv:2210.16584. At a size for a processor.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
from scipy.stats import norm

from ..inference.hmc import NUTS
from ..inference.variational import BBVI, MeanField, Point
from ..language import condition, latent
from ..models import fbm
from ..running import infer
from ._study import Request, Study, Table, mean_of


class StudySize(NamedTuple):
    """Sizes: of paths whose H is looked for, of repetitions, fits, the sampler, and films."""

    times: int
    repeats: int
    seeds: int
    updates: int
    series: int
    frames: int
    training: int


PLANS = {
    "small": StudySize(40, 10, 2, 300, 16, 8, 300),
    "full": StudySize(200, 40, 5, 2_000, 100, 20, 5_000),
}
PUBLISHED = {"nodes": 5, "span": (0.05, 20.0), "zero": False, "weights": "l2"}
HURST, GRID = (0.1, 0.3, 0.5, 0.7, 0.9), np.linspace(0.02, 0.98, 97)
# H, theta, standard deviation at 1 of the exact process from 0.
BRIDGES = ((0.3, 0.0, 0.7897), (0.7, 0.0, 0.5854), (0.6, 1.0, 0.5801), (0.8, 1.0, 0.4543))
CANVAS = 12
GLYPHS = ("111101101101111", "010110010010111", "111101111001111")  # of five rows
AT = np.linspace(0.0, 2.0, 41)
TRUE_HURST = 0.3 + 0.5 / (1 + np.exp(-7 * (1 - AT)))  # of Tong and others


@functools.cache
def equations() -> Any:
    """Return the models."""

    class Line(fbm.FractionalSDE):
        noise: fbm.FractionalNoise
        theta: Any = 0.0
        size: Any = 1.0
        mean: Any = 0.0
        error: Any = 0.1
        first: Any = 1e-9

        def initial(self):
            return dist.Normal(jnp.zeros(1), self.first)

        def drift(self, t, x):
            return -self.theta * (x - self.mean)

        def diffusion(self, t, x):
            return self.size

        def observe(self, x):
            return dist.Normal(x[0], self.error)

    class Turning(Line):
        noise: fbm.FractionalNoise = fbm.FractionalNoise(kind="II", horizon=2.0)
        size: Any = 0.5
        error: Any = 0.025
        knots: Any = latent(dist.Beta(3.0, 3.0), shape=(5,), start=0.5)

        def hurst(self, t):
            return jnp.interp(t, jnp.linspace(0.0, 2.0, 5), self.knots)

    class Falling(Turning):
        def hurst(self, t):
            return 0.3 + 0.5 / (1 + jnp.exp(-7 * (1 - t)))

    class River(Line):
        noise: fbm.FractionalNoise = fbm.FractionalNoise(dist.Beta(2.0, 2.0))
        theta: Any = latent(dist.LogNormal(-2.0, 1.0))
        size: Any = latent(dist.HalfNormal(1.0))
        mean: Any = latent(dist.Normal(0.0, 1.0))
        error: Any = latent(dist.HalfNormal(0.5))
        first: Any = 1.0

    class Film(fbm.FractionalSDE):
        noise: fbm.FractionalNoise
        pull: Any = latent(dist.Normal(0.0, 1.0), shape=(2, 2))
        size: Any = latent(dist.LogNormal(0.0, 0.5), shape=(2,), start=1.0)
        first: Any = latent(dist.Normal(0.0, 1.0), shape=(48, 3), start="prior")
        last: Any = latent(dist.Normal(0.0, 0.5), shape=(CANVAS**2, 48), start="prior")
        bias: Any = latent(dist.Normal(-2.0, 1.0), shape=(CANVAS**2,), start=-2.0)

        def initial(self):
            return dist.Normal(jnp.zeros(2), 1.0)

        def drift(self, t, x):
            return self.pull @ jnp.tanh(x) - x

        def diffusion(self, t, x):
            return self.size

        def observe(self, x):
            hidden = jnp.tanh(self.first @ jnp.append(x, 1.0))
            logits = (self.last @ hidden + self.bias).reshape(CANVAS, CANVAS)
            return dist.Bernoulli(logits=logits).to_event(2)

    return SimpleNamespace(line=Line, turning=Turning, falling=Falling, river=River, film=Film)


def recover(plan: StudySize, hurst: float, key: Any) -> list[np.ndarray]:
    """Return the H of largest likelihood of each path: published noise and this."""
    times = jnp.asarray(np.arange(plan.times) / (plan.times - 1))[1:]
    paths = fbm.FractionalNoise(hurst).sample(times, key=key, paths=plan.repeats)
    y = paths + 0.01 * jr.normal(jr.fold_in(key, 1), paths.shape, paths.dtype)
    line_of, found = equations().line, []
    for form in (PUBLISHED, {}):

        def log_likelihood(h, form=form):
            noise = fbm.FractionalNoise(h, horizon=1.0, **form)
            line = line_of(noise, error=0.01, start=0.0)
            return jax.vmap(lambda y: line.log_likelihood(y, times))(y)

        logs = jax.lax.map(log_likelihood, jnp.asarray(GRID))
        found.append(GRID[np.argmax(np.nan_to_num(logs, nan=-np.inf), axis=0)])
    return found


def bridge(hurst: float, theta: Any, key: Any) -> tuple[list[str], np.ndarray]:
    """Return entries of a table, and standard deviations by time."""
    # Arrays are data of the program, which is then compiled once for all bridges.
    noise, theta = fbm.FractionalNoise(jnp.asarray(hurst)), jnp.asarray(theta)
    line = equations().line(noise, theta, start=0.0, steps=200)
    data, at = (np.zeros(1), np.array([2.0])), jnp.asarray(AT)
    exact = condition(line, *data)
    model: Any = exact.constrain({})
    law = model.smooth(exact.y, exact.inputs[0], at)
    logs = [f"{float(exact.log_density({})):.4f}"]
    target = condition(dataclasses.replace(line, exact=False), *data)
    for discrete in (True, False):
        family = fbm.ControlledPath(width=0, discrete=discrete)
        engine = BBVI(family, steps=1, samples=1, learning_rate=1e-12, draws=500)
        record: Any = infer(target, engine, key=key, progress=False).record
        logs.append(f"{record.elbo_final:.4f} ± {record.elbo_final_error:.1g}")
    return logs, np.asarray(law.scale[:, 0])


def vary(plan: StudySize, key: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of H at 41 times, of one path."""
    times = np.linspace(0.0, 2.0, plan.times + 1)
    y = equations().falling(knots=jnp.full(5, 0.5)).predict(times, key=key)
    target = condition(equations().turning(steps=plan.times), np.asarray(y), times)
    family = fbm.ControlledPath(parameters=MeanField())
    engine = BBVI(family, steps=plan.updates, samples=4, draws=200, checked=0)
    fit = infer(target, engine, key=key, progress=False)
    knots = fit.variables["knots"][0]
    curves = np.stack([np.interp(AT, np.linspace(0.0, 2.0, 5), h) for h in knots])
    return curves.mean(0), curves.std(0)


def nile(path: Path, plan: StudySize, key: Any) -> list[str]:
    """Return what is known of the Nile: mean and standard deviation of H, and R-hat."""
    years, levels = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
    y = (levels - levels.mean()) / levels.std()
    # Where errors of measurement are next to nothing the posterior has a narrow neck.
    engine = NUTS(warmup=plan.updates, draws=plan.updates, target_accept=0.95)
    target = condition(equations().river(), y, years - years[0])
    fit = infer(target, engine, key=key, progress=False)
    row = fit.summary(var_names=["noise.hurst"]).iloc[0]
    return [f"{len(y)}", *(f"{float(row[name]):.3f}" for name in ("mean", "sd", "r_hat"))]


def films(folder: Path | None, count: int, frames: int, rng: Any) -> np.ndarray:
    """Return binary frames of a digit whose place is fractional Brownian, H = 0.8, in a box."""
    if folder is None:
        pool = np.array([[int(c) for c in glyph] for glyph in GLYPHS]).reshape(-1, 5, 3)
    else:
        with np.load(folder / "mnist_test10k.npz") as digits:
            pool = digits["images"][:500, 4:24, 4:24].reshape(-1, 5, 4, 5, 4).mean((2, 4)) > 80
    height, width = pool.shape[1:]
    seed, times = jr.key(int(rng.integers(2**31))), np.arange(frames) / frames
    moves = fbm.FractionalNoise(0.8).sample(times, key=seed, paths=2 * count)
    moves = np.asarray(moves).reshape(count, 2, frames) + rng.uniform(size=(count, 2, 1))
    moves = np.abs((moves % 2) - 1)  # bounces
    found = np.zeros((count, frames, CANVAS, CANVAS))
    for i, t in np.ndindex(count, frames):
        row, column = (moves[i, :, t] * [CANVAS - height, CANVAS - width]).astype(int)
        found[i, t, row : row + height, column : column + width] = pool[i % len(pool)]
    return found


def learn(plan: StudySize, hurst: Any, folder: Path | None, seed: int) -> tuple[float, float]:
    """Return the ELBO of held-out sequences in nats per frame, and H."""
    frames = films(folder, 2 * plan.series, plan.frames, np.random.default_rng(seed))
    model = equations().film(noise=fbm.FractionalNoise(hurst), steps=plan.frames)
    make = lambda y: condition(model, y, np.linspace(0.0, 1.0, plan.frames))
    seen, held = make(frames[: plan.series]), make(frames[plan.series :])

    class Row(eqx.Module):
        network: eqx.nn.MLP

        def __call__(self, y):
            return jax.vmap(self.network)(y.reshape(len(y), -1))

    encoder = lambda key: Row(eqx.nn.MLP(CANVAS**2, 8, 48, 1, jnp.tanh, key=key))
    family = fbm.ControlledPath(Point(), linear=False, encoder=encoder)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, plan.training))
    engine = BBVI(family, steps=plan.training, samples=1, optimizer=optimizer, draws=20)
    fit = infer(seen, engine, key=jr.key(seed), progress=False)
    record: Any = fit.record
    total = engine.bound(held, record, samples=50, key=seed)
    position = jax.tree.map(lambda v: jnp.asarray(v)[0, 0], fit.sample.positions)
    noise = sum(norm.logpdf(position[n]).sum() for n in ("start_noise", "step_noise"))
    shared = float(seen.log_prior(position)) - noise
    value = fit.variables.get("noise.hurst", np.full(1, 0.5)).mean()
    return (float(total) - shared) / (plan.series * plan.frames), float(value)


def run(request: Request) -> Iterator[Table]:
    """Make all tables and figures."""
    plan, key = PLANS[request.size], jr.key(request.seed)
    request.say(f"H of {plan.repeats} paths of {plan.times} points")
    found = request.map(recover, [(plan, h, jr.fold_in(key, i)) for i, h in enumerate(HURST)])
    rows = [[f"{h}", *map(mean_of, each)] for h, each in zip(HURST, found, strict=True)]
    yield Table(
        "hurst", "Mean H of largest likelihood", ("H", "published noise", "this noise"), rows
    )
    request.say("Bridges")
    found = [bridge(h, theta, jr.fold_in(key, 100)) for h, theta, _ in BRIDGES]
    rows = [
        [f"{h}", f"{theta:g}", *logs, f"{sd[20]:.4f}", f"{want:.4f}"]
        for (h, theta, want), (logs, sd) in zip(BRIDGES, found, strict=True)
    ]
    columns = ("H", "theta", "log Z", "ELBO, discrete", "ELBO, continuous", "sd at 1", "exact")
    yield Table(
        "bridges", "Bridges to 0 at 2: ELBO of the control in 200 steps, nats", columns, rows
    )
    request.say(f"H that varies, {plan.seeds} paths")
    curves = request.map(vary, [(plan, jr.fold_in(key, 200 + i)) for i in range(plan.seeds)])
    errors = np.array([np.abs(mean - TRUE_HURST) for mean, _ in curves])
    row = [mean_of(errors.max(1)), mean_of(errors.mean(1))]
    yield Table("varying", "H(t) from one path", ("largest error", "mean error"), [row])
    _draw(request.out / "fbm.png", found, curves)
    given = request.data or Path("none")
    if (given / "nile_minima.csv").is_file():
        request.say("Nile")
        row = nile(given / "nile_minima.csv", plan, jr.fold_in(key, 300))
        yield Table("nile", "Minima of the Nile", ("years", "H", "sd", "R-hat"), [row])
    else:
        request.say("Without `data` with nile_minima.csv (year, level): no Nile")
    folder = given if (given / "mnist_test10k.npz").is_file() else None
    request.say("Moving digits" + ", drawn by hand" * (folder is None))
    seeds = range(request.seed, request.seed + plan.seeds)
    both = [
        np.array(request.map(learn, [(plan, hurst, folder, seed) for seed in seeds]))
        for hurst in (dist.Beta(2.0, 2.0), 0.5)
    ]
    pairs = zip(("fractional", "Brownian"), both, strict=True)
    rows = [[name, mean_of(each[:, 0]), mean_of(each[:, 1])] for name, each in pairs]
    rows.append(["difference", mean_of(both[0][:, 0] - both[1][:, 0]), ""])
    yield Table("digits", "Held-out ELBO per frame, nats", ("noise", "ELBO", "H"), rows)


def _draw(path: Path, bridges: Any, curves: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (*_, want), (_, sd) in zip(BRIDGES, bridges, strict=True):
        left.plot(AT, sd)
        left.plot(1.0, want, "k.")
    left.set(xlabel="time", ylabel="standard deviation", title="bridges; exact: dots")
    right.plot(AT, TRUE_HURST, "k")
    for mean, sd in curves:
        right.errorbar(AT, mean, sd, elinewidth=0.5)
    right.set(xlabel="time", ylabel="H", title="H that varies; black: truth")
    figure.savefig(path, dpi=130)


STUDY = Study("fbm", "Fractional noise: H recovered, bridges, an H that varies, digits", run)
