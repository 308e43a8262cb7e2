"""Functional priors on the Boston housing data: a matched prior against fixed ones.

After Tran, Rossi, Milios and Filippone (2022), "All you need is a good functional prior for
Bayesian deep learning", JMLR 23: 100 tanh units, noise of variance 0.1 of standardised outputs,
four chains of scale-adapted SGHMC. Chains are shorter than theirs of 84,000 updates.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from ..core._results import InferenceWarning
from ..inference.sgmcmc import SGHMC, ScaleAdapted
from ..language import Model, condition
from ..language._module_priors import FanIn
from ..models import autoencoder
from ..posterior import Posterior
from ..posterior._map_draws import over_draws
from ..running import infer
from ._smnngp_regression import Split, split
from ._study import Table

FILE = "bostonHousing.npz"
NOISE = 0.1**0.5
PUBLISHED = [
    ["published, N(0, 1)", "3.132 ± 1.060", "2.567 ± 0.302"],
    ["published, matched", "2.797 ± 0.915", "2.470 ± 0.146"],
]


class Curve(Model):
    """A regression by a random network, its noise known."""

    network: autoencoder.RandomNetwork

    def likelihood(self, x):
        return dist.Normal(self.network(x)[:, 0], NOISE)


class Errors(NamedTuple):
    """Root mean squared error, and minus the log density of the Gaussian predictive law."""

    rmse: float
    nll: float


def read_boston(folder: Path, number: int) -> list[Split]:
    """Return the first fixed splits of the data, standardised."""
    with np.load(folder / FILE) as file:
        x, y = np.asarray(file["x"], np.float64), np.asarray(file["y"], np.float64)
        tests = [file[f"test_{i}"] for i in range(number)]
    train = [np.setdiff1d(np.arange(len(y)), test) for test in tests]
    return [split(x, y, a, b) for a, b in zip(train, tests, strict=True)]


def measurement(data: Split, number: int, seed: int) -> np.ndarray:
    """Return inputs to compare functions at: up to 70% of data, the rest from their box."""
    rng = np.random.default_rng(seed)
    few = min(7 * number // 10, len(data.x))
    known = data.x[rng.choice(len(data.x), few, replace=False)]
    low, high = data.x.min(axis=0), data.x.max(axis=0)
    box = rng.uniform(low, high, (number - len(known), data.x.shape[1]))
    return rng.permutation(np.concatenate([known, box]))


def play(data: Split, seed: int, steps: int, matching: int) -> dict[str, Errors]:
    """Fit a network under every prior to one split; return errors on its test part."""
    key_net, key_match, key_run = jr.split(jr.key(seed), 3)
    net = eqx.nn.MLP(data.x.shape[1], 1, 100, 1, jnp.tanh, key=key_net)
    at = measurement(data, 200, seed)
    fit = autoencoder.Adam(matching, 0.02, 64)
    matched = autoencoder.match_prior(
        net, autoencoder.HierarchicalKernel(), at, key=key_match, draws=128, fit=fit
    )
    found = {}
    priors = {"N(0, 1)": dist.Normal(0.0, 1.0), "fan-in": FanIn(), "matched": matched}
    for name, prior in priors.items():
        model = Curve(autoencoder.RandomNetwork(net, prior))
        target = condition(model, data.y, data.x)
        rule = {"chains": 4, "step_size": 0.01, "decay": 0.01, "batch_size": 32}
        posterior = sample(target, key_run, steps=steps, draws=100, **rule)
        drawn = over_draws(target, _functions, posterior.sample.positions, data.x_new)
        found[name] = errors(drawn.reshape(-1, len(data.x_new)), data)
    return found


def _functions(target, position, x):
    return target.constrain(position).network(x)[:, 0]


def sample(
    target: Any,
    key: Any,
    *,
    chains: int,
    steps: int,
    draws: int,
    step_size: float,
    decay: float,
    batch_size: int,
) -> Posterior:
    """Sample by scale-adapted SGHMC as published, a third of the steps for adaptation.

    Args:
        target: What to sample.
        key: A typed key.
        chains: How many.
        steps: Updates of each.
        draws: Of each that are kept.
        step_size: epsilon of the paper.
        decay: alpha of the paper, the part of momentum that is lost in an update.
        batch_size: Rows per update.
    """
    engine = SGHMC(
        chains=chains,
        steps=steps,
        warmup=steps // 3,
        thin=(steps - steps // 3) // draws,
        step_size=step_size,
        friction=decay / step_size,
        preconditioner=ScaleAdapted(),
        subtract_noise=True,
        batching="iid",
        batch_size=batch_size,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)  # weights are never identified
        return infer(target, engine, key=key, progress=False)


def errors(drawn: np.ndarray, data: Split) -> Errors:
    """Return errors of functions `(draw, row)`, in units of the outputs."""
    mean, variance = drawn.mean(axis=0), drawn.var(axis=0) + NOISE**2
    gap = (mean - data.y_new) * data.unit
    variance = variance * data.unit**2
    nll = 0.5 * (np.log(2 * np.pi * variance) + gap**2 / variance)
    return Errors(float(np.sqrt(np.mean(gap**2))), float(nll.mean()))


def table(runs: list[dict[str, Errors]]) -> Table:
    """Return the table of all splits, means and standard deviations as published."""
    rows = []
    for name in runs[0]:
        each = np.array([run[name] for run in runs])
        spread = each.std(axis=0, ddof=1) if len(runs) > 1 else np.full(2, np.nan)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(each.mean(axis=0), spread, strict=True)]
        rows.append([name, *cells])
    title = f"Boston housing, {len(runs)} splits: mean and standard deviation over splits"
    return Table("boston", title, ("prior", "RMSE", "NLL"), [*rows, *PUBLISHED])
