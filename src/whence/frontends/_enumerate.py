"""Discrete latents of a numpyro model summed out, by numpyro's own enumeration (funsor)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array
from numpyro import handlers
from numpyro.primitives import Messenger

from ..core._dtype import relaxed
from ..core._types import PRNGKey, Scalar
from ._trace import Structure, site_shape

Values = dict[str, Array]


class Summed(NamedTuple):
    """A model called with its arguments, whose discrete latents are summed out."""

    fn: Callable[..., Any]  # the model
    args: tuple  # its positional arguments
    kwargs: dict[str, Any]  # its keyword arguments
    structure: Structure  # what is known of its sites

    @property
    def discrete(self) -> frozenset[str]:
        """Names of the discrete latents."""
        return frozenset(latent.name for latent in self.structure.discrete)


@functools.cache
@relaxed()
def library() -> Any:
    """Return numpyro's interface to funsor, or say how to install that."""
    try:
        import numpyro.contrib.funsor as enumeration
    except ImportError as error:
        raise ImportError(
            "A numpyro model with discrete latents needs funsor, which sums them out and "
            "could not be imported. Install it with `pip install 'whence[enum]'`, or sum them "
            "out in the model (for example `numpyro.distributions.MixtureSameFamily`)."
        ) from error
    return enumeration


@relaxed()
def first_value(site: dict[str, Any]) -> Array:
    """Return the first value of a discrete site's support, in the shape of the site."""
    values = site["fn"].enumerate_support(expand=False)
    return jnp.broadcast_to(values[0], site_shape(site))


@relaxed()
def marginal(summed: Summed, values: Values, *, data: bool) -> Scalar:
    """Return the log density of the continuous latents, in nats, on their own space."""
    model = _enumerated(summed, summed.fn if data else _WithoutData(summed.fn))
    density, _ = library().log_density(model, summed.args, summed.kwargs, values)
    return jnp.asarray(density)


@relaxed()
def marginal_pointwise(summed: Summed, values: Values) -> dict[str, Array | None]:
    """Return the log likelihood of each datum of sites that depend on discrete latents.

    Summed out, data that share a discrete latent are one term: there is None for such a site.
    """
    model = handlers.substitute(_enumerated(summed, summed.fn), data=values)
    with library().plate_to_enum_plate():
        trace = library().trace(model).get_trace(*summed.args, **summed.kwargs)
    above = {n: _discrete_above(trace, n, summed) for n in summed.structure.observed}
    above = {n: found for n, found in above.items() if found}
    alone = lambda n: all(not above[n] & above[m] for m in above if m != n)
    return {
        n: _over_data(trace, n, found, summed) if alone(n) else None
        for n, found in above.items()
    }


@relaxed()
def sample_discrete(summed: Summed, values: Values, key: PRNGKey) -> Values:
    """Return the discrete latents drawn from their distribution given all else."""
    if summed.structure.scanned:
        raise NotImplementedError(
            "Discrete latents inside `scan` cannot be drawn: numpyro's `infer_discrete` does "
            "not go through it. Their sum is still right."
        )
    key_model, key_discrete = jr.split(key)
    seeded = handlers.seed(summed.fn, key_model)
    model = library().infer_discrete(
        library().config_enumerate(handlers.substitute(seeded, data=values)),
        first_available_dim=summed.structure.enum_dim,
        rng_key=key_discrete,
    )
    trace = handlers.trace(model).get_trace(*summed.args, **summed.kwargs)
    return {latent.name: trace[latent.name]["value"] for latent in summed.structure.discrete}


def depending(function: Callable[[Values], Values], values: Values) -> frozenset[str]:
    """Return names of results that depend on discrete values; nothing is computed.

    What `vmap` over the values has to repeat depends on them, and `vmap` says what that is.
    """
    repeated: dict[str, bool] = {}
    probe = jax.custom_batching.custom_vmap(lambda results: results)

    @probe.def_vmap
    def _(axis_size, is_repeated, results):
        repeated.update(is_repeated[0])
        return results, is_repeated[0]

    twice = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), values)
    jax.eval_shape(jax.vmap(lambda values: probe(function(values))), twice)
    return frozenset(name for name, is_repeated in repeated.items() if is_repeated)


@relaxed()
def enumerated(summed: Summed, values: Values) -> dict[str, frozenset[str]]:
    """Return the discrete latents along whose values a site's density goes, by site."""
    model = _enumerated(summed, summed.fn)
    _, trace = library().log_density(model, summed.args, summed.kwargs, values)
    axes = lambda site: {axis.removeprefix("_PREV_") for axis in site["dim_to_name"].values()}
    return {
        name: summed.discrete & axes(site["infer"])
        for name, site in trace.items()
        if site["type"] == "sample"
    }


class _WithoutData(Messenger):
    """The model without its likelihood."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(False)


def _enumerated(summed, fn):
    # The key is for `numpyro.prng_key()` in a model: no site is left without a value.
    seeded = handlers.seed(fn, jr.key(0))
    return library().enum(
        library().config_enumerate(seeded), first_available_dim=summed.structure.enum_dim
    )


def _discrete_above(trace, name, summed) -> frozenset[str]:
    """Return the discrete latents that a site depends on, one through another."""
    found: frozenset[str] = frozenset()
    frontier = [name]
    while frontier:
        axes = trace[frontier.pop()]["infer"]["dim_to_name"].values()
        new = summed.discrete & {n.removeprefix("_PREV_") for n in axes} - found
        found |= new
        frontier += new
    return found


def _over_data(trace, name, above, summed) -> Array | None:
    import funsor
    from funsor.optimizer import apply_optimizer

    plates = {
        n: frozenset(f.name for f in trace[n]["cond_indep_stack"]) for n in (name, *above)
    }
    named = trace[name]["infer"]["dim_to_name"].items()
    axes = {axis: dim for dim, axis in named if axis not in summed.discrete}
    if not axes or any(not axes.keys() <= plates[n] for n in plates):
        return None  # a discrete latent for several data, or steps of `scan`
    factors = []
    for n in plates:
        site = trace[n]
        value = site["fn"].log_prob(site["value"])
        value = value if site["scale"] is None else site["scale"] * value
        dims = site["infer"]["dim_to_name"]
        factors.append(funsor.to_funsor(value, output=funsor.Real, dim_to_name=dims))
    everywhere = frozenset().union(*plates.values())
    with funsor.interpretations.lazy:
        result = funsor.sum_product.sum_product(
            funsor.ops.logaddexp,
            funsor.ops.add,
            factors,
            eliminate=above | (everywhere - axes.keys()),
            plates=everywhere,
        )
    return funsor.to_data(apply_optimizer(result), name_to_dim=axes)
