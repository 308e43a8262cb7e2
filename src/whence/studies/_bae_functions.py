"""Functional priors of regressions: a matched prior against fixed ones.

After Tran, Rossi, Milios and Filippone (2022), "All you need is a good functional prior for
Bayesian deep learning", JMLR 23: Boston housing with 100 tanh units, curves with a gap with
three layers of 50; noise of variance 0.1 of standardised outputs, four chains of scale-adapted
SGHMC. Chains are shorter than theirs of 84,000 updates.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

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
BOSTON = [
    ["published, fan-in", "3.132 ± 1.060", "2.567 ± 0.302"],
    ["published, matched", "2.797 ± 0.915", "2.470 ± 0.146"],
]
CURVE = [["published, fan-in", "0.353", "0.409"], ["published, matched", "0.248", "0.267"]]


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


def read_curve(seed: int) -> Split:
    """Make 64 values of a random curve with a gap, on which it is tested as well."""
    rng = np.random.default_rng(seed)
    begin = rng.uniform(-10.0, 2.0)
    x = rng.uniform(-10.0, 2.0, 64)
    x = np.where(x < begin, x, x + 8.0)[:, None]
    covariance = 1.6**2 * np.exp(-0.5 * (x - x.T) ** 2 / 1.8**2) + 0.1 * np.eye(64)
    y = np.linalg.cholesky(covariance) @ rng.normal(size=64)
    return split(x, y, np.arange(64), np.arange(64))


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
    features = data.x.shape[1]
    width, depth = (50, 3) if features == 1 else (100, 1)
    net = eqx.nn.MLP(features, 1, width, depth, jnp.tanh, key=key_net)
    at = measurement(data, 200, seed)
    kernel = smooth if features == 1 else autoencoder.HierarchicalKernel()
    fit = autoencoder.Adam(matching, 0.02, 64)
    matched = autoencoder.match_prior(net, kernel, at, key=key_match, draws=128, fit=fit)
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


def smooth(x: Array) -> Array:
    """Return the covariance of the process that curves are matched to."""
    return autoencoder.squared_exponential(x / 0.6, x / 0.6)


def _functions(target, position, x):
    return target.constrain(position).network(x)[:, 0]


def scale_adapted(step_size: float, decay: float, **settings: Any) -> SGHMC:
    """Return scale-adapted SGHMC as published, with its noise of gradients subtracted.

    Args:
        step_size: epsilon of the paper.
        decay: alpha of the paper, the part of momentum that is lost in an update.
        **settings: Of `SGHMC`.
    """
    rule: Any = {"preconditioner": ScaleAdapted(), "subtract_noise": True, "batching": "iid"}
    return SGHMC(step_size=step_size, friction=decay / step_size, **rule, **settings)


def sample(target: Any, key: Any, *, steps: int, draws: int, **settings: Any) -> Posterior:
    """Sample by `scale_adapted`, a third of the steps for adaptation.

    Args:
        target: What to sample.
        key: A typed key.
        steps: Updates of each chain.
        draws: Of each that are kept.
        **settings: Of `scale_adapted`.
    """
    thin = (steps - steps // 3) // draws
    engine = scale_adapted(steps=steps, warmup=steps // 3, thin=thin, **settings)
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


def tables(boston: list[dict[str, Errors]], curves: list[dict[str, Errors]]) -> list[Table]:
    """Return tables of all splits and curves, means and standard deviations as published."""
    title = f"Boston housing, {len(boston)} splits"
    line = f"{len(curves)} curves of 64 values with a gap, errors where there are data"
    return [
        _table("boston", title, boston, BOSTON),
        _table("curve", line, curves, CURVE),
    ]


def _table(name: str, title: str, runs: list[dict[str, Errors]], published: list) -> Table:
    rows = []
    for prior in runs[0]:
        each = np.array([run[prior] for run in runs])
        spread = each.std(axis=0, ddof=1) if len(runs) > 1 else np.full(2, np.nan)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(each.mean(axis=0), spread, strict=True)]
        rows.append([prior, *cells])
    title += ": mean and standard deviation over them"
    return Table(name, title, ("prior", "RMSE", "NLL"), [*rows, *published])
