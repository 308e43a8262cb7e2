"""`select_prior`: from a model and some data to a prior, with a report in words."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from ....core import PRNGKey, one_of
from ....core._key import seeded
from ....language._module_priors import FanIn
from ..._fit import Adam, run
from .._model import BayesianAutoencoder
from ..distance._sliced import max_sliced_wasserstein, sliced_wasserstein
from ._abstract_prior import PER, AbstractPrior
from ._dswd import DSWD, SelectionState
from ._priors import FixedPrior, GaussianPrior
from ._problem import PriorProblem, Reconstruction, images_of


@dataclasses.dataclass(frozen=True)
class SelectedPrior:
    """A prior and what its selection did; print it.

    Attributes:
        prior: For `model.with_prior`.
        start: What selection started from.
        distances: SW2 and max-SW2 of images under priors from the data, in units of a pixel.
        floor: The same between two halves of the data: what cannot be told from 0.
        pretrained: Root of the mean squared error of a pixel at the end of pre-training.
        trace: Of some steps: `distance`, what was minimised along the directions of the
            slicer at the time, and `sw2` and `max_sw2` of the last look.
    """

    prior: AbstractPrior
    start: AbstractPrior
    distances: dict[str, tuple[float, float]]
    floor: tuple[float, float]
    pretrained: float | None
    trace: dict[str, np.ndarray]

    def __str__(self) -> str:
        lines = [f"{'prior':<22}{'SW2':>9}{'max-SW2':>10}"]
        for name, (mean, most) in (self.distances | {"two halves of data": self.floor}).items():
            lines.append(f"{name:<22}{mean:>9.4f}{most:>10.3f}")
        before, after = self.distances["start"][0], self.distances["selected"][0]
        gain = 1 - after / before
        if self.pretrained is not None:
            lines.append(
                "Started around an autoencoder trained on the same data (root mean squared "
                f"error of a pixel {self.pretrained:.3f})."
            )
        if gain <= 0.02:
            lines.append("Selection changed next to nothing: the start could be the prior.")
        else:
            lines.append(f"Selection took {100 * gain:.0f}% off the SW2 of the start.")
        rivals = {n: d[0] for n, d in self.distances.items() if n not in ("start", "selected")}
        best = min(rivals, key=lambda name: rivals[name])
        if rivals[best] <= after:
            lines.append(f"{best} is as near to the data and needs no selection: compare both.")
        # Halves differ by chance as samples of n / 2 do: twice the square of samples of n.
        if after <= self.floor[0] / 2**0.5:
            lines.append("Its images cannot be told from data by SW2.")
        return "\n".join(lines)


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
        fit: How the autoencoder is pre-trained; by default by 1,000 steps of Adam.
        procedure: How to select.

    Returns:
        The prior that was nearest by SW2 of those looked at, and a report.
    """
    family = one_of("family", PER)(family)
    key_fit, key_run, key_report = jr.split(key, 3)
    pretrained = None
    if start is None:
        start = GaussianPrior.fan_in(model.networks(), per=family)
        if family == "weight":
            plain = Reconstruction(PriorProblem(model, x, start=start))
            trained, trace = run(plain, fit or Adam(steps=1_000), key=key_fit)
            pretrained = float(trace["loss"][-1]) ** 0.5
            start = GaussianPrior.around(model.network.with_arrays(trained.params))
    problem = PriorProblem(model, x, start=start)
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
    """Return what a run of `DSWD` selected, given the final state of `whence.train`.

    The key is for draws and directions of the report; `trace` and `pretrained` are kept in it.
    """
    prior = problem.prior.with_params(jax.tree.map(jnp.asarray, state.best))
    networks = problem.model.networks()
    rivals = {
        "start": problem.prior,
        "selected": prior,
        "FanIn()": FixedPrior.of(FanIn(), networks),
        "Normal(0, 1)": FixedPrior.of(dist.Normal(0.0, 1.0), networks),
    }
    key_images, key_sliced = jr.split(key)

    def distances(a, b):
        mean = sliced_wasserstein(a, b, key=key_sliced, projections=200)
        most = max_sliced_wasserstein(a, b, key=key_sliced, starts=4, steps=50)
        return mean.distance, most.distance

    model, found = problem.model, {}
    for name, rival in rivals.items():
        images = images_of(model, rival, problem.x, key_images)
        found[name] = distances(images, problem.flat)
    data = np.random.default_rng(0).permutation(np.asarray(problem.flat))
    floor = distances(data[::2], data[1::2])
    trace = dict(trace or {})
    return SelectedPrior(prior, problem.prior, found, floor, pretrained, trace)
