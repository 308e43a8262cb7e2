"""Particles of a Feynman-Kac model of fixed length, for laws that nothing else can sample."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ...core._convert import number, whole
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._particle_target import AbstractParticleTarget
from ...core._results import RESULTS
from ...core._types import PRNGKey
from ...diagnostics._records import ParticleHistory
from ._driver import Cloud, Resampler, advance, start
from ._record import cloud_stats, only_cloud, recorded, resampling_field, weighted_sample
from ._resampling import AbstractResampling


class FeynmanKacState(eqx.Module):
    """What the next step needs."""

    cloud: Cloud  # the particles
    left: Int[Array, ""]  # steps to make
    alive: Bool[Array, ""]  # whether any particle has a positive weight


class FeynmanKacSMC(AbstractEngine):
    """Weighted particles of a law that is given as a Feynman-Kac model.

    For an `AbstractParticleTarget`, such as a steered diffusion (`whence.models.diffusion`).
    The draws are weighted, and the evidence is the integral of the weights.

    Attributes:
        particles: Number of particles, at least 2.
        resampling: As in `TemperedSMC`.
        threshold: Resample when the effective sample size is at most this fraction; 0 never
            does (importance sampling), 1 always.
        max_steps: Most steps that a model may have.

    References:
        Del Moral (2004), "Feynman-Kac formulae", doi:10.1007/978-1-4684-9393-1.
    """

    particles: int = eqx.field(default=4096, converter=whole("particles", least=2))
    resampling: str | AbstractResampling = resampling_field()
    threshold: float = eqx.field(default=0.5, converter=number("threshold", least=0, most=1))
    max_steps: int = eqx.field(default=100_000, converter=whole("max_steps", least=1))

    @property
    def name(self) -> str:
        return "FeynmanKacSMC"

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.max_steps, ensemble=("particle", self.particles))

    def validate(self, target: Any) -> None:
        """Raise `ValueError` unless the target is a law of particles, and short enough."""
        if not isinstance(target, AbstractParticleTarget):
            raise ValueError(
                "FeynmanKacSMC needs a target that is a Feynman-Kac model, such as a steered "
                f"diffusion; got {type(target).__name__}. `TemperedSMC` runs on densities."
            )
        if target.num_steps > self.max_steps:
            raise ValueError(
                f"`max_steps` must be at least the {target.num_steps} steps of the model; got "
                f"{self.max_steps}."
            )

    def init(self, target: AbstractParticleTarget, *, key: PRNGKey) -> FeynmanKacState:
        cloud = start(target.feynman_kac(self.particles), key=key)
        return FeynmanKacState(cloud, jnp.int32(target.num_steps), jnp.asarray(True))

    def step(
        self,
        target: AbstractParticleTarget,
        state: FeynmanKacState,
        index: Array,
        *,
        key: PRNGKey,
    ) -> tuple[FeynmanKacState, Info]:
        model = target.feynman_kac(self.particles)
        resampler = Resampler(self.resampling, self.threshold)
        cloud, did = advance(model, state.cloud, resampler, key=key)
        alive = state.alive & jnp.isfinite(did.log_evidence_increment)
        stats = cloud_stats(cloud, did) | target.stats(cloud.control)
        return FeynmanKacState(cloud, state.left - 1, alive), Info(None, stats)

    def done(self, state: FeynmanKacState) -> Bool[Array, ""]:
        return (state.left <= 0) | ~state.alive

    def result(self, state: FeynmanKacState) -> RESULTS:
        return RESULTS.where(state.alive, RESULTS.successful, RESULTS.nonfinite_state)

    def explain(self, target: AbstractParticleTarget, state: FeynmanKacState) -> str:
        """Return at which step no particle had a weight."""
        step = target.num_steps - int(np.asarray(state.left)[0]) - 1
        return f"All weights were zero or NaN at step {step} of {target.num_steps}, from 0."

    def posterior(
        self,
        target: AbstractParticleTarget,
        state: FeynmanKacState,
        trace: Trace,
        *,
        key: PRNGKey,
    ) -> Sample:
        cloud = only_cloud(state.cloud)
        positions = jax.tree.map(lambda v: v[None], target.positions(cloud.particles))
        return weighted_sample(cloud, positions, {}, ParticleHistory(**recorded(trace)))
