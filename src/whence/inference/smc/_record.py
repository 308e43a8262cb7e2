"""What samplers with particles write down at each step, and hand back at the end."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core._convert import one_of
from ...core._engine import Sample, Trace
from ...core._target import AbstractTarget
from ...core._types import Scalar
from .._settings import metric_name, named
from ._driver import Advance, Cloud
from ._kernels import KERNELS, AbstractKernel, Particles
from ._metric import METRICS, AbstractMetric
from ._moves import Moves, MoveStats
from ._path import unflatten
from ._resampling import SCHEMES, AbstractResampling


def kernel_field() -> Any:
    """Return the field of an engine for the kernel of its moves."""
    convert = one_of("kernel", KERNELS, kind=AbstractKernel)
    return eqx.field(default="hmc", converter=convert)


def metric_field() -> Any:
    """Return the field of an engine for what its moves are whitened by."""
    return eqx.field(default="auto", converter=metric_name(*METRICS, kind=AbstractMetric))


def made_moves(engine: Any) -> Moves:
    """Return the moves that an engine with fields for them makes."""
    kernel, metric = named(engine.kernel, KERNELS), named(engine.metric, METRICS)
    return Moves(kernel, metric, engine.moves, engine.max_moves)


def resampling_field() -> Any:
    """Return the field of an engine for its scheme of resampling."""
    convert = one_of("resampling", SCHEMES, kind=AbstractResampling)
    return eqx.field(default="systematic", converter=convert)


def cloud_stats(cloud: Cloud, did: Advance) -> dict[str, Any]:
    """Return the statistics of weights after a step that left `cloud`."""
    return {
        "ess": did.ess,
        "largest_weight": did.largest_weight,
        "log_evidence_increment": did.log_evidence_increment,
        "resampled": did.resampled,
        "unique_ancestors": cloud.num_founders,
    }


def step_stats(
    cloud: Cloud, did: Advance, moves: MoveStats, log_scale: Scalar
) -> dict[str, Any]:
    """Return the statistics of a step that left `cloud`, moved with `log_scale`."""
    return cloud_stats(cloud, did) | {
        "acceptance_rate": moves.acceptance_rate,
        "num_moves": moves.num_moves,
        "num_evaluations": moves.num_evaluations,
        "growth": moves.growth,
        "scale": jnp.exp(log_scale),
    }


def recorded(trace: Trace) -> dict[str, Any]:
    """Return the statistics of the one replica by step; none if there was no step."""
    stats = {} if trace.sampling is None else trace.sampling.stats
    return {name: np.asarray(value)[0] for name, value in stats.items()}


def only_cloud(state: Cloud) -> Cloud:
    """Return the cloud of the one replica."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], state)


def flat_positions(target: AbstractTarget, particles: Particles) -> tuple[Any, dict[str, Any]]:
    """Return positions and their log density, with axes `(1, particle)`."""
    positions = jax.vmap(jax.vmap(lambda x: unflatten(target, x)))(particles.x[None])
    return positions, {"lp": (particles.log_base + particles.log_tilt)[None]}


def weighted_sample(cloud: Cloud, positions: Any, stats: dict, record: Any) -> Sample:
    """Return positions `(1, particle, ...)` with the weights and the evidence of a cloud."""
    return Sample(
        positions=positions,
        stats=stats | {"founder": cloud.founders[None]},
        log_weights=cloud.log_weights[None],
        log_evidence=float(cloud.log_evidence.value),
        log_evidence_error=float(jnp.sqrt(cloud.evidence_variance)),
        method="smc",
        record=record,
    )
