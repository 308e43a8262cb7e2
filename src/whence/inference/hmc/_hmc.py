"""Hamiltonian Monte Carlo with trajectories of a given length."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...core._convert import flag, fraction, number, positive, whole
from ...core._types import PRNGKey, Scalar
from .._settings import metric_name
from ._common import MAX_ENERGY_ERROR, choose
from ._estimate import AbstractEstimator
from ._integrator import End, PhasePoint
from ._sampler import METRICS, AbstractSampler
from ._trajectory import AbstractTrajectory, Flag, Proposal

# Of leapfrog steps: bounds what a tiny step size, early in warm-up, can cost.
_MAX_STEPS = 1000


class Path(AbstractTrajectory):
    """A trajectory of a fixed number of steps; its end is accepted or rejected.

    Attributes:
        candidate: The last point if its energy is finite, else the first.
        proposal: The last point once it is accepted, else the first.
        step: Step size.
        tail: The end from which to go on.
        steps: Leapfrog steps made.
        limit: Leapfrog steps wanted.
        start_energy: Energy of the first point, in nats.
        error: Energy error at the last point, in nats.
        max_error: The largest energy error met, in nats.
        log_uniform: Logarithm of the uniform number that decides on acceptance.
    """

    candidate: Proposal
    proposal: Proposal
    step: Scalar
    tail: End
    steps: Int[Array, ""]
    limit: Int[Array, ""]
    start_energy: Scalar
    error: Scalar
    max_error: Scalar
    log_uniform: Scalar

    def is_growing(self) -> Flag:
        return (self.steps < self.limit) & ~self._is_divergent()

    def is_extending(self) -> Flag:
        return self.is_growing()

    def close(self) -> "Path":
        return self

    def end(self) -> End:
        return self.tail

    def extend(self, point: PhasePoint) -> "Path":
        energy = point.energy()
        error = jnp.where(jnp.isnan(energy), jnp.inf, energy - self.start_energy)
        new = Proposal(point.position, point.gradient, point.log_density, energy)
        is_last = self.steps + 1 == self.limit
        is_taken = is_last & (self.log_uniform < -error)
        return Path(
            candidate=choose(jnp.isfinite(error), new, self.candidate),
            proposal=choose(is_taken, new, self.proposal),
            step=self.step,
            tail=point.end(),
            steps=self.steps + 1,
            limit=self.limit,
            start_energy=self.start_energy,
            error=error,
            max_error=jnp.maximum(self.max_error, error),
            log_uniform=self.log_uniform,
        )

    def acceptance_rate(self) -> Scalar:
        return jnp.exp(-jnp.maximum(self.error, 0))

    def num_steps(self) -> Int[Array, ""]:
        return self.steps

    def stats(self) -> dict[str, Array]:
        return {
            "acceptance_rate": self.acceptance_rate(),
            "n_steps": self.steps,
            "diverging": self._is_divergent(),
            "energy": self.proposal.energy,
            "energy_error": self.proposal.energy - self.start_energy,
            "max_energy_error": self.max_error,
        }

    def _is_divergent(self) -> Flag:
        return self.error > MAX_ENERGY_ERROR


class HMC(AbstractSampler):
    """Hamiltonian Monte Carlo with trajectories of a given length, jittered.

    Cheaper than `NUTS` per gradient where a good length is known; otherwise use `NUTS`.
    Starts, step size and metric are found as there, so lengths are in units of the whitened
    posterior: a quarter of a period of a standard normal is `pi / 2`.

    Attributes:
        chains: Independent chains.
        warmup: Steps of adaptation.
        draws: Draws kept from each chain.
        trajectory_length: Longest integration time; None if `num_steps` is given.
        num_steps: Longest trajectory, in leapfrog steps.
        jitter: Each length is multiplied by a uniform number from `1 - jitter` to 1, which
            keeps trajectories from returning to where they started.
        target_accept: Mean acceptance rate that the step size aims at.
        metric: As for `NUTS`.
        step_size: First step size; None to search for one.
        keep_warmup: Whether to keep the draws of warm-up.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, arXiv:1206.1901.
        Seyboldt, Carlson and Carpenter (2026), metrics from gradients, arXiv:2603.18845
        [metric: auto, fisher, low_rank].
    """

    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=1000, converter=whole("warmup", least=0))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    trajectory_length: float | None = eqx.field(
        default=None, converter=positive("trajectory_length", optional=True)
    )
    num_steps: int | None = eqx.field(
        default=None, converter=whole("num_steps", least=1, most=_MAX_STEPS, optional=True)
    )
    jitter: float = eqx.field(default=0.5, converter=number("jitter", least=0, below=1))
    target_accept: float = eqx.field(default=0.8, converter=fraction("target_accept"))
    metric: str | AbstractEstimator = eqx.field(
        default="auto", converter=metric_name(*METRICS, kind=AbstractEstimator)
    )
    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True)
    )
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))

    def __check_init__(self):
        length, steps = self.trajectory_length, self.num_steps
        if length is not None and steps is not None:
            raise ValueError(
                f"Give `trajectory_length` or `num_steps`, not both; got {length} and {steps}."
            )

    @property
    def name(self) -> str:
        return "HMC"

    def start_trajectory(
        self, point: PhasePoint, step_size: Array, one_step: Flag, index: Array, *, key: PRNGKey
    ) -> Path:
        del index
        dtype = step_size.dtype
        jitter_key, accept_key = jax.random.split(key)
        share = 1 - self.jitter * jax.random.uniform(jitter_key, (), dtype)
        if self.num_steps is not None:
            wanted = share * self.num_steps
        else:  # by default with the jitter a quarter to half a period
            wanted = share * (self.trajectory_length or math.pi) / step_size
        limit = jnp.clip(jnp.ceil(wanted), 1, _MAX_STEPS).astype(jnp.int32)
        energy = point.energy()
        start = Proposal(point.position, point.gradient, point.log_density, energy)
        return Path(
            candidate=start,
            proposal=start,
            step=step_size,
            tail=point.end(),
            steps=jnp.zeros((), jnp.int32),
            limit=jnp.where(one_step, 1, limit).astype(jnp.int32),
            start_energy=energy,
            error=jnp.zeros((), dtype),
            max_error=jnp.full((), -jnp.inf, dtype),
            log_uniform=-jax.random.exponential(accept_key, (), dtype),
        )
