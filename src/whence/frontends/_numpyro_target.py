"""The target that a numpyro model and its data make."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array
from numpyro.distributions import biject_to

from ..core import compiled
from ..core._dtype import relaxed
from ..core._indices import check_indices
from ..core._key import seeded
from ..core._types import PRNGKey
from ..core._values import require_finite
from ..language._latent import Coords
from ._arguments import Call, argument_name, constant_data, renewed
from ._bijection import log_det
from ._enumerate import Summed, first_value, marginal, marginal_pointwise, sample_discrete
from ._sites_target import AbstractSitesTarget
from ._trace import Conditioned, Structure, at_step, log_prob, run, site_key, site_shape


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
        return constant_data(self.fn, *call, ())

    def leaf_name(self, path: str) -> str:
        """Return the name of an array of this target for messages, given its path."""
        return argument_name(self.fn, Call(self.args, self.kwargs), path)

    def new_inputs(self, inputs: tuple, named: Mapping[str, Any]) -> Call:
        """Return arguments for `predict`; refuse what cannot be one.

        Args:
            inputs: New positional arguments of the model.
            named: New keyword arguments.

        Raises:
            ValueError: Naming the argument, the rule and what was given.
        """
        call = renewed(self.fn, Call(self.args, self.kwargs), inputs, named)
        new = dataclasses.replace(self, args=call.args, kwargs=call.kwargs)
        require_finite(new, self)
        try:
            check_indices(new, _distributions_at)
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
        args, kwargs = self.args, self.kwargs
        if inputs is not None:
            old = Call(args, kwargs)
            args, kwargs = (
                inputs if isinstance(inputs, Call) else renewed(self.fn, old, inputs, {})
            )

        def choose(site):
            if site["name"] in latents:
                return _fitting(site, draw[site["name"]])
            if site["name"] in summed:
                return _sample(site, key)
            if site["is_observed"] and site["name"] in self.structure.observed:
                return _sample_like(site, key)
            return None

        latents, summed = {site.name for site in self.sites}, self._summed.discrete
        trace = run(self.fn, args, kwargs, choose, key=key)
        return {name: trace[name]["value"] for name in self.structure.observed}

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
        fn = self.fn.fn if isinstance(self.fn, Conditioned) else self.fn
        data = {name: data[name] for name in self.structure.observed}
        return dataclasses.replace(self, fn=Conditioned(fn, data))

    @property
    def _summed(self) -> Summed:
        return Summed(self.fn, self.args, self.kwargs, self.structure)

    def _latents(self, draw):
        """Return the continuous latents of a draw or a trace."""
        value = lambda x: x["value"] if isinstance(x, dict) else x
        return {site.name: value(draw[site.name]) for site in self.sites}

    def _at(self, position, discrete=None, key=None):
        def choose(site):
            if site["name"] in summed:
                return _discrete_value(site, discrete)
            point = position.get(site["name"])
            if point is None:
                return None
            bijector = biject_to(site["fn"].support)
            value = at_step(site, point, _unconstrained_ndim(site, bijector))
            return bijector(value) if key is None else _fitting(site, bijector(value))

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


def _distributions_at(target: NumpyroTarget, position: dict[str, Array]) -> Any:
    """Return the numbers in the distributions of the observed sites."""
    trace = target._at(position, key=jr.key(0))
    return [jax.tree.leaves(trace[name]["fn"]) for name in target.structure.observed]


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


def _fitting(site, value):
    """Return `value` of a latent if the site still has that shape."""
    shape = site_shape(site)
    scanned = site["infer"].get("_scan_current_index") is not None
    if not scanned and jnp.shape(value) != shape:
        raise ValueError(
            f"Latent {site['name']!r} has shape {jnp.shape(value)} in the posterior, but the "
            f"model at the new inputs asks for {shape}: it belongs to the old rows."
        )
    return value


@relaxed()
def _sample_like(site, key):
    """Draw a site's data, in the shape of what was observed there."""
    d, value = site["fn"], site["value"]
    batch = jnp.shape(value)[: jnp.ndim(value) - d.event_dim]
    return d.expand(jnp.broadcast_shapes(batch, d.batch_shape)).sample(site_key(key, site))
