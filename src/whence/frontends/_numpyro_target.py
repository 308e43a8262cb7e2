"""The target that a numpyro model and its data make."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array
from numpyro.distributions import biject_to

from ..core import compiled
from ..core._dtype import relaxed
from ..core._indices import check_indices
from ..core._key import seeded
from ..core._types import PRNGKey
from ..core._values import require_finite
from ..language._draw_data import sample_data
from ..language._latent import Coords
from ._arguments import Call, argument_name, constant_data, renewed
from ._bijection import log_det
from ._enumerate import Summed, first_value, marginal, marginal_pointwise, sample_discrete
from ._sites_target import AbstractSitesTarget
from ._trace import (
    Conditioned,
    Structure,
    at_rows,
    at_step,
    log_prob,
    row_axis,
    run,
    site_key,
    site_shape,
)


class NumpyroTarget(AbstractSitesTarget):
    """The posterior of a numpyro model given data; made by `from_numpyro`.

    A draw is a dict of latent and deterministic sites by name. Discrete latents are summed
    out: they are in no draw, nor are deterministic sites that depend on them.

    Attributes:
        fn: The model, handlers included.
        args: Its positional arguments; arrays in them are data.
        kwargs: Its keyword arguments; arrays in them are data.
        structure: What is known of its sites.
        labels: Labels along named axes.

    References:
        Phan, Pradhan and Jankowiak (2019), arXiv:1912.11554.
    """

    fn: Any
    args: tuple
    kwargs: dict[str, Any]
    structure: Structure = eqx.field(static=True)
    labels: Coords = eqx.field(static=True, default=Coords())

    def log_density(self, position):
        trace = self._at(position)
        if self.structure.discrete:
            density = marginal(self._summed, self._latents(trace), data=True)
            return density + self._log_det(trace, position)
        return self._log_prior(trace, position) + self._log_likelihood(trace)

    @property
    def num_data(self) -> int | None:
        """Rows of the subsampled plate; None if there is none, or data outside of it."""
        return self.structure.num_rows

    @property
    def local(self) -> tuple[str, ...]:
        """Latents inside the subsampled plate, with one value for each row."""
        return self.structure.local

    def log_likelihood(self, position, rows=None):
        if self.num_data is None and rows is not None:
            raise ValueError(
                "Data rows are those of a `numpyro.plate` with `subsample_size`, of which this "
                "model must have one, with all observed sites inside and no discrete latents; "
                "it has none to choose from."
            )
        if self.num_data is None:
            return self._log_likelihood(self._at(position))
        if rows is None:
            rows = jnp.arange(self.num_data)
        return self._by_row(self.at_rows(position, rows), rows)[2]

    def at_rows(self, position, rows):
        """Return what some data rows see of a position."""
        return {n: x[rows] if n in self.local else x for n, x in position.items()}

    def log_joint_rows(self, position, rows):
        """Return the log prior of global latents, and log densities of rows given them."""
        shared, prior, likelihood = self._by_row(position, rows)
        return shared, prior + likelihood

    @relaxed()
    def _by_row(self, position, rows) -> tuple[Array, Array, Array]:
        """Return log priors of global latents, and of local ones by row, and the likelihood."""
        (plate,) = self.structure.plates
        with at_rows(plate, rows):
            trace = self._at(position)
        own = rows.size / self.structure.num_rows  # the plate scales up what is inside of it
        zero = jnp.zeros((), jnp.result_type(float))
        shared, prior, likelihood = zero, jnp.zeros(rows.shape), jnp.zeros(rows.shape)
        for name, site in trace.items():
            axis = row_axis(site, plate) if site["type"] == "sample" else None
            if site["type"] != "sample":
                continue
            term = log_prob(site)
            if name in position:
                bijector = biject_to(site["fn"].support)
                jacobian = bijector.log_abs_det_jacobian(position[name], site["value"])
            if axis is None:
                shared += jnp.sum(term) + jnp.sum(jacobian)
                continue
            moved = jnp.moveaxis(own * term, axis, 0).reshape(rows.size, -1).sum(axis=1)
            if name in position:
                prior += moved + jacobian.reshape(rows.size, -1).sum(axis=1)
            else:
                likelihood += moved
        return shared, prior, likelihood

    @property
    def row_arrays(self) -> tuple[str, ...]:
        """Names of array arguments of which a batch sees its own rows only.

        Found by trial: what stands in other rows of such an array does not matter to a batch.
        """
        number = self.num_data
        if number is None:
            return ()
        position, batch = constant_position(self, 0.1), jnp.arange(number - 1)
        leaves, treedef = jax.tree.flatten(self)
        found = []
        for i, (path, leaf) in enumerate(tree_flatten_with_path(self)[0]):
            if not isinstance(leaf, jax.Array) or jnp.shape(leaf)[:1] != (number,):
                continue
            others = np.flatnonzero((leaf != leaf[-1]).reshape(number, -1).any(axis=1))
            other = leaf.at[-1].set(leaf[others[0]]) if len(others) else leaf
            values = [
                compiled(_at_batch, target, position, batch).call(target, position, batch)
                for target in (self, treedef.unflatten([*leaves[:i], other, *leaves[i + 1 :]]))
            ]
            if np.array_equal(*map(np.asarray, values), equal_nan=True):
                found.append(self.leaf_name(keystr(path, simple=True, separator=".")))
        return tuple(name.strip("`") for name in found)

    @property
    def observed_data(self):
        zeros = constant_position(self, 0.0)
        return compiled(observed_values, self, zeros).call(self, zeros)

    @property
    def constant_data(self):
        """Array arguments that are no observed values, by the name of the parameter."""
        observed = self.observed_data
        found = constant_data(self.fn, self.args, self.kwargs, observed.values())
        # Names of axes go by variable: an argument called like a site would have its axes.
        draw = jax.eval_shape(lambda: self.constrain(constant_position(self, 0.0)))
        sites = draw.keys() | observed.keys()
        return {name: value for name, value in found.items() if name not in sites}

    def name_inputs(self, inputs: tuple) -> dict[str, Array]:
        """Return arrays among arguments of the model, by name of the parameter."""
        call = inputs if isinstance(inputs, Call) else Call(inputs, {})
        return constant_data(self.fn, call.args, call.kwargs, ())

    def leaf_name(self, path: str) -> str:
        """Return the name of an array of this target for messages, given its path."""
        return argument_name(self.fn, Call(self.args, self.kwargs), path)

    def new_inputs(self, inputs: tuple, named: Mapping[str, Any]) -> Call:
        """Return arguments for `predict`; refuse what cannot be one.

        Raises:
            ValueError: Naming the argument, the rule and what was given.
        """
        return self._renewed(inputs, named, False)

    def new_groups(self, inputs: tuple, named: Mapping[str, Any]) -> Call:
        """As `new_inputs`, where plates may be longer: what is new is drawn from the prior."""
        return self._renewed(inputs, named, True)

    def _renewed(self, inputs, named, grow) -> Call:
        call = renewed(self.fn, Call(self.args, self.kwargs), inputs, named)._replace(grow=grow)
        new = dataclasses.replace(self, args=call.args, kwargs=call.kwargs)
        require_finite(new, self)
        try:
            check_indices(new, _distributions_grown if grow else _distributions_at)
        except TypeError as error:
            raise ValueError(
                f"The model does not run with the inputs of `predict`: {error}. Give None for "
                "observed values that have no default."
            ) from error
        return call

    def pointwise(self, draw):
        trace = self._given(draw)
        terms = {name: log_prob(trace[name]) for name in self.structure.observed}
        if not self.structure.discrete:
            return terms
        summed = marginal_pointwise(self._summed, self._latents(trace))
        terms = {n: v for n, v in terms.items() if n not in summed}
        return terms | {n: v for n, v in summed.items() if v is not None}

    @seeded
    def sample_discrete(self, draw: dict[str, Array], *, key: PRNGKey) -> dict[str, Array]:
        """Return the discrete latents drawn given one draw and the data, by name.

        Args:
            draw: A draw; only its latents count.
            key: A typed key.

        Raises:
            ValueError: If the model has none.
            NotImplementedError: If they are inside `scan`.
        """
        if not self.structure.discrete:
            raise ValueError("The model has no discrete latents to draw.")
        return sample_discrete(self._summed, self._latents(draw), key)

    @seeded
    def predict(self, draw, inputs, *, key):
        """Return one data set drawn given one draw.

        Args:
            draw: A draw; only its latents count.
            inputs: New arguments of the model, as `new_inputs` returns, or None for all old
                ones. New ones also put arguments that hold arrays back to their defaults,
                since those belong to the old data; numbers and switches stay.
            key: A typed key.
        """
        call = old = Call(self.args, self.kwargs)
        if inputs is not None:
            call = inputs if isinstance(inputs, Call) else renewed(self.fn, old, inputs, {})

        def choose(site):
            if site["name"] in self.local and inputs is not None:
                return _sample(site, key)  # new rows
            if site["name"] in latents:
                return _fitting(site, draw[site["name"]], key if call.grow else None)
            if site["name"] in summed:
                return _sample(site, key)
            if site["is_observed"] and site["name"] in self.structure.observed:
                return _sample_like(site, key)
            return None

        latents, summed = {site.name for site in self.sites}, self._summed.discrete
        trace = run(self.fn, call.args, call.kwargs, choose, key=key)
        observed = [n for n in self.structure.observed if n in trace]
        new = [] if inputs is None else self._only_there(trace)
        return {name: jnp.asarray(trace[name]["value"]) for name in (*observed, *new)}

    def _only_there(self, trace) -> list[str]:
        """Return the sites of a run that the model does not have with its data."""
        known = self._at(constant_position(self, 0.0))
        kinds = ("sample", "deterministic")
        is_new = lambda site: site["type"] in kinds and site["name"] not in known
        hidden = lambda site: site.get("infer", {}).get("is_auxiliary", False)
        return [name for name, site in trace.items() if is_new(site) and not hidden(site)]

    def with_data(self, data: Mapping[str, Any]) -> "NumpyroTarget":
        """Return this target with other observed values of the same shapes, by site.

        Raises:
            ValueError: If the likelihood has terms that are no data, such as a `factor`.
        """
        if self.structure.factors:
            raise ValueError(
                f"Site {self.structure.factors[0]!r} is a term of the likelihood that is no "
                "observed value at its own scale, so no other data can take its place."
            )
        fn = (
            self.fn.fn if isinstance(self.fn, Conditioned) else self.fn
        )  # around other wrappers
        data = {name: data[name] for name in self.structure.observed}
        return dataclasses.replace(self, fn=Conditioned(fn, data))

    @property
    def _summed(self) -> Summed:
        return Summed(self.fn, self.args, self.kwargs, self.structure)

    def _latents(self, draw):
        """Return the continuous latents of a draw or a trace."""
        value = lambda x: x["value"] if isinstance(x, dict) else x
        return {site.name: value(draw[site.name]) for site in self.sites}

    def _at(self, position, discrete=None, key=None, grow=False):
        def choose(site):
            if site["name"] in summed:
                return _discrete_value(site, discrete)
            point = position.get(site["name"])
            if point is None:
                return None
            bijector = biject_to(site["fn"].support)
            value = at_step(site, point, _unconstrained_ndim(site, bijector))
            if key is None:
                return bijector(value)
            if site["name"] in self.local:
                return _sample(site, key)
            return _fitting(site, bijector(value), key if grow else None)

        summed = self._summed.discrete
        return run(self.fn, self.args, self.kwargs, choose, key=key)

    def _given(self, draw):
        latents, summed = {site.name for site in self.sites}, self._summed.discrete

        def choose(site):
            if site["name"] in summed:
                return first_value(site)
            return draw[site["name"]] if site["name"] in latents else None

        return run(self.fn, self.args, self.kwargs, choose)

    def _prior(self, key):
        if self.structure.weighted:
            raise ValueError(
                f"The prior of site {self.structure.weighted[0]!r} is under a `mask` or "
                "`scale` handler: it is no longer the distribution that would be sampled."
            )
        latents = {site.name for site in self.sites} | self._summed.discrete

        def choose(site):
            if site["name"] not in latents:
                return None
            try:
                return _sample(site, key)
            except NotImplementedError as error:
                raise ValueError(
                    f"The prior of site {site['name']!r} is improper "
                    f"({type(site['fn']).__name__}) and cannot be sampled."
                ) from error

        return run(self.fn, self.args, self.kwargs, choose)

    def _draw(self, run):
        latents = {site.name for site in self.sites}
        return {
            name: jnp.asarray(site["value"])
            for name, site in run.items()
            if name in latents
            or (site["type"] == "deterministic" and name not in self.structure.varying)
        }

    @relaxed()
    def _inverse(self, run):
        sites = {site.name: run[site.name] for site in self.sites}
        return {n: biject_to(s["fn"].support).inv(s["value"]) for n, s in sites.items()}

    def _prior_terms(self, run):
        if self.structure.discrete:  # the continuous latents do not factor without these
            return {"latents": marginal(self._summed, self._latents(run), data=False)}
        return {latent.name: log_prob(run[latent.name]) for latent in self.sites}

    @relaxed()
    def _log_det(self, run, position):
        # The Jacobian belongs to the change of variables: no handler scales or masks it.
        total = jnp.zeros((), jnp.result_type(float))
        for latent in self.sites:
            site = run[latent.name]
            bijector = biject_to(site["fn"].support)
            total += log_det(bijector, position[latent.name], site["value"])
        return total

    def _log_likelihood(self, run):
        if self.structure.discrete:
            values = self._latents(run)
            with_data, without = (marginal(self._summed, values, data=d) for d in (True, False))
            return with_data - without
        total = jnp.zeros((), jnp.result_type(float))
        for site in run.values():
            if site["type"] == "sample" and site["is_observed"]:
                total += jnp.sum(log_prob(site))
        return total


def _at_batch(target: NumpyroTarget, position: dict[str, Array], rows: Array) -> Array:
    """Return the log likelihood of some rows."""
    return target.log_likelihood(position, rows)


def _distributions_at(target: NumpyroTarget, position: dict[str, Array], grow=False) -> Any:
    """Return the numbers in the distributions of observed sites; `grow` allows new groups."""
    trace = target._at(position, key=jr.key(0), grow=grow)
    return [
        jax.tree.leaves(s["fn"]) for n, s in trace.items() if n in target.structure.observed
    ]


def _distributions_grown(target: NumpyroTarget, position: dict[str, Array]) -> Any:
    return _distributions_at(target, position, grow=True)


def observed_values(target: NumpyroTarget, position: dict[str, Array]) -> dict[str, Array]:
    """Return the values of the observed sites at a position."""
    trace = target._at(position)
    return {name: jnp.asarray(trace[name]["value"]) for name in target.structure.observed}


def constant_position(target: NumpyroTarget, value: float) -> dict[str, Array]:
    """Return the position with this value everywhere."""
    return {s.name: jnp.full(s.unconstrained_shape, value) for s in target.sites}


def _discrete_value(site, values):
    if values is None:
        return first_value(site)
    return at_step(site, values[site["name"]], len(site_shape(site)))


def _unconstrained_ndim(site, bijector) -> int:
    return len(bijector.inverse_shape(site_shape(site)))


def _sample(site, key):
    return site["fn"].sample(site_key(key, site), site["kwargs"].get("sample_shape", ()))


def _fitting(site, value, key=None):
    """Return `value` of a latent if the site still has that shape.

    With a key, a plate that has become longer has its further entries from the prior.
    """
    shape, old = site_shape(site), jnp.shape(value)
    scanned = site["infer"].get("_scan_current_index") is not None
    if scanned or old == shape:
        return value
    if key is None or not _is_longer(site, old, shape):
        hint = "" if key is not None else ' (`new_groups="prior"` draws those of new groups)'
        raise ValueError(
            f"Latent {site['name']!r} has shape {old} in the posterior, but the model at the "
            f"new inputs asks for {shape}: it belongs to the old rows{hint}."
        )
    return _sample(site, key).at[tuple(slice(n) for n in old)].set(value)


def _is_longer(site, old, shape) -> bool:
    """Whether a latent has more entries along axes of independent ones, and no fewer."""
    d, event = site["fn"], site["fn"].event_dim
    while isinstance(d, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        event -= d.reinterpreted_batch_ndims if isinstance(d, dist.Independent) else 0
        d = d.base_dist
    fixed = len(shape) - event
    return (
        len(old) == len(shape)
        and old[fixed:] == shape[fixed:]
        and all(a <= b for a, b in zip(old, shape))
    )


@relaxed()
def _sample_like(site, key):
    """Draw a site's data, in the shape of what was observed there."""
    d, value = site["fn"], site["value"]
    batch = jnp.shape(value)[: jnp.ndim(value) - d.event_dim]
    whole = d.expand(jnp.broadcast_shapes(batch, d.batch_shape))
    return sample_data(whole, site_key(key, site), f" {site['name']!r}")
