"""`select_prior`: from a model and some data to a prior, with a report in words."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from ....core._cache import remembering
from ....core._convert import one_of
from ....core._key import seeded
from ....core._types import PRNGKey
from ....language._module_priors import FanIn
from ..._fit import Adam, run
from .._model import BayesianAutoencoder
from ..distance._sliced import max_sliced_wasserstein, sliced_wasserstein
from ._abstract_prior import AbstractPrior
from ._dswd import DSWD, SelectionState
from ._priors import FixedPrior, GaussianPrior, as_prior
from ._problem import PriorProblem, Reconstruction, images_of

FAMILIES = ("weight", "tensor", "layer", "net")


@dataclasses.dataclass(frozen=True)
class SelectedPrior:
    """A prior and what its selection did; print it.

    Attributes:
        prior: For `model.with_prior`.
        start: What selection started from.
        distances: Distances of images under priors from the data, in units of a pixel: SW2
            and max-SW2, by name of the prior.
        floor: The same between two halves of the data: what cannot be told from 0.
        pretrained: Root of the mean squared error of a pixel after pre-training; None if
            there was none.
        trace: What some of the steps recorded: `distance` (what was minimised, along the
            directions of the slicer at the time), `sw2` and `max_sw2` of the last look.
    """

    prior: AbstractPrior
    start: AbstractPrior
    distances: dict[str, tuple[float, float]]
    floor: tuple[float, float]
    pretrained: float | None
    trace: dict[str, np.ndarray]

    def __str__(self) -> str:
        lines = [f"{'prior':<22}{'SW2':>9}{'max-SW2':>10}"]
        for name, (mean, most) in self.distances.items():
            lines.append(f"{name:<22}{mean:>9.4f}{most:>10.3f}")
        lines.append(f"{'two halves of data':<22}{self.floor[0]:>9.4f}{self.floor[1]:>10.3f}")
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> tuple[str, ...]:
        """What to know before using the prior, in words."""
        before, after = self.distances["start"][0], self.distances["selected"][0]
        said = []
        if self.pretrained is not None:
            said.append(
                "Started around an autoencoder trained on the same data (root mean squared "
                f"error of a pixel {self.pretrained:.3f})."
            )
        gain = before - after
        if gain <= 0.02 * before:
            said.append(
                f"Selection changed next to nothing: SW2 {before:.4f} at the start, "
                f"{after:.4f} at the end. The start could as well be the prior."
            )
        else:
            said.append(f"Selection took {100 * gain / before:.0f}% off the SW2 of the start.")
        rivals = {n: d[0] for n, d in self.distances.items() if n not in ("start", "selected")}
        best = min(rivals, key=lambda name: rivals[name])
        if rivals[best] <= after:
            said.append(f"{best} is as near to the data and needs no selection: compare both.")
        # Halves differ by chance as samples of n / 2 do: twice the square of samples of n.
        if after <= self.floor[0] / 2**0.5:
            said.append("Its images cannot be told from data by SW2.")
        return tuple(said)


def prior_problem(
    model: BayesianAutoencoder, x: Any, *, start: AbstractPrior | None = None
) -> PriorProblem:
    """Return what `DSWD` works on, for `whence.train`.

    Args:
        model: The autoencoder.
        x: Data for selection, not those of the fit; rows first.
        start: The prior to start from; by default that of the model.

    Raises:
        ValueError: If there is but one datum, data do not fit the model, or the prior has
            nothing to select.
    """
    if not isinstance(model, BayesianAutoencoder):
        raise ValueError(f"`model` must be a BayesianAutoencoder; got {type(model)}.")
    x = model.check_data(x)
    if len(x) < 2:
        raise ValueError(
            "`x` must have at least 2 data, as distributions are compared (and a few dozen to "
            f"say much); got {len(x)}."
        )
    if not np.isfinite(np.asarray(x)).all():
        raise ValueError("`x` must be finite; it has missing values.")
    prior = as_prior(model.prior if start is None else start, model.networks())
    if isinstance(prior, FixedPrior):
        raise ValueError(
            "`start` must be a prior with something to select: `GaussianPrior`, "
            f"`HierarchicalPrior` or `FlowPrior`; got {type(prior).__name__}."
        )
    read = model.observation.read(jnp.asarray(x))
    flat = jnp.asarray(x).reshape(len(x), -1).astype(jnp.result_type(float))
    return PriorProblem(model, prior, read, flat)


@seeded
def pretrain(
    model: BayesianAutoencoder,
    x: Any,
    *,
    key: PRNGKey,
    fit: Adam | None = None,
    from_module: bool = False,
) -> tuple[Any, float]:
    """Train a plain autoencoder by squared error.

    Args:
        model: The networks.
        x: Data, rows first.
        key: A typed key.
        fit: How; by default 1,000 steps with a rate of 0.001 on 64 rows each.
        from_module: Whether to start from the weights that the networks have.

    Returns:
        The networks, trained, and the root of the mean squared error of a pixel.
    """
    x = model.check_data(x)
    flat = jnp.asarray(x).reshape(len(x), -1).astype(jnp.result_type(float))
    begins = model.network.begins if from_module else None
    problem = Reconstruction(model, begins, model.observation.read(jnp.asarray(x)), flat)
    state, _ = run(problem, Adam(steps=1_000) if fit is None else fit, key=key)
    error = float(_error(problem, state.params, key))
    networks = model.network.with_arrays(state.params)
    return networks, (error / flat.shape[1]) ** 0.5


@remembering
def _error(problem, params, key):
    return problem.loss(params, None, key=key)


@seeded
def select_prior(
    model: BayesianAutoencoder,
    x: Any,
    *,
    key: PRNGKey,
    family: str = "weight",
    start: AbstractPrior | None = None,
    fit: Adam | None = None,
    procedure: DSWD | None = None,
) -> SelectedPrior:
    """Select a prior so that what the autoencoder makes of data is distributed as they are.

    With `family="weight"`, as published, an autoencoder is first trained on `x` and the prior
    starts as a tight Gaussian around its weights; means and scales of all weights then move.
    The other families have mean 0 and start at `whence.FanIn()`: one scale for each array,
    layer or the whole network moves, which a few data can tell.

    Most of what selection gives may be what pre-training gave, and a fan-in prior may do as
    well: the result says so, by distances of both.

    Args:
        model: The autoencoder.
        x: Data for selection, not those of the fit: its own kind, or a kind like it.
        key: A typed key.
        family: `"weight"`, `"tensor"`, `"layer"` or `"net"`.
        start: A prior to start from instead: `HierarchicalPrior`, `FlowPrior`, or a
            `GaussianPrior` of one's own.
        fit: How the autoencoder is pre-trained.
        procedure: How to select.

    Returns:
        The prior that was nearest by SW2 of those looked at, and a report.

    Raises:
        ValueError: If an argument is not of this form.
    """
    family = one_of("family", FAMILIES)(family)
    prior_problem(model, x, start=start or GaussianPrior.fan_in(model.networks()))  # checks
    key_fit, key_run, key_report = jr.split(key, 3)
    pretrained = None
    if start is None and family == "weight":
        networks, pretrained = pretrain(model, x, key=key_fit, fit=fit)
        start = GaussianPrior.around(networks)
    elif start is None:
        start = GaussianPrior.fan_in(model.networks(), per=family)
    problem = prior_problem(model, x, start=start)
    if procedure is None:  # a few scales may move faster than all weights
        procedure = DSWD() if family == "weight" else DSWD(learning_rate=0.02)
    state, trace = run(problem, procedure, key=key_run)
    return selected(problem, state, key=key_report, trace=trace, pretrained=pretrained)


@seeded
def selected(
    problem: PriorProblem,
    state: SelectionState,
    *,
    key: PRNGKey,
    trace: dict[str, np.ndarray] | None = None,
    pretrained: float | None = None,
) -> SelectedPrior:
    """Return what a run of `DSWD` selected, with its report.

    Args:
        problem: What was worked on.
        state: The final state, as `whence.train` returns it.
        key: For the draws and directions of the report.
        trace: What the steps recorded.
        pretrained: See `SelectedPrior`.
    """
    rest = eqx.filter(problem.prior, eqx.is_inexact_array, inverse=True)
    best = jax.tree.map(jnp.asarray, state.best)
    prior = eqx.combine(best, rest)
    networks = problem.model.networks()
    rivals = {
        "start": problem.prior,
        "selected": prior,
        "FanIn()": FixedPrior.of(FanIn(), networks),
        "Normal(0, 1)": FixedPrior.of(dist.Normal(0.0, 1.0), networks),
    }
    key_images, key_sliced = jr.split(key)
    data = np.asarray(problem.flat)
    found = {}
    for name, rival in rivals.items():
        made = np.asarray(images_of(problem, rival, key_images))
        found[name] = _distances(made, data, key_sliced)
    order = np.random.default_rng(0).permutation(len(data))
    halves = data[order[::2]], data[order[1::2]]
    floor = _distances(*halves, key_sliced)
    return SelectedPrior(
        prior, problem.prior, found, floor, pretrained, dict(trace) if trace else {}
    )


def _distances(a: np.ndarray, b: np.ndarray, key: PRNGKey) -> tuple[float, float]:
    mean = sliced_wasserstein(a, b, key=key, projections=200)
    most = max_sliced_wasserstein(a, b, key=key, starts=4, steps=50)
    return mean.distance, most.distance
