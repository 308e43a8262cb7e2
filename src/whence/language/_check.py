"""`check()`: a target evaluated at a few starting points, and what is wrong there."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
from jax.tree_util import keystr, tree_leaves_with_path

from ..core._cache import compiled
from ..core._convert import whole
from ..core._flat import position_shapes
from ..core._key import seeded
from ..core._prior import draw_prior
from ..core._require import require_target
from ..core._stream import Streamed
from ..core._target import AbstractDescribedTarget, AbstractTarget, KnowsRows, latent_names
from ..core._types import PRNGKey
from ..diagnostics._html import block, paragraph, table
from ._condition import ModelTarget
from ._model import constrain_with_terms

_QUANTILES = ("5%", "50%", "95%")
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        problems: One sentence for each thing that is wrong; empty if nothing is.
        latents: Lines that describe the latents.
        log_density: Log density at the starting points tried, in nats.
        remarks: What the model says to know before any fit; nothing is wrong.
        priors: By latent and derived value, the 5%, 50% and 95% quantiles of its prior, all
            elements together; empty if the prior cannot be drawn from.
    """

    problems: tuple[str, ...]
    latents: tuple[str, ...]
    log_density: np.ndarray
    remarks: tuple[str, ...] = ()
    priors: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = ["latents:", *(f"  {line}" for line in self.latents)]
        if self.priors:
            rows = [(f"prior ({_DRAWS} draws)", *_QUANTILES), *self._rows()]
            widths = [max(map(len, column)) for column in zip(*rows)]
            lines += [
                f"  {row[0]:<{widths[0]}}"
                + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:]))
                for row in rows
            ]
        return "\n".join([*lines, *self._findings()])

    def _repr_html_(self) -> str:
        described = [line.partition(": ")[::2] for line in self.latents]
        return block(
            table(("", ""), described),
            table(("prior", *_QUANTILES), self._rows()),
            *map(paragraph, self._findings()),
        )

    def _rows(self) -> list[tuple[str, ...]]:
        return [(name, *(f"{x:.3g}" for x in found)) for name, found in self.priors.items()]

    def _findings(self) -> list[str]:
        tried = len(self.log_density)
        finite = int(np.isfinite(self.log_density).sum())
        lines = [f"log density finite at {finite} of {tried} starting points"]
        if finite:
            low, high = np.nanmin(self.log_density), np.nanmax(self.log_density)
            lines[-1] += f" (from {low:.4g} to {high:.4g} nats)"
        lines += [f"remark: {text}" for text in self.remarks]
        return lines + ([f"problem: {text}" for text in self.problems] or ["no problems found"])


@seeded
def check(
    target: AbstractTarget, *, key: PRNGKey | None = None, points: int = 16
) -> CheckReport:
    """Evaluate a target's log density and gradient at random starting points.

    Shapes, dims, coords, NaN in data and discrete latents are refused earlier, by
    `condition`. This finds what shows only in numbers: which latent's prior, which row of
    which observed variable, or which leaf of the gradient is not finite. It also lists
    quantiles of the prior, in which a scale that was not meant shows.

    Args:
        target: The target; of one whose data come from a stream, the rows at hand are checked.
        key: A typed key for the starting points; by default a fixed one.
        points: Number of starting points.

    Returns:
        A `CheckReport`; print it.

    Raises:
        ValueError: If `target` is not a target or `points` is not positive.
    """
    require_target(target)
    points = whole("points", least=1)(points)
    key = jr.key(0) if key is None else key
    if isinstance(target, Streamed):
        target = target.at_hand()
    values = compiled(_evaluate, target, key, points).call(target, key, points)
    density, gradient, terms, pointwise = jax.tree.map(np.asarray, values)
    problems: list[str] = []
    if not np.isfinite(density).any():
        problems.append("The log density is not finite at any of the starting points tried.")
    problems += _mixed_precision(target)
    problems += _bad_priors(terms)
    problems += _bad_rows(pointwise)
    problems += _explained(target, pointwise, jr.split(key, points))
    problems += _bad_gradients(target, gradient, np.isfinite(density), jr.split(key, points))
    if not np.isfinite(density).all() and not problems:
        problems.append("The log density is not finite at some of the starting points.")
    remarks = ()
    if isinstance(target, ModelTarget):
        remarks = tuple(target.model.review(target.y, *target.inputs))
    priors = _priors(target, jr.fold_in(key, 1))
    return CheckReport(tuple(problems), _describe(target), density, remarks, priors)


def _priors(target, key) -> dict[str, tuple[float, ...]]:
    """Return quantiles of the prior by variable, in the order of the model."""
    if not isinstance(target, AbstractDescribedTarget):
        return {}
    try:
        # A latent of another scale than meant shows here, before any data are seen.
        drawn, _ = compiled(draw_prior, target, key, _DRAWS).call(target, key, _DRAWS)
    except (ValueError, TypeError, NotImplementedError):  # improper, or without a sampler
        return {}
    levels = [float(level.rstrip("%")) / 100 for level in _QUANTILES]
    names = dict.fromkeys((*latent_names(target), *drawn))
    return {
        name: tuple(map(float, np.quantile(drawn[name], levels)))
        for name in names
        if np.size(drawn.get(name, ())) and np.issubdtype(drawn[name].dtype, np.number)
    }


def _evaluate(target, key, points):
    def at(key):
        position = target.init(key=key)
        density, gradient = jax.value_and_grad(target.log_density)(position)
        terms, pointwise = {}, {}
        if isinstance(target, ModelTarget):
            draw, terms = constrain_with_terms(target.model, position)
            terms = {name: jnp.sum(term) for name, term in terms.items()}
            pointwise = target.pointwise(draw)
        return density, gradient, terms, pointwise

    return jax.lax.map(at, jr.split(key, points))


def _mixed_precision(target) -> list[str]:
    if not jax.config.jax_enable_x64:
        return []
    single = [
        keystr(path, simple=True, separator=".")
        for path, leaf in tree_leaves_with_path(target)
        if getattr(leaf, "dtype", None) == np.float32
    ]
    if not single:
        return []
    return [
        f"`{single[0]}` is float32 although float64 is on: it was made before "
        "`whence.enable_x64()`. Make data and model after that call."
    ]


def _bad_priors(terms) -> list[str]:
    bad = {name: int((~np.isfinite(v)).sum()) for name, v in terms.items()}
    return [
        f"The log prior density of latent `{name}` is not finite at {count} of "
        f"{len(terms[name])} starting points. Check the parameters of its prior (a scale "
        "that is zero or negative, say), or a fixed value outside its support."
        for name, count in bad.items()
        if count
    ]


def _bad_rows(pointwise) -> list[str]:
    problems = []
    for name, value in pointwise.items():
        bad = ~np.isfinite(value)
        if not bad.any():
            continue
        if bad.ndim == 1:
            where = ""
        else:
            always = bad.all(axis=0)
            rows = np.argwhere(always if always.any() else bad.any(axis=0))
            first = [int(i) for i in rows[0]]
            where = f", first at index {tuple(first) if len(first) > 1 else first[0]}"
            where += f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        kind = "NaN" if np.isnan(value).any() else "infinite"
        count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
        problems.append(
            f"The log likelihood of {name!r} is {kind}{where}, at {count} of {len(bad)} "
            "starting points. Common causes: data outside the support at these parameters, "
            "overflow (try `whence.enable_x64()`), or a logarithm or square root of a "
            "negative number."
        )
    return problems


def _explained(target, pointwise, keys) -> list[str]:
    """Return what the model says of the first starting point without a finite likelihood."""
    if not isinstance(target, ModelTarget) or not pointwise:
        return []
    finite = [np.isfinite(v.reshape(len(v), -1)).all(axis=1) for v in pointwise.values()]
    bad = np.flatnonzero(~np.all(finite, axis=0))
    if not len(bad):
        return []
    # A prior with parameters that cannot be is a problem of its own, reported as such.
    with numpyro.validation_enabled(False):
        draw = target.constrain(target.init(key=keys[bad[0]]))
        said = draw.explain(target.y, *target.inputs)
    return [said] if said else []


def _bad_gradients(target, gradient, finite, keys) -> list[str]:
    problems, rows = [], ""
    for path, leaf in tree_leaves_with_path(gradient):
        bad = ~np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) & finite
        if bad.any():
            name = keystr(path, simple=True, separator=".") or "position"
            rows = rows or _rows_without_slope(target, keys[np.argmax(bad)])
            problems.append(
                f"The gradient with respect to `{name}` is not finite at {int(bad.sum())} "
                f"starting points although the log density is{rows}. Common causes are a "
                "`jnp.where` around a function that overflows on the branch not taken, and a "
                "rate, scale or probability that is exactly zero there."
            )
    return problems


def _rows_without_slope(target, key) -> str:
    """Say for which data a derivative of the log likelihood is not finite."""
    if not isinstance(target, AbstractDescribedTarget):
        return ""
    found = []
    for name, slope in compiled(_slopes, target, key).call(target, key).items():
        rows = np.argwhere(~np.isfinite(np.asarray(slope)))
        if len(rows) and rows.shape[1]:
            first = [int(i) for i in rows[0]]
            shown = tuple(first) if len(first) > 1 else first[0]
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            found.append(f"; it comes from {name!r} at index {shown}{more}")
    return "".join(found)


def _slopes(target, key):
    """Return the derivative of each datum's log likelihood along all latents at once."""
    position = target.init(key=key)
    ones = jax.tree.map(jnp.ones_like, position)
    pointwise = lambda position: target.pointwise(target.constrain(position))
    return jax.jvp(pointwise, (position,), (ones,))[1]


def _describe(target) -> tuple[str, ...]:
    if not isinstance(target, ModelTarget):
        shapes = tree_leaves_with_path(position_shapes(target))
        lines = [
            f"{keystr(path, simple=True, separator='.') or 'position'}: shape {leaf.shape}"
            for path, leaf in shapes
        ]
        if isinstance(target, KnowsRows) and target.num_data is not None:
            arrays = ", ".join(target.row_arrays) or "no array"
            lines.append(f"data: {target.num_data} rows, of which a batch takes: {arrays}")
        return tuple(lines)
    lines = []
    for site in target.sites:
        dims = f", dims {site.dims}" if site.dims else ""
        lines.append(f"{site.name}: shape {site.shape}{dims}{', fixed' * site.fixed}")
    rows = target.num_data
    lines.append(f"data: {rows} rows" if rows is not None else "data: no row structure")
    return tuple(lines)
