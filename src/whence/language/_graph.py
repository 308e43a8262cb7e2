"""`graph()`: which latents and data depend on which, as Graphviz source and as a picture.

Who depends on whom is read off the traced densities: an equation that does not reach the
log density of a variable does not make a parent.
"""

import html
import inspect
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from ..core._show import axes_text
from ..core._target import AbstractDescribedTarget, NamesLatents, SplitsPrior, Unconstrains
from ._condition import ModelTarget
from ._model import Model, derived_dims, derived_names, named_derived, prior_terms, sites
from ._sites import walk

_HEIGHT, _GAP, _ROW, _PAD = 36, 24, 92, 16  # of nodes, between them, of layers, of plates


class Node(NamedTuple):
    """A variable.

    Attributes:
        name: Its name.
        kind: `"latent"`, `"derived"` or `"observed"`.
        plate: What it repeats over, as `school 8`; empty if it is one number.
        parents: What its density, or value, depends on.
    """

    name: str
    kind: str
    plate: str
    parents: tuple[str, ...]


class Graph:
    """A model as a graph; a notebook shows it.

    Attributes:
        nodes: The variables.
    """

    def __init__(self, nodes: tuple[Node, ...]):
        """Keep the variables; users call `graph`."""
        self.nodes = nodes

    @property
    def source(self) -> str:
        """Graphviz source: plates are clusters, observed variables are filled."""
        lines = ["digraph {"]
        for number, (plate, members) in enumerate(self._plates().items()):
            inside = [f"    {_quote(n.name)} [{_STYLES[n.kind]}];" for n in members]
            if plate:
                label = f"    label={_quote(plate)}; labeljust=r; labelloc=b;"
                inside = [f"  subgraph cluster_{number} {{", label, *inside, "  }"]
            lines += inside
        for node in self.nodes:
            lines += [f"  {_quote(p)} -> {_quote(node.name)};" for p in node.parents]
        return "\n".join([*lines, "}"])

    def svg(self) -> str:
        """Return a picture, drawn without Graphviz."""
        places, boxes, size = _layout(self.nodes, self._plates())
        shapes = [
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='8' fill='none' "
            f"stroke='#999'/><text x='{x + w - 6:g}' y='{y + h - 5:g}' text-anchor='end' "
            f"font-size='11' fill='#666'>{html.escape(label)}</text>"
            for label, (x, y, w, h) in boxes.items()
        ]
        for node in self.nodes:
            for parent in node.parents:
                x1, y1, x2, y2 = _between(places[parent], places[node.name])
                shapes.append(
                    f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='#444' "
                    "marker-end='url(#whence-arrow)'/>"
                )
        shapes += [_picture(node, places[node.name]) for node in self.nodes]
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{size[0]:g}' height='{size[1]:g}' "
            f"viewBox='0 0 {size[0]:g} {size[1]:g}' font-family='sans-serif' font-size='13'>"
            "<defs><marker id='whence-arrow' viewBox='0 0 8 8' refX='8' refY='4' "
            "markerWidth='7' markerHeight='7' orient='auto'><path d='M0 0L8 4L0 8z' "
            f"fill='#444'/></marker></defs>{''.join(shapes)}</svg>"
        )

    def save(self, path: str | Path) -> None:
        """Write the picture if `path` ends in `.svg`, else the source."""
        path = Path(path).expanduser()
        path.write_text(self.svg() if path.suffix == ".svg" else self.source, encoding="utf-8")

    def _repr_html_(self) -> str:
        return self.svg()

    def __repr__(self) -> str:
        return self.source

    def _plates(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(node.plate, []).append(node)
        return found


def graph(model: Any) -> Graph:
    """Return which variables depend on which.

    Args:
        model: A `Model` (its data are shown if `likelihood` takes no inputs), or a target of
            `condition`, `from_numpyro` or `from_tfp`. Where discrete latents are summed out,
            they are not shown, nor what latents depend on.

    Returns:
        A `Graph`: `.source` for Graphviz, `.svg()`, `.save(path)`; a notebook shows it.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(model, Model | ModelTarget):
        inner = model if isinstance(model, Model) else model.model
        found = {site.name: site for site in sites(inner)}
        latents = {name: site.shape for name, site in found.items()}
        fixed = {name for name, site in found.items() if site.fixed}
        whole = partial(_of_model, model, inner)
    elif (
        isinstance(model, AbstractDescribedTarget)
        and isinstance(model, NamesLatents)
        and isinstance(model, SplitsPrior)
        and isinstance(model, Unconstrains)
    ):
        latents = {latent.name: latent.shape for latent in model.latents}
        fixed, whole = set(), partial(_of_sites, model)
    else:
        raise ValueError(
            "`model` must be a `whence.Model`, or a target that knows its latents, as "
            f"`whence.condition` and `whence.from_numpyro` make; got {type(model).__name__}."
        )
    dtype = jnp.result_type(float)
    values = {n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in latents.items()}
    parents, shapes = _parents(whole, values)
    if isinstance(model, Model):
        data, dims = set(parents) - set(latents) - set(derived_names(model)), _dims(model)
    else:
        data, dims = set(model.observed_data), model.dims
        shapes |= {name: np.shape(value) for name, value in model.observed_data.items()}
    nodes = []
    for name in dict.fromkeys((*latents, *(set(parents) & set(shapes) - data), *sorted(data))):
        kind = "latent" if name in latents else "derived"
        kind = "observed" if name in data or name in fixed else kind
        shape = latents.get(name, shapes.get(name, ()))
        plate = axes_text(shape, dims.get(name, ()))
        nodes.append(Node(name, kind, plate, parents.get(name, ())))
    return Graph(tuple(nodes))


def _dims(model: Model) -> dict[str, tuple[str, ...]]:
    return {site.name: site.dims for site in sites(model)} | derived_dims(model)


def _of_model(given: Model | ModelTarget, model: Model, values):
    draw = walk(model, lambda prior, _: values[prior.name])
    if isinstance(given, ModelTarget):
        data = given.pointwise(draw)
    else:
        data = _likelihoods(draw)
    return prior_terms(draw), named_derived(draw), data


def _likelihoods(draw: Model) -> dict[str, Any]:
    """Return the arrays that make the distributions of the data, if no inputs are needed."""
    if type(draw).likelihood is Model.likelihood:
        return {}
    needed = inspect.signature(draw.likelihood).parameters.values()
    if any(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in needed):
        return {}
    made = draw.likelihood()
    named = made if isinstance(made, Mapping) else {"y": made}
    return {name: (jnp.zeros(d.shape()), jax.tree.leaves(d)) for name, d in named.items()}


def _of_sites(target: Any, values):
    drawn = target.constrain(target.unconstrain(values))
    derived = {name: value for name, value in drawn.items() if name not in values}
    return target.log_prior_terms(values), derived, target.pointwise(values)


def _parents(whole, values):
    """Return, by variable, which of `values` it depends on, and shapes of derived values."""
    jaxpr, out = jax.make_jaxpr(whole, return_shape=True)(values)
    names = sorted(values)  # the order of the leaves of a dict
    parents: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    at = 0
    for number, part in enumerate(out):
        for name in sorted(part):
            leaves = jax.tree.leaves(part[name])
            used = [at <= i < at + len(leaves) for i in range(len(jaxpr.jaxpr.outvars))]
            at += len(leaves)
            reached = dce_jaxpr(jaxpr.jaxpr, used)[1]
            found = [n for n, is_used in zip(names, reached) if is_used and n != name]
            if number or name in values:
                parents[name] = tuple(n for n in values if n in found)
            if number:
                shapes[name] = leaves[0].shape
    return parents, shapes


def _layout(nodes: tuple[Node, ...], plates: Mapping[str, list[Node]]):
    """Place layers of dependence below each other, and each plate in columns of its own."""
    layer: dict[str, int] = {}
    by_name = {node.name: node for node in nodes}

    def depth(name: str) -> int:
        if name not in layer:
            layer[name] = 0
            layer[name] = max((1 + depth(p) for p in by_name[name].parents), default=0)
        return layer[name]

    places, boxes, left = {}, {}, float(_PAD)
    for plate, members in plates.items():
        rows: dict[int, list[str]] = {}
        for node in members:
            rows.setdefault(depth(node.name), []).append(node.name)
        wide = lambda row: sum(map(_width, row)) + _GAP * (len(row) - 1)
        width = max(*(wide(row) for row in rows.values()), 8.0 * len(plate)) + 2 * _PAD
        for number, row in rows.items():
            x = left + (width - wide(row)) / 2
            for name in row:
                places[name] = (x + _width(name) / 2, _ROW * (number + 0.5), _width(name) / 2)
                x += _width(name) + _GAP
        if plate:
            top, bottom = min(rows) * _ROW + _PAD / 2, (max(rows) + 1) * _ROW - _PAD / 2
            boxes[plate] = (left, top, width, bottom - top)
        left += width + _PAD
    return places, boxes, (left, _ROW * (1 + max(layer.values(), default=0)))


def _width(name: str) -> float:
    return 8.0 * len(name) + 28.0


def _between(start, end) -> tuple[float, float, float, float]:
    """Return a line from the edge of one ellipse to the edge of another."""
    (x1, y1, a), (x2, y2, b) = start, end
    dx, dy = x2 - x1, y2 - y1
    reach = lambda radius: 1.0 / max(math.hypot(dx / radius, 2 * dy / _HEIGHT), 1e-9)
    s, e = reach(a), reach(b)
    return x1 + s * dx, y1 + s * dy, x2 - e * dx, y2 - e * dy


def _picture(node: Node, place) -> str:
    x, y, half = place
    fill = "#d9d9d9" if node.kind == "observed" else "#fff"
    if node.kind == "derived":
        shape = (
            f"<rect x='{x - half:g}' y='{y - _HEIGHT / 2:g}' width='{2 * half:g}' "
            f"height='{_HEIGHT}'"
        )
    else:
        shape = f"<ellipse cx='{x:g}' cy='{y:g}' rx='{half:g}' ry='{_HEIGHT / 2:g}'"
    return (
        f"{shape} fill='{fill}' stroke='#444'/><text x='{x:g}' y='{y + 4:g}' "
        f"text-anchor='middle'>{html.escape(node.name)}</text>"
    )


_STYLES = {
    "latent": "shape=ellipse",
    "derived": "shape=box",
    "observed": 'shape=ellipse, style=filled, fillcolor="#d9d9d9"',
}


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
