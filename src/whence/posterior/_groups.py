"""A posterior as ArviZ's groups."""

import json
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._cache import compiled
from ..core._engine import Sample
from ..core._json import to_json
from ..core._target import AbstractDescribedTarget
from ._map_draws import pointwise

if TYPE_CHECKING:
    import xarray

    from ._posterior import Posterior

GROUPS = (
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "unconstrained_posterior",
    "warmup_posterior",
    "warmup_sample_stats",
)
LARGEST_GROUP = 2**28  # bytes; larger computed groups are made only when asked for by name


def export(posterior: "Posterior", groups, key, prior_draws: int) -> "xarray.DataTree":
    """Return the groups asked for as a `DataTree`; see `Posterior.to_datatree`."""
    from ..storage import to_datatree

    wanted = GROUPS if groups is None else tuple(groups)
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown:
        raise ValueError(f"`groups` must be among {', '.join(GROUPS)}; got {unknown[0]!r}.")
    if key is None:
        key = _default_key(posterior)
    if posterior.log_weights is not None:
        total = posterior.num_chains * posterior.num_draws
        posterior = posterior.resample(total, key=jr.fold_in(key, 0))
    made: dict[str, dict[str, np.ndarray]] = {}
    for name in wanted:
        try:
            values = _MAKERS[name](posterior, jr.fold_in(key, 1), prior_draws, groups is None)
        except _NotApplicable as reason:
            if groups is not None:
                raise ValueError(f"Group {name!r} is not available: {reason}") from None
            continue
        if values or groups is not None:
            made[name] = values
    return to_datatree(
        made,
        dims=posterior._described["dims"],
        coords=posterior._described["coords"],
        attrs=_attrs(posterior),
    )


def saved_tree(posterior: "Posterior") -> "xarray.DataTree":
    """Return what a saved file holds: all cheap groups and the positions, weights kept."""
    from ..storage import to_datatree

    made = {
        "posterior": posterior.variables,
        "sample_stats": dict(posterior.stats),
        "unconstrained_posterior": posterior._positions_by_name(),
    }
    if posterior.log_weights is not None:
        made["sample_stats"]["log_weight"] = posterior.log_weights
    for name in ("observed_data", "constant_data", "warmup_posterior", "warmup_sample_stats"):
        try:
            values = _MAKERS[name](posterior, None, 0, True)
        except _NotApplicable:
            continue
        if values:
            made[name] = values
    arrays: dict[str, np.ndarray] = {}
    attrs = _attrs(posterior)
    attrs["whence_record"] = json.dumps(to_json(posterior.sample.record, arrays))
    made["record"] = arrays
    return to_datatree(
        made,
        dims=posterior._described["dims"],
        coords=posterior._described["coords"],
        attrs=attrs,
    )


class _NotApplicable(Exception):
    """A group that this posterior cannot have; the message says why."""


def _default_key(posterior: "Posterior"):
    data = np.asarray(posterior.manifest.get("key", [0, 0]), dtype=np.uint32)
    impl = posterior.manifest.get("key_impl", "threefry2x32")
    return jr.fold_in(jr.wrap_key_data(jnp.asarray(data), impl=impl), 2**31 - 2)


def _attrs(posterior: "Posterior") -> dict[str, Any]:
    return {
        "inference_library": "whence",
        "inference_library_version": posterior.manifest.get("versions", {}).get("whence", ""),
        "sampling_time": posterior.seconds.get("sampling", float("nan")),
        "whence_engine": posterior.engine,
        "whence_manifest": json.dumps(posterior.manifest),
        "whence_seconds": json.dumps(posterior.seconds),
        "whence_failed": json.dumps(list(posterior.failed)),
        "whence_complete": json.dumps(posterior.complete),
        "whence_stopped": json.dumps(posterior.stopped),
        "whence_method": json.dumps(posterior.sample.method),
        "whence_log_evidence": json.dumps(_number(posterior.log_evidence)),
        "whence_log_evidence_error": json.dumps(_number(posterior.log_evidence_error)),
    }


def _number(value) -> float | None:
    return None if value is None else float(value)


def _described(posterior: "Posterior") -> AbstractDescribedTarget:
    if not isinstance(posterior.target, AbstractDescribedTarget):
        raise _NotApplicable("the posterior has no target that describes its data.")
    return posterior.target


def _refuse_large(shapes, draws: int, automatic: bool, name: str) -> None:
    size = draws * sum(np.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))
    if automatic and size > LARGEST_GROUP:
        warnings.warn(
            f"Group {name!r} would take {size / 2**20:.0f} MiB and is left out; ask for it "
            f"with `to_datatree(groups=(..., {name!r}))`.",
            stacklevel=2,
        )
        raise _NotApplicable("too large")


def _log_likelihood(posterior, key, prior_draws, automatic):
    target = _described(posterior)
    position = jax.tree.map(lambda x: x[0, 0], posterior.sample.positions)
    shapes = jax.eval_shape(lambda p: pointwise(target, p), position)
    if not any(leaf.shape for leaf in jax.tree.leaves(shapes)):
        raise _NotApplicable(
            "the log likelihood is one number for all data, not pointwise. For data that are "
            "dependent given a draw, a model's `log_density_given_rest` says what LOO needs."
        )
    total = posterior.num_chains * posterior.num_draws
    _refuse_large(shapes, total, automatic, "log_likelihood")
    return posterior.log_likelihood()


def _posterior_predictive(posterior, key, prior_draws, automatic):
    target = _described(posterior)
    total = posterior.num_chains * posterior.num_draws
    _refuse_large(target.observed_data, total, automatic, "posterior_predictive")
    try:
        drawn = posterior.predict(key=key)
    except NotImplementedError as error:
        raise _NotApplicable(str(error)) from None
    return drawn if isinstance(drawn, dict) else {next(iter(target.observed_data)): drawn}


def _prior(posterior, key, prior_draws, automatic):
    return _prior_draws(posterior, key, prior_draws)[0]


def _prior_predictive(posterior, key, prior_draws, automatic):
    target = _described(posterior)
    _refuse_large(target.observed_data, prior_draws, automatic, "prior_predictive")
    drawn = _prior_draws(posterior, key, prior_draws)[1]
    if drawn is None:
        raise _NotApplicable("the model has no `likelihood` to draw data from.")
    return drawn


def _prior_draws(posterior, key, prior_draws):
    target = _described(posterior)
    program = None
    for function in (_draw_prior_and_data, _draw_prior):
        try:
            program = compiled(function, target, key, prior_draws)
            break
        except NotImplementedError:
            continue
        except ValueError as error:  # an improper prior
            raise _NotApplicable(str(error)) from None
    if program is None:
        raise _NotApplicable("the prior cannot be sampled.")
    variables, data = jax.tree.map(np.asarray, program.call(target, key, prior_draws))
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)
    return lead(variables), lead(data)


def _draw_prior_and_data(target, key, number):
    def one(key):
        key_prior, key_data = jr.split(key)
        draw = target.sample_prior(key=key_prior)
        return target.variables(draw), target.predict(draw, None, key=key_data)

    return jax.vmap(one)(jr.split(key, number))


def _draw_prior(target, key, number):
    def one(key):
        return target.variables(target.sample_prior(key=key))

    return jax.vmap(one)(jr.split(key, number)), None


def _warmup_posterior(posterior, key, prior_draws, automatic):
    positions = posterior.sample.warmup_positions
    if positions is None:
        raise _NotApplicable("warm-up draws were not kept (`keep_warmup=True` keeps them).")
    stats = posterior.sample.warmup_stats or {}
    return posterior._like(Sample(positions, stats, method=posterior.sample.method)).variables


def _warmup_stats(posterior, key, prior_draws, automatic):
    if posterior.sample.warmup_positions is None or not posterior.sample.warmup_stats:
        raise _NotApplicable("warm-up draws were not kept (`keep_warmup=True` keeps them).")
    return posterior.sample.warmup_stats


_MAKERS = {
    "posterior": lambda p, *_: p.variables,
    "sample_stats": lambda p, *_: dict(p.stats),
    "unconstrained_posterior": lambda p, *_: p._positions_by_name(),
    "observed_data": lambda p, *_: _numpy(_described(p).observed_data),
    "constant_data": lambda p, *_: _numpy(_described(p).constant_data),
    "log_likelihood": _log_likelihood,
    "posterior_predictive": _posterior_predictive,
    "prior": _prior,
    "prior_predictive": _prior_predictive,
    "warmup_posterior": _warmup_posterior,
    "warmup_sample_stats": _warmup_stats,
}


def _numpy(named):
    return {name: np.asarray(value) for name, value in named.items()}
