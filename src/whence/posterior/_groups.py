"""A posterior as ArviZ's groups."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np

from ..core._cache import compiled
from ..core._convert import whole
from ..core._engine import Sample
from ..core._json import to_json
from ..core._names import exported
from ..core._prior import draw_prior, draw_prior_and_data
from ..core._results import InferenceWarning, ModelError
from ..core._target import (
    AbstractDescribedTarget,
    AbstractTarget,
    HasJacobian,
    NamesInputs,
    SplitsPrior,
)
from ..core._tree import named_leaves
from ..core._types import AnyArray, PRNGKey
from ._map_draws import (
    log_prior,
    new_inputs,
    no_sampler,
    over_draws,
    pointwise,
    predictions,
    variables,
)

if TYPE_CHECKING:
    import xarray

GROUPS = (
    "posterior",
    "sample_stats",
    "log_likelihood",
    "log_prior",
    "posterior_predictive",
    "predictions",
    "predictions_constant_data",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "unconstrained_posterior",
    "warmup_posterior",
    "warmup_sample_stats",
)
LARGEST_GROUP = 2**28  # bytes; larger computed groups are made only when asked for by name


_LOG = "log_likelihood/"  # before the name of a variable: axes in that group alone
_NUMBERS = ("log_evidence", "log_evidence_error")
_OWN = ("engine", "manifest", "seconds", "complete", "stopped", *_NUMBERS)


class Contents(NamedTuple):
    """What groups are made of.

    Attributes:
        target: What was sampled; None if it is not at hand.
        sample: The draws.
        variables: Latents and derived values by name, `(chain, draw, ...)`.
        dims: Names of axes, by variable.
        coords: Labels along named axes.
        attrs: Attributes of the root.
    """

    target: AbstractTarget | None
    sample: Sample
    variables: Mapping[str, np.ndarray]
    dims: Mapping[str, Sequence[str]]
    coords: Mapping[str, Any]
    attrs: dict[str, Any]

    @property
    def num_draws(self) -> int:
        """Draws of all chains."""
        return int(np.prod(jax.tree.leaves(self.sample.positions)[0].shape[:2]))

    def tree(self, groups: Mapping[str, Mapping[str, AnyArray]]) -> "xarray.DataTree":
        """Return groups with these dims, coords and attributes."""
        from ..storage import to_datatree

        dims, row = _with_rows(self)
        dims = {exported(n): [exported(a) for a in axes] for n, axes in dims.items()}
        labels = {exported(axis): values for axis, values in self.coords.items()}
        row = row and exported(row)
        groups = {g: {exported(n): v for n, v in vs.items()} for g, vs in groups.items()}
        new = {n: values for n, values in groups.items() if n.startswith("predictions")}
        # Where values are missing, pointwise log likelihoods have axes of their own.
        own = {n: axes for n, axes in dims.items() if n.startswith(exported(_LOG))}
        log = {n: v for n, v in groups.items() if own and n == "log_likelihood"}
        old = {n: values for n, values in groups.items() if n not in new | log}
        made = to_datatree(cast(Any, old), dims=dims, coords=labels, attrs=self.attrs)
        if log:
            named = dims | {n.removeprefix(exported(_LOG)): axes for n, axes in own.items()}
            made.update(to_datatree(cast(Any, log), dims=named, coords=labels).children)
        if new:
            # New rows are not the old ones, unless latents have an entry for each of them.
            keep = any(row in dims.get(exported(n), ()) for n in self.variables)
            coords = {n: v for n, v in labels.items() if keep or n != row}
            made.update(to_datatree(cast(Any, new), dims=dims, coords=coords).children)
        return made


class Wish(NamedTuple):
    """How groups are made.

    Attributes:
        key: For predictive draws.
        prior_draws: Number of draws in the prior groups.
        automatic: Whether the group was not asked for by name.
        inputs: Inputs of predictions, a tuple or by name; None for no predictions.
        new_groups: "prior" if groups in them may be new.
    """

    key: PRNGKey | None = None
    prior_draws: int = 0
    automatic: bool = True
    inputs: tuple | Mapping[str, Any] | None = None
    new_groups: str | None = None


def contents_of(posterior: Any) -> Contents:
    """Return what groups of a posterior are made of."""
    own = {name: getattr(posterior, name) for name in _OWN}
    own |= {"failed": list(posterior.failed), "method": posterior.sample.method}
    own |= {name: None if own[name] is None else float(own[name]) for name in _NUMBERS}
    attrs = {
        "inference_library": "whence",
        "inference_library_version": posterior.manifest.get("versions", {}).get("whence", ""),
        "sampling_time": posterior.seconds.get("sampling", float("nan")),
        **{f"whence_{name}": json.dumps(value) for name, value in own.items()},
    }
    described = posterior._described
    return Contents(
        posterior.target,
        posterior.sample,
        posterior.variables,
        described["dims"],
        described["coords"],
        attrs,
    )


def _with_rows(contents: Contents) -> tuple[dict[str, Sequence[str]], str | None]:
    """Return dims in which data and inputs share the axis of the rows, and its name.

    ArviZ plots data against an input only if their axes have one name.
    """
    dims, target = dict(contents.dims), contents.target
    if not isinstance(target, AbstractDescribedTarget):
        return dims, None
    observed = {n: np.shape(v) for n, v in target.observed_data.items()}
    lengths = {shape[:1] for shape in observed.values()}
    names = {dims[n][0] for n in observed if dims.get(n)}
    if len(lengths) != 1 or len(names) > 1 or () in lengths:
        return dims, None
    row = next(iter(names), f"{next(iter(observed))}_dim_0")
    given = {n: np.shape(v) for n, v in target.constant_data.items()}
    beside = {} if row in given else given  # an axis cannot have the name of a variable there
    for name, shape in (observed | beside).items():
        if shape[:1] in lengths:
            rest = (f"{name}_dim_{i}" for i in range(1, len(shape)))
            dims.setdefault(name, (row, *rest))
    return dims, row


def export(contents: Contents, groups, wish: Wish) -> "xarray.DataTree":
    """Return the groups asked for as a `DataTree`; see `Posterior.to_datatree`."""
    from ..storage import in_order

    if groups is not None and not isinstance(groups, tuple | list):
        raise ValueError(f"`groups` must be names of groups; got {groups!r}.")
    whole("prior_draws", least=1)(wish.prior_draws)
    wanted = GROUPS if groups is None else tuple(groups)
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown:
        raise ValueError(f"`groups` must be among {', '.join(GROUPS)}; got {unknown[0]!r}.")
    made: dict[str, Mapping[str, AnyArray]] = {}
    for name in wanted:
        try:
            values = _MAKERS[name](contents, wish)
        except _NotApplicable as reason:
            if groups is not None:
                raise ValueError(f"Group {name!r} is not available: {reason}") from None
            if reason.say:
                warnings.warn(
                    f"Group {name!r} is left out: {reason}", InferenceWarning, stacklevel=3
                )
            continue
        if values or groups is not None:
            made[name] = values
    return in_order(contents.tree(made))


def saved_tree(contents: Contents) -> "xarray.DataTree":
    """Return what a saved file holds: all cheap groups and the positions, weights kept."""
    sample = contents.sample
    made: dict[str, Mapping[str, AnyArray]] = {
        "posterior": contents.variables,
        "sample_stats": dict(sample.stats),
        "unconstrained_posterior": named_leaves(sample.positions),
    }
    if sample.log_weights is not None:
        made["sample_stats"] = {**made["sample_stats"], "log_weight": sample.log_weights}
    for name in ("observed_data", "constant_data", "warmup_posterior", "warmup_sample_stats"):
        try:
            values = _MAKERS[name](contents, Wish())
        except _NotApplicable:
            continue
        if values:
            made[name] = values
    axes = (axis for own in contents.dims.values() for axis in own)
    names = (*(n for group in made.values() for n in group), *axes)
    renamed = {exported(n): n for n in names if n != exported(n)}
    contents.attrs["whence_names"] = json.dumps(renamed)
    arrays: dict[str, np.ndarray] = {}
    contents.attrs["whence_record"] = json.dumps(to_json(sample.record, arrays))
    made["record"] = arrays
    return contents.tree(made)


class _NotApplicable(Exception):
    """A group that this posterior cannot have; the message says why.

    Attributes:
        say: Whether users should hear of it who did not ask for the group by name.
    """

    def __init__(self, reason: str, say: bool = False):
        super().__init__(reason)
        self.say = say


def _described(contents: Contents) -> AbstractDescribedTarget:
    if not isinstance(contents.target, AbstractDescribedTarget):
        raise _NotApplicable("the posterior has no target that describes its data.")
    return contents.target


def _refuse_large(shapes, draws: int, wish: Wish, name: str) -> None:
    size = draws * sum(np.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))
    if wish.automatic and size > LARGEST_GROUP:
        warnings.warn(
            f"Group {name!r} would take {size / 2**20:.0f} MiB and is left out; ask for it "
            f"with `to_datatree(groups=(..., {name!r}))`.",
            stacklevel=2,
        )
        raise _NotApplicable("too large")


def _log_likelihood(contents, wish):
    target = _described(contents)
    position = jax.tree.map(lambda x: x[0, 0], contents.sample.positions)
    shapes = jax.eval_shape(lambda p: pointwise(target, p), position)
    if not any(leaf.shape for leaf in jax.tree.leaves(shapes)):
        raise _NotApplicable(
            "the log likelihood is one number for all data, not pointwise. For data that are "
            "dependent given a draw, a model's `log_density_given_rest` says what LOO needs."
        )
    _refuse_large(shapes, contents.num_draws, wish, "log_likelihood")
    return over_draws(target, pointwise, contents.sample.positions)


def _log_prior(contents, wish):
    target = _described(contents)
    if not isinstance(target, SplitsPrior | HasJacobian):
        raise _NotApplicable("the target does not know the density of its prior.")
    _refuse_large(contents.sample.positions, 1, wish, "log_prior")
    return over_draws(target, log_prior, contents.sample.positions)


def _posterior_predictive(contents, wish):
    target = _described(contents)
    _refuse_large(target.observed_data, contents.num_draws, wish, "posterior_predictive")
    return _predicted(contents, None, wish)


def _predicted(contents, inputs, wish):
    try:
        return predictions(contents.target, contents.sample, inputs, wish.key)
    except NotImplementedError as error:
        raise _NotApplicable(str(error)) from None
    except Exception as error:  # noqa: BLE001 - whatever a sampler does, other groups are kept
        raise _NotApplicable(_told(error), say=True) from None


def _told(error: Exception) -> str:
    if isinstance(error, ValueError | TypeError):
        return no_sampler(error)
    return f"to draw it raised {type(error).__name__}: {error}"


def _predictions(contents, wish):
    return _predicted(contents, _new_inputs(contents, wish), wish)


def _predictions_constant_data(contents, wish):
    inputs, target = _new_inputs(contents, wish), _described(contents)
    return _numpy(target.name_inputs(inputs)) if isinstance(target, NamesInputs) else {}


def _new_inputs(contents, wish) -> Any:
    _described(contents)
    if wish.inputs is None:
        raise _NotApplicable("it is of new inputs; give them: `to_datatree(inputs=(x,))`.")
    given: tuple[tuple, Mapping[str, Any]]
    if isinstance(wish.inputs, Mapping):
        given = (), wish.inputs
    elif isinstance(wish.inputs, tuple | list):
        given = tuple(wish.inputs), {}
    else:
        raise ValueError(f"`inputs` must be a tuple, or a dict by name; got {wish.inputs!r}.")
    return new_inputs(contents.target, *given, wish.new_groups)


def _prior(contents, wish):
    return _prior_draws(contents, wish)[0]


def _prior_predictive(contents, wish):
    target = _described(contents)
    _refuse_large(target.observed_data, wish.prior_draws, wish, "prior_predictive")
    _, drawn, reason = _prior_draws(contents, wish)
    if drawn is None:
        assert reason is not None
        raise reason
    return drawn


def _prior_draws(contents, wish):
    target, key, prior_draws = _described(contents), wish.key, wish.prior_draws
    program, reasons = None, []
    for function in (draw_prior_and_data, draw_prior):
        try:
            program = compiled(function, target, key, prior_draws)
            break
        except NotImplementedError as error:
            reasons.append(_NotApplicable(str(error)))
        except Exception as error:  # noqa: BLE001 - an improper prior, data without a sampler
            reasons.append(_NotApplicable(_told(error), say=True))
    if program is None:
        raise _NotApplicable(str(reasons[-1]))
    try:
        variables, data = jax.tree.map(np.asarray, program.call(target, key, prior_draws))
    except ModelError as error:
        raise _NotApplicable(str(error), say=True) from None
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)
    return lead(variables), lead(data), next(iter(reasons), None)


def _warmup_posterior(contents, wish):
    positions = contents.sample.warmup_positions
    if positions is None:
        raise _NotApplicable("warm-up draws were not kept (`keep_warmup=True` keeps them).")
    return over_draws(contents.target, variables, positions)


def _warmup_stats(contents, wish):
    if contents.sample.warmup_positions is None or not contents.sample.warmup_stats:
        raise _NotApplicable("warm-up draws were not kept (`keep_warmup=True` keeps them).")
    return contents.sample.warmup_stats


_MAKERS = {
    "posterior": lambda p, *_: p.variables,
    "sample_stats": lambda p, *_: dict(p.sample.stats),
    "unconstrained_posterior": lambda p, *_: named_leaves(p.sample.positions),
    "observed_data": lambda p, *_: _numpy(_described(p).observed_data),
    "constant_data": lambda p, *_: _numpy(_described(p).constant_data),
    "log_likelihood": _log_likelihood,
    "log_prior": _log_prior,
    "predictions": _predictions,
    "predictions_constant_data": _predictions_constant_data,
    "posterior_predictive": _posterior_predictive,
    "prior": _prior,
    "prior_predictive": _prior_predictive,
    "warmup_posterior": _warmup_posterior,
    "warmup_sample_stats": _warmup_stats,
}


def _numpy(named):
    return {name: np.asarray(value) for name, value in named.items()}
