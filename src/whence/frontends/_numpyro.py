"""`from_numpyro()`: a numpyro model and its data become a `Target`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to

from ..core import AbstractDescribedTarget, compiled
from ..core._types import PRNGKey
from ._bijection import log_det
from ._trace import Latent, Structure, at_step, inspect_model, log_prob, run, site_key


class NumpyroTarget(AbstractDescribedTarget):
    """The posterior of a numpyro model given data; made by `from_numpyro`.

    A draw is a dict of latent and deterministic sites by name.

    Attributes:
        fn: The model, handlers included.
        args: Its positional arguments; arrays in them are data.
        kwargs: Its keyword arguments; arrays in them are data.
        structure: What is known of its sites.
    """

    fn: Any
    args: tuple
    kwargs: dict[str, Any]
    structure: Structure = eqx.field(static=True)

    @property
    def sites(self) -> tuple[Latent, ...]:
        """The latents, in the order of the model."""
        return self.structure.sites

    def init(self, *, key):
        """Return a position uniform on (-2, 2), as numpyro does."""
        keys = jr.split(key, len(self.sites))
        return {
            site.name: jr.uniform(k, site.unconstrained_shape, minval=-2.0, maxval=2.0)
            for site, k in zip(self.sites, keys)
        }

    def log_density(self, position):
        """Return log prior plus log likelihood, in nats, Jacobian included."""
        trace = self._trace(position)
        return self._log_prior(trace, position) + self._log_likelihood(trace)

    def constrain(self, position):
        """Return latent and deterministic sites by name."""
        return self._draw(self._trace(position))

    def unconstrain(self, draw: dict[str, Array]) -> dict[str, Array]:
        """Return the position of a draw; the inverse of `constrain`."""
        trace = self._trace_of(draw)
        return {
            site.name: biject_to(trace[site.name]["fn"].support).inv(draw[site.name])
            for site in self.sites
        }

    @property
    def num_data(self) -> int | None:
        """None: rows of data cannot be told apart inside a numpyro model."""
        return None

    def log_prior(self, position):
        """Return the log prior density, in nats, Jacobian included."""
        return self._log_prior(self._trace(position), position)

    def log_likelihood(self, position, rows=None):
        """Return the log likelihood, a scalar: observed sites and factors.

        Raises:
            ValueError: If `rows` are asked for.
        """
        if rows is not None:
            raise ValueError("A target from numpyro has no rows of data to choose from.")
        return self._log_likelihood(self._trace(position))

    def variables(self, draw):
        """Return latent and deterministic sites by name."""
        return dict(draw)

    @property
    def dims(self):
        """Names of plates, for the axes they make."""
        return dict(self.structure.dims)

    @property
    def coords(self):
        """Nothing: plates have lengths but no labels."""
        return {}

    @property
    def observed_data(self):
        """Observed values by name."""
        zeros = _constant_position(self, 0.0)
        return compiled(_observed, self, zeros).call(self, zeros)

    @property
    def constant_data(self):
        """Nothing: the model's arguments have no meaning that could be told from outside."""
        return {}

    def pointwise(self, draw):
        """Return the pointwise log likelihood of one draw, by observed site, in nats."""
        trace = self._trace_of(draw)
        return {name: log_prob(trace[name]) for name in self.structure.observed}

    def predict(self, draw, inputs, *, key):
        """Return one data set drawn given one draw.

        Args:
            draw: A draw; only its latents count.
            inputs: New positional arguments of the model, or None for all old arguments.
                New ones also put keyword arguments that hold arrays back to their
                defaults, since those belong to the old data.
            key: A typed key.
        """
        args, kwargs = self.args, self.kwargs
        if inputs is not None:
            args = tuple(inputs)
            kwargs = {k: v for k, v in kwargs.items() if not _has_arrays(v)}

        def choose(site):
            if site["name"] in latents:
                return _fitting(site, draw[site["name"]])
            if site["is_observed"] and site["name"] in self.structure.observed:
                return _sample_like(site, key)
            return None

        latents = {site.name for site in self.sites}
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
        fn = self.fn.fn if isinstance(self.fn, _Conditioned) else self.fn
        data = {name: data[name] for name in self.structure.observed}
        return dataclasses.replace(self, fn=_Conditioned(fn, data))

    def sample_prior(self, *, key):
        """Return one draw from the prior.

        Raises:
            ValueError: If a prior is improper, or changed by a mask or scale handler.
        """
        return self._draw(self._prior_trace(key))

    def sample_prior_position(self, key: PRNGKey) -> dict[str, Array]:
        """Return one draw from the prior, in unconstrained space."""
        trace = self._prior_trace(key)
        return {
            s.name: biject_to(trace[s.name]["fn"].support).inv(trace[s.name]["value"])
            for s in self.sites
        }

    def _trace(self, position):
        def choose(site):
            point = position.get(site["name"])
            if point is None:
                return None
            bijector = biject_to(site["fn"].support)
            return bijector(at_step(site, point, _unconstrained_ndim(site, bijector)))

        return run(self.fn, self.args, self.kwargs, choose)

    def _trace_of(self, draw):
        latents = {site.name for site in self.sites}

        def choose(site):
            return draw[site["name"]] if site["name"] in latents else None

        return run(self.fn, self.args, self.kwargs, choose)

    def _prior_trace(self, key):
        if self.structure.weighted:
            raise ValueError(
                f"The prior of site {self.structure.weighted[0]!r} is under a `mask` or "
                "`scale` handler: it is no longer the distribution that would be sampled."
            )
        latents = {site.name for site in self.sites}

        def choose(site):
            if site["name"] not in latents:
                return None
            shape = site["kwargs"].get("sample_shape", ())
            try:
                return site["fn"].sample(site_key(key, site), shape)
            except NotImplementedError as error:
                raise ValueError(
                    f"The prior of site {site['name']!r} is improper "
                    f"({type(site['fn']).__name__}) and cannot be sampled."
                ) from error

        return run(self.fn, self.args, self.kwargs, choose)

    def _draw(self, trace):
        latents = {site.name for site in self.sites}
        return {
            name: jnp.asarray(site["value"])
            for name, site in trace.items()
            if name in latents or site["type"] == "deterministic"
        }

    def _log_prior(self, trace, position):
        total = jnp.zeros((), jnp.result_type(float))
        for latent in self.sites:
            site = trace[latent.name]
            # The Jacobian belongs to the change of variables: no handler scales or masks it.
            bijector = biject_to(site["fn"].support)
            total += jnp.sum(log_prob(site))
            total += log_det(bijector, position[latent.name], site["value"])
        return total

    def _log_likelihood(self, trace):
        total = jnp.zeros((), jnp.result_type(float))
        for site in trace.values():
            if site["type"] == "sample" and site["is_observed"]:
                total += jnp.sum(log_prob(site))
        return total


class _Conditioned(eqx.Module):
    """A model whose observed sites have other values, which are data of the target."""

    fn: Any
    data: dict[str, Any]

    def __call__(self, *args, **kwargs):
        return handlers.condition(self.fn, data=self.data)(*args, **kwargs)


def from_numpyro(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> NumpyroTarget:
    """Make a target of a numpyro model called with these arguments.

    Observed sites (`obs=`, or a `condition` handler) are the data; deterministic sites are
    derived values; plates name axes; `reparam`, `mask` and `scale` handlers count.

    Args:
        fn: The model: a function with numpyro primitives, handlers around it included.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments. Arrays in arguments are data: others of the same
            shape reuse what is compiled. Python numbers and other values are part of the
            program.

    Returns:
        The target.

    Raises:
        ValueError: If the model has subsampled plates, discrete latents, `param` sites or
            no latents, or needs the numbers in its array arguments to run.
    """
    if not callable(fn):
        raise ValueError(f"`fn` must be a numpyro model, a function; got {fn!r}.")
    args, kwargs = _as_data(args, "args"), _as_data(kwargs, "kwargs")
    target = NumpyroTarget(fn, args, kwargs, inspect_model(fn, args, kwargs))
    return dataclasses.replace(target, structure=_without_made_up_data(target))


def _as_data(tree, argument):
    """Put arrays on the device, and make NumPy's integers and bools plain ones."""

    def convert(path, leaf):
        where = f"`{argument}` at {keystr(path, simple=True, separator='.')!r}"
        if hasattr(leaf, "to_numpy"):
            leaf = leaf.to_numpy()  # pandas, xarray
        if isinstance(leaf, np.integer | np.bool_):
            return leaf.item()  # a length or a switch
        if isinstance(leaf, np.ndarray | np.generic):
            if leaf.dtype.kind not in "biufc":
                raise ValueError(f"{where} must be numbers; got dtype {leaf.dtype}.")
            leaf = jnp.asarray(leaf)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            _refuse_nan(where, leaf)
        return leaf

    return tree_map_with_path(convert, tree)


def _refuse_nan(where, leaf):
    if isinstance(leaf, Tracer):
        return
    count = int(np.isnan(np.asarray(leaf)).sum())
    if count:
        raise ValueError(
            f"{where} must not contain NaN; got {count}. Where a mask hides missing values, "
            "put any value of the support in their place."
        )


def _has_arrays(tree) -> bool:
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(tree))


def _observed(target: NumpyroTarget, position) -> dict[str, Array]:
    trace = target._trace(position)
    return {name: jnp.asarray(trace[name]["value"]) for name in target.structure.observed}


def _constant_position(target: NumpyroTarget, value: float) -> dict[str, Array]:
    return {s.name: jnp.full(s.unconstrained_shape, value) for s in target.sites}


def _without_made_up_data(target: NumpyroTarget) -> Structure:
    """Leave out observed sites whose value is made of latents: they are no data."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(target)):
        return target.structure
    at_zero, at_one = (
        jax.tree.map(np.asarray, compiled(_observed, target, p).call(target, p))
        for p in (_constant_position(target, 0.0), _constant_position(target, 1.0))
    )
    same = lambda a, b: a.tobytes() == b.tobytes()  # NaN is the same as NaN
    named = target.structure.observed
    data = tuple(n for n in named if same(at_zero[n], at_one[n]))
    factors = (*target.structure.factors, *(n for n in named if n not in data))
    return target.structure._replace(observed=data, factors=factors)


def _unconstrained_ndim(site, bijector) -> int:
    sample_shape = tuple(site["kwargs"].get("sample_shape", ()))
    shape = sample_shape + tuple(site["fn"].shape())
    return len(bijector.inverse_shape(shape))


def _fitting(site, value):
    """Return `value` of a latent if the site still has that shape."""
    shape = tuple(site["kwargs"].get("sample_shape", ())) + tuple(site["fn"].shape())
    scanned = site["infer"].get("_scan_current_index") is not None
    if not scanned and jnp.shape(value) != shape:
        raise ValueError(
            f"Latent {site['name']!r} has shape {jnp.shape(value)} in the posterior, but the "
            f"model at the new inputs asks for {shape}: it belongs to the old rows."
        )
    return value


def _sample_like(site, key):
    """Draw a site's data, in the shape of what was observed there."""
    d, value = site["fn"], site["value"]
    batch = jnp.shape(value)[: jnp.ndim(value) - d.event_dim]
    return d.expand(jnp.broadcast_shapes(batch, d.batch_shape)).sample(site_key(key, site))
