"""A numpyro model run once with chosen values, and what can be known of it beforehand."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.tree_util import keystr, tree_leaves_with_path
from numpyro import handlers
from numpyro.infer import init_to_uniform
from numpyro.primitives import Messenger

from ..core._code import Held
from ..core._dtype import relaxed
from ._bijection import bijection

Trace = dict[str, dict[str, Any]]  # what numpyro's `trace` handler records, by site


class Latent(NamedTuple):
    """A latent site; hashable."""

    name: str  # name of the site
    shape: tuple[int, ...]  # shape of the value
    unconstrained_shape: tuple[int, ...]  # shape of its part of the position


class Structure(NamedTuple):
    """What does not depend on the numbers in the data; hashable."""

    sites: tuple[Latent, ...]  # the latents, in the order of the model
    # names of the observed sites, without the auxiliary ones that `factor` makes
    observed: tuple[str, ...]
    dims: tuple[tuple[str, tuple[str, ...]], ...]  # names of the axes that plates give, by site
    weighted: tuple[str, ...]  # names of latents under a `mask` or `scale` handler
    # names of terms of the likelihood that no data could be drawn from: those that `factor`
    # makes, scaled ones, and observed values made of latents
    factors: tuple[str, ...]
    # the latents that are summed out, in the order of the model
    discrete: tuple[Latent, ...] = ()
    # names of deterministic sites that depend on those: they have no one value
    varying: tuple[str, ...] = ()
    scanned: bool = False  # whether some of those are inside `scan`
    enum_dim: int = -1  # the first batch axis from the right that all sites leave free
    plates: tuple[str, ...] = ()  # names of the plates that take some of their rows at random
    num_rows: int | None = None  # number of rows of the one such plate, if it has all data
    local: tuple[str, ...] = ()  # latents inside it, with one value for each row
    counted: tuple[str, ...] = ()  # the observed sites with discrete values


class NeedsNumbers(ValueError):
    """A model that does not run without the numbers in its array arguments."""


class Conditioned(eqx.Module):
    """A model whose observed sites have other values, which are data of the target."""

    fn: Any
    data: dict[str, Any]

    def __call__(self, *args, **kwargs):
        return handlers.condition(self.fn, data=self.data)(*args, **kwargs)


class Holding(eqx.Module):
    """A model some of whose arguments are part of the program."""

    fn: Any

    def __call__(self, *args, **kwargs):
        is_held = lambda leaf: isinstance(leaf, Held)
        release = lambda leaf: leaf.value if is_held(leaf) else leaf
        args, kwargs = jax.tree.map(release, (args, kwargs), is_leaf=is_held)
        return self.fn(*args, **kwargs)


_ROWS: ContextVar[tuple[str, Any] | None] = ContextVar("rows", default=None)


@contextmanager
def at_rows(plate: str, rows: Any) -> Iterator[None]:
    """Run models in `WholePlates` with some rows of a plate of this name."""
    token = _ROWS.set((plate, rows))
    try:
        yield
    finally:
        _ROWS.reset(token)


class WholePlates(eqx.Module):
    """A model whose subsampled plates are whole, but for the rows that `at_rows` chooses."""

    fn: Any

    def __call__(self, *args, **kwargs):
        return _Whole(self.fn)(*args, **kwargs)


_SUBSAMPLED = "whence_subsampled"  # marks plates that would take rows at random


class _Whole(Messenger):
    def process_message(self, msg):
        if msg["type"] != "plate" or not is_subsampled(msg):
            return
        name, (size, _) = msg["name"], msg["args"]
        chosen = _ROWS.get()
        plate, rows = (None, None) if chosen is None else chosen
        msg["value"] = rows if plate == name else jnp.arange(size)
        msg["args"] = (size, None)
        msg["infer"] = {_SUBSAMPLED: True}


def is_subsampled(site: dict[str, Any]) -> bool:
    """Whether a plate may take some of its rows at random: it has a `subsample_size`."""
    return site["args"][1] is not None


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
        raise NeedsNumbers(
            "`fn` must not need numbers of latents to run (`if mu > 0`; `jnp.where` does "
            "not), nor numbers that `jax.numpy` makes of its arguments (`int(jnp.max(group))`; "
            f"NumPy's are fine). {error}"
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
    sites, observed, counted, weighted, factors, discrete = [], [], [], [], [], []
    dim = -1
    for name, site in trace.items():
        _refuse(name, site, trace)
        if site["type"] != "sample":
            continue
        dim = min(dim, -1 - len(site["fn"].batch_shape))
        if site["is_observed"]:
            if not site["infer"].get("is_auxiliary", False):
                _check_shape(name, site)
                observed.append(name)
                if site["fn"].support.is_discrete:
                    counted.append(name)
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
        named = ", ".join(repr(latent.name) for latent in discrete)
        raise ValueError(
            "`fn` must have at least one continuous latent (unobserved) sample site; got "
            + (
                f"discrete ones only ({named}). Engines have nothing to move in: what their "
                "values are, `numpyro.infer.Predictive(..., infer_discrete=True)` draws."
                if named
                else "none: is a `numpyro.sample` without `obs=` missing?"
            )
        )
    plates, num_rows, local = _rows_of(trace, bool(discrete))
    return Structure(
        tuple(sites),
        tuple(observed),
        _dims(trace),
        tuple(weighted),
        tuple(factors),
        discrete=tuple(discrete),
        scanned=any("_scan_current_index" in trace[x.name]["infer"] for x in discrete),
        enum_dim=dim,
        plates=plates,
        num_rows=num_rows,
        local=local,
        counted=tuple(counted),
    )


def row_axis(site: dict[str, Any], plate: str) -> int | None:
    """Return the axis of a plate's rows among the batch axes of a site, from the right."""
    return next((f.dim for f in site["cond_indep_stack"] if f.name == plate), None)


def _rows_of(
    trace: Trace, discrete: bool
) -> tuple[tuple[str, ...], int | None, tuple[str, ...]]:
    """Return the subsampled plates, and rows and local latents of the one that is for data."""
    plates = [
        n
        for n, s in trace.items()
        if s["type"] == "plate" and _SUBSAMPLED in s.get("infer", {})
    ]
    if len(plates) != 1 or discrete:
        return tuple(plates), None, ()
    local = []
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        axis = row_axis(site, plates[0])
        if site["is_observed"]:
            if axis is None:
                return tuple(plates), None, ()  # data outside: no rows of the plate
        elif axis is not None:
            if axis != -len(site["fn"].batch_shape):
                return tuple(plates), None, ()  # rows must be the first axis
            local.append(name)
    return tuple(plates), int(trace[plates[0]]["args"][0]), tuple(local)


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


def _refuse(name, site, trace) -> None:
    if site["type"] == "mutable" and site["value"] is not None:
        raise ValueError(
            f"Site {name!r} of the model is a `numpyro.mutable`, a state that runs leave "
            "behind, as that of batch normalisation: a density has none. Take layers without "
            "state (`LayerNorm`, `GroupNorm`)."
        )
    if site["type"] == "param" and not _is_random_module(name, site, trace):
        raise ValueError(
            f"Site {name!r} of the model is a `numpyro.param`, a point estimate with "
            "no prior. Give it a prior with `numpyro.sample`, or write its value in the model."
        )
    latent = site["type"] == "sample" and not site["is_observed"]
    if latent and site["fn"].support.is_discrete:
        _refuse_infinite(name, site)


def _is_random_module(name, site, trace) -> bool:
    """Whether a site holds the parameters of a module, each of which is a latent of its own.

    `random_eqx_module` and its like make a `param` of a module first, and then draw it.
    """
    if site["value"] is None:
        return True
    module = name.removesuffix("$params")
    if site["type"] != "param" or module == name:
        return False
    inside = [n for n, s in trace.items() if s["type"] == "sample" and n.startswith(module)]
    drawn = [n.removeprefix(module) for n in inside]
    paths = [path for path, _ in tree_leaves_with_path(site["value"])]
    simple = lambda path: "." + keystr(path, simple=True, separator=".")
    leaves = [keystr(p) if keystr(p).startswith(".") else simple(p) for p in paths]
    if leaves and not drawn:
        raise ValueError(
            f"The parameters of module {module!r} are a `numpyro.param`, a point estimate with "
            "no prior: declare it by `random_flax_module`, `random_eqx_module` or the like, "
            "with `prior=`. To keep numbers that are known, call the module itself in the "
            "model (`module.apply({'params': params}, x)` of flax)."
        )
    for leaf in leaves:
        if not any(n.endswith(leaf[1:]) and len(n) > len(leaf) - 1 for n in drawn):
            raise ValueError(
                f"Parameter `{leaf[1:]}` of module {module!r} has no prior: give it one in "
                "`prior`, or make it no array of the module."
            )
    return True


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
