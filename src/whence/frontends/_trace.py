"""A numpyro model run once with chosen values, and what can be known of it beforehand."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import init_to_uniform

from ..core._dtype import relaxed
from ._bijection import bijection

Trace = dict[str, dict[str, Any]]  # what numpyro's `trace` handler records, by site


class Latent(NamedTuple):
    """A latent site; hashable.

    Attributes:
        name: Name of the site.
        shape: Shape of the value.
        unconstrained_shape: Shape of its part of the position.
    """

    name: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]


class Structure(NamedTuple):
    """What does not depend on the numbers in the data; hashable.

    Attributes:
        sites: The latents, in the order of the model.
        observed: Names of the observed sites, without the auxiliary ones that `factor` makes.
        dims: Names of the axes that plates give, by site.
        weighted: Names of latents under a `mask` or `scale` handler.
        factors: Names of terms of the likelihood that no data could be drawn from: those
            that `factor` makes, scaled ones, and observed values made of latents.
        discrete: The latents that are summed out, in the order of the model.
        varying: Names of deterministic sites that depend on those: they have no one value.
        scanned: Whether some of those are inside `scan`.
        enum_dim: The first batch axis from the right that all sites leave free.
    """

    sites: tuple[Latent, ...]
    observed: tuple[str, ...]
    dims: tuple[tuple[str, tuple[str, ...]], ...]
    weighted: tuple[str, ...]
    factors: tuple[str, ...]
    discrete: tuple[Latent, ...] = ()
    varying: tuple[str, ...] = ()
    scanned: bool = False
    enum_dim: int = -1


class Conditioned(eqx.Module):
    """A model whose observed sites have other values, which are data of the target."""

    fn: Any
    data: dict[str, Any]

    def __call__(self, *args, **kwargs):
        return handlers.condition(self.fn, data=self.data)(*args, **kwargs)


@relaxed()
def run(fn: Callable, args: tuple, kwargs: dict, choose: Callable, *, key=None) -> Trace:
    """Run a model and return its trace.

    Args:
        fn: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        choose: Called with each sample site as numpyro describes it; returns a value, or
            None to leave the site as it is. Inside `scan` it may return all steps at once.
        key: For sites left without a value; without it there must be none.
    """
    model = handlers.substitute(
        fn, substitute_fn=lambda site: choose(site) if site["type"] == "sample" else None
    )
    if key is None:  # `numpyro.prng_key()` in a model: a fixed key, as numpyro's own MCMC has
        seeded = handlers.seed(model, jr.key(0), hide_types=["sample", "plate", "control_flow"])
    else:
        seeded = handlers.seed(model, key)
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def site_shape(site: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of a site's value; that of one step inside `scan`."""
    return tuple(site["kwargs"].get("sample_shape", ())) + tuple(site["fn"].shape())


def site_key(key, site):
    """Return a key of a sample site's own, and of its step inside `scan`."""
    key = jr.fold_in(key, zlib.crc32(site["name"].encode()))
    step = site["infer"].get("_scan_current_index")
    return key if step is None else jr.fold_in(key, step)


def at_step(site, value, ndim: int):
    """Return the part of `value` for the present step of `scan`, if the site is in one."""
    step = site["infer"].get("_scan_current_index")
    return value if step is None or jnp.ndim(value) <= ndim else value[step]


@relaxed()
def log_prob(site):
    """Return the pointwise log-probability of a site in nats, masked and scaled."""
    value = jnp.asarray(site["fn"].log_prob(site["value"]))
    return value if site["scale"] is None else site["scale"] * value


def inspect_model(fn: Callable, args: tuple, kwargs: dict) -> Structure:
    """Return the structure of a model; nothing is computed."""
    found: list[Structure] = []

    @relaxed()
    def visit(args, kwargs):
        # Not the prior: an improper one cannot be sampled.
        start = handlers.substitute(
            handlers.seed(fn, jr.key(0)), substitute_fn=init_to_uniform(radius=2)
        )
        found.append(_structure(handlers.trace(start).get_trace(*args, **kwargs)))

    try:
        _shapes_only(visit, args, kwargs)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise ValueError(
            "`fn` must not need the numbers in its array arguments to run, only their shapes "
            "(as `len(np.unique(group))` or `if x.max() > 0` does). Compute such things "
            "outside and pass them as Python numbers, or make the array a constant of the "
            f"model: `functools.partial(model, group=group)`. {error}"
        ) from error
    return found[0]


def _shapes_only(visit, args, kwargs):
    # Arguments that are not arrays (options, lengths) stay as they are.
    leaves, treedef = jax.tree.flatten((args, kwargs))
    data = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def with_data(arrays):
        filled = list(leaves)
        for i, array in zip(data, arrays):
            filled[i] = array
        visit(*treedef.unflatten(filled))

    jax.eval_shape(with_data, [leaves[i] for i in data])


def _structure(trace: Trace) -> Structure:
    sites, observed, weighted, factors, discrete = [], [], [], [], []
    dim = -1
    for name, site in trace.items():
        _refuse(name, site)
        if site["type"] != "sample":
            continue
        dim = min(dim, -1 - len(site["fn"].batch_shape))
        if site["is_observed"]:
            if not site["infer"].get("is_auxiliary", False):
                _check_shape(name, site)
                observed.append(name)
            if site["infer"].get("is_auxiliary", False) or site["scale"] is not None:
                factors.append(name)
            continue
        shape = tuple(jnp.shape(site["value"]))
        if site["scale"] is not None or _is_masked(site["fn"]):
            weighted.append(name)
        if site["fn"].support.is_discrete:
            discrete.append(Latent(name, shape, ()))
        else:
            transform = bijection(site["fn"].support, f"The support of site {name!r}")
            sites.append(Latent(name, shape, tuple(transform.inverse_shape(shape))))
    if not sites:
        raise ValueError(
            "`fn` must have at least one continuous latent (unobserved) sample site; got none."
        )
    return Structure(
        tuple(sites),
        tuple(observed),
        _dims(trace),
        tuple(weighted),
        tuple(factors),
        discrete=tuple(discrete),
        scanned=any("_scan_current_index" in trace[x.name]["infer"] for x in discrete),
        enum_dim=dim,
    )


def _check_shape(name, site) -> None:
    """Refuse data that would be broadcast against their distribution and counted many times."""
    got, want = tuple(jnp.shape(site["value"])), site_shape(site)
    event = len(want) - site["fn"].event_dim
    try:
        joint = jnp.broadcast_shapes(got, want)
    except ValueError:
        joint = None
    if joint != got or got[len(got) - len(want) + event :] != want[event:]:
        also = f" Together they would broadcast to {joint}." if joint is not None else ""
        raise ValueError(
            f"The data of site {name!r} have shape {got}, but its distribution "
            f"{type(site['fn']).__name__} has shape {want}.{also} Reshape one of them."
        )


def _refuse(name, site) -> None:
    if site["type"] in ("param", "mutable"):
        raise ValueError(
            f"Site {name!r} of the model is a `numpyro.{site['type']}`, a point estimate with "
            "no prior. Give it a prior with `numpyro.sample`, or write its value in the model."
        )
    if site["type"] == "plate":
        size, subsample = site["args"]
        # Inside `scan` both are traced, and a whole plate is `(size, None)`.
        whole = subsample is None or (isinstance(size, int) and subsample == size)
        if not whole:
            raise ValueError(
                f"Plate {name!r} takes {subsample} of {size} rows at random, so the density "
                "would differ at each evaluation. Leave `subsample_size` out; for minibatches "
                "write the model as a `whence.Model` and use an engine with `batch_size`."
            )
    latent = site["type"] == "sample" and not site["is_observed"]
    if latent and site["fn"].support.is_discrete:
        _refuse_infinite(name, site)


def _refuse_infinite(name, site) -> None:
    kind = type(site["fn"]).__name__
    if not site["fn"].has_enumerate_support:
        raise ValueError(
            f"Site {name!r} is a discrete latent ({kind}) without a list of its values, so it "
            "cannot be summed out. Sum it out in the model (a Poisson latent under Binomial "
            "data is Poisson again, for example), put a distribution with finitely many "
            "values in its place (`Categorical` over the counts that matter), or make it "
            "continuous."
        )
    wish = site["infer"].get("enumerate", "parallel")
    if wish != "parallel":
        raise ValueError(
            f"Site {name!r} is a discrete latent ({kind}) with `infer={{'enumerate': "
            f"{wish!r}}}`; it can only be summed out, with 'parallel' or without `infer`."
        )


def _is_masked(d) -> bool:
    while isinstance(d, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        if isinstance(d, dist.MaskedDistribution) and d._mask is not True:
            return True
        d = d.base_dist
    return False


def _dims(trace: Trace) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return names of axes for sites inside plates: the plate's name, where it is one axis."""
    sizes: dict[str, set[int]] = {}
    for site in trace.values():
        for frame in site.get("cond_indep_stack", ()):
            sizes.setdefault(frame.name, set()).add(frame.size)
    # An axis of two lengths, or one called like a variable, cannot be an ArviZ dim.
    taken = {n for n, s in trace.items() if s["type"] in ("sample", "deterministic")}
    usable = {n for n, found in sizes.items() if len(found) == 1 and n not in taken}
    dims = []
    for name, site in trace.items():
        if site["type"] not in ("sample", "deterministic"):
            continue
        axes = _axes(name, site, usable)
        if axes:
            dims.append((name, axes))
    return tuple(dims)


def _axes(name, site, usable) -> tuple[str, ...]:
    shape = jnp.shape(site["value"])
    frames = [f for f in site["cond_indep_stack"] if f.name in usable]
    if site["type"] == "sample":
        event = site["fn"].event_dim
    elif len(shape) == max((-f.dim for f in frames), default=0):
        event = 0
    else:
        return ()  # which axes of a derived value belong to the plates is not known
    names = [f"{name}_dim_{i}" for i in range(len(shape))]
    for frame in frames:
        axis = len(shape) - event + frame.dim
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            names[axis] = frame.name
    return tuple(names) if set(names) & usable else ()
