"""Results of an engine besides its draws: a record for each kind of method.

A record knows how it is judged, and its arrays are stored with the draws. An engine
with other results defines a record of its own.
"""

import abc
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from ._data import Draws
from ._particles import check_clipped, check_smc, check_spreading
from ._point import check_point
from ._report import Finding
from ._spread import check_spread
from ._variational import check_fit, check_variance, check_variational
from ._weights import khat_trouble

Judged = tuple[list[Finding], dict[str, float]]
Values = Any  # an array, or None where an engine does not know


class AbstractRecord(eqx.Module):
    """Results of a run that are no draws; arrays, numbers, text, and dicts of them."""

    @abc.abstractmethod
    def judge(self, draws: Draws, method: str) -> Judged:
        """Return findings and the numbers they rest on."""


@runtime_checkable
class TellsTrouble(Protocol):
    """A record that has something to say when a run ends, and not only when it is judged."""

    def trouble(self) -> list[str]:
        """Return phrases on what is cheap to see and too bad to wait for `judge`."""
        ...


class AdaptedChains(AbstractRecord):
    """Markov chains with a step size that was adapted.

    Attributes:
        target_acceptance: Acceptance rate that the step size was adapted to: a number, or
            one of each chain, `(chain,)`.
    """

    target_acceptance: Values

    def judge(self, draws: Draws, method: str) -> Judged:
        return [], {}  # the rate is judged with the statistics that the chains recorded


class UnadjustedChains(AbstractRecord):
    """Markov chains without a Metropolis test, held against the gradient of their target.

    Attributes:
        inflation: `E[(E x - x) d log p / dx]` over draws, `(dim + 1,)`: of each coordinate of
            a flat position, and last the mean of these. It is 1 if the draws are from p; of a
            normal p it is the variance of the draws over that of p.
        inflation_error: Standard errors.

    References:
        Gorham, Mackey (2015), Measuring sample quality with Stein's method, arXiv:1506.03039.
    """

    inflation: Values
    inflation_error: Values

    def judge(self, draws: Draws, method: str) -> Judged:
        return check_spread(self.inflation, self.inflation_error, draws)


class Remarks(AbstractRecord):
    """What to know before trusting draws.

    Attributes:
        said: Sentences.
    """

    said: tuple[str, ...]

    def judge(self, draws: Draws, method: str) -> Judged:
        return [Finding("remark", "note", text.rstrip(".")) for text in self.said], {}


class VariationalFit(AbstractRecord):
    """A family that was fitted by its evidence lower bound.

    Attributes:
        elbo: Estimates by step in nats, `(step,)` or `(replica, step)`; larger is better.
        log_weights_is: Log importance ratios (target over family) in nats, any shape, at
            independent draws of the family.
        parameters: Of the fitted family, by name.
        elbo_final: Evidence lower bound of the fit, in nats.
        elbo_final_error: Its standard error, in nats.
        num_nonfinite: Updates left out because their gradient was not finite.
        objective: Name of what was maximised, whose estimates `elbo` are.
        fitted: Parameters as the family has them, for more draws or bounds.
        diverged: Numbers of the updates at which the fit was given up, and of the last good
            one, whose parameters count; None if it did not diverge.
        gradient_signal: Mean over parameters of the gradient's mean over its standard
            deviation, over the last updates; of noise alone it is about 0.08.
        gradient_variance: Of the gradient of the energy by location and scale, of one draw.
        gradient_bound: The most that can be, by the curvature at draws.
    """

    elbo: Values = None
    log_weights_is: Values = None
    parameters: dict[str, PyTree] = eqx.field(default_factory=dict)
    elbo_final: float | None = None
    elbo_final_error: float | None = None
    num_nonfinite: int = 0
    objective: str = "ELBO"
    fitted: PyTree = None
    diverged: tuple[int, int] | None = None
    gradient_signal: float | None = None
    gradient_variance: float | None = None
    gradient_bound: float | None = None

    def judge(self, draws: Draws, method: str) -> Judged:
        # Several paths are weighted by their ratios already.
        weighted = np.ndim(self.log_weights_is) == 2 and len(self.log_weights_is) > 1  # pyright: ignore
        findings, numbers = check_variational(
            self.elbo, self.log_weights_is, None if weighted else draws
        )
        more, others = check_fit(self.objective, self.diverged, self.gradient_signal)
        spread, measured = check_variance(self.gradient_variance, self.gradient_bound)
        return findings + more + spread, numbers | others | measured

    def trouble(self) -> list[str]:
        return khat_trouble(self.log_weights_is)


class ParticleHistory(AbstractRecord):
    """History of weighted particles by stage: arrays `(stage,)`.

    Attributes:
        temperature: Inverse temperatures.
        rows: Rows of data taken in.
        ess: Effective number of particles before resampling.
        largest_weight: Of a particle, before resampling.
        log_evidence_increment: In nats; its sum is the log evidence.
        resampled: Whether particles were resampled.
        unique_ancestors: Initial particles that have descendants left.
        acceptance_rate: Of the moves.
        num_moves: Moves of every particle.
        num_evaluations: Evaluations of the log density by each particle.
        growth: Share of itself by which moves made the mean variance larger; 0 within chance.
        scale: Step size of the moves.
        num_nonfinite: Particles with a likelihood of zero.
        num_nonfinite_start: As `num_nonfinite`, of the initial particles.
        clipped: Share of weight increments that were clipped.
    """

    temperature: Values = None
    rows: Values = None
    ess: Values = None
    largest_weight: Values = None
    log_evidence_increment: Values = None
    resampled: Values = None
    unique_ancestors: Values = None
    acceptance_rate: Values = None
    num_moves: Values = None
    num_evaluations: Values = None
    growth: Values = None
    scale: Values = None
    num_nonfinite: Values = None
    num_nonfinite_start: int = 0
    clipped: Values = None

    def judge(self, draws: Draws, method: str) -> Judged:
        found, numbers = check_smc(self.temperature, self.ess, self.acceptance_rate, draws)
        found += check_clipped(self.clipped) + check_spreading(self.growth)
        return found, numbers


class ForeignRecord(AbstractRecord):
    """A record of another package, as a file held it."""

    name: str  # its class
    fields: dict[str, PyTree]  # what it held, by name

    def judge(self, draws: Draws, method: str) -> Judged:
        message = f"What {self.name} tells of the run was read from a file and is not judged"
        return [Finding("record", "note", message)], {}


class Optimum(AbstractRecord):
    """The best of several maxima, and the shape of the objective there.

    Attributes:
        points: Maxima found, best first, flat and unconstrained, `(start, dim)`.
        objectives: In nats, `(start,)`.
        gains: Of the last step of each search, in nats.
        converged: Whether each search did.
        steps: Of each search.
        curvatures: Eigenvalues of minus the Hessian at the best point, each latent in the unit
            that makes its own curvature 1, `(dim,)`; None if the dimension is too high to look.
        axes: Their eigenvectors, in the units of the latents, in columns.
        slopes: Of the objective along the axes.
        declines: Share of what the curvature promises by which the objective falls.
        log_weights_is: As in `VariationalFit`, of the Gaussian with this curvature.
    """

    objectives: np.ndarray
    converged: np.ndarray
    points: Values = None
    gains: Values = None
    steps: Values = None
    curvatures: Values = None
    axes: Values = None
    slopes: Values = None
    declines: Values = None
    log_weights_is: Values = None

    def judge(self, draws: Draws, method: str) -> Judged:
        shape = (self.curvatures, self.axes, self.slopes, self.declines)
        alone = method == "point"
        findings, numbers = check_point(
            self.objectives, self.converged, shape, draws, alone=alone, points=self.points
        )
        if self.log_weights_is is None:
            return findings, numbers
        more, others = check_variational(None, self.log_weights_is, draws)
        return findings + more, numbers | others

    def trouble(self) -> list[str]:
        return khat_trouble(self.log_weights_is)
