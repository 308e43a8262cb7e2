"""`from_numpyro()`: a numpyro model and its data become a `Target`."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import compiled
from ..core._code import Held
from ..core._dtype import warn_of_counts
from ._arguments import as_data, has_arrays, held, parameters
from ._enumerate import depending, enumerated, library
from ._numpyro_target import NumpyroTarget, constant_position, observed_values
from ._sites_target import checked
from ._trace import Holding, NeedsNumbers, Structure, WholePlates, inspect_model, log_prob


def from_numpyro(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> NumpyroTarget:
    """Make a target of a numpyro model called with these arguments.

    Observed sites (`obs=`, or a `condition` handler) are the data; deterministic sites are
    derived values; plates name axes; `reparam`, `mask` and `scale` handlers count. Discrete
    latents with finitely many values are summed out, by numpyro's enumeration.

    Args:
        fn: The model: a function with numpyro primitives, handlers around it included.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments. Arrays in arguments are data: others of the same
            shape reuse what is compiled. Python numbers and other values are part of the
            program, and so are arrays whose numbers the model needs to run.

    The rows of a plate with `subsample_size` are the data rows: minibatches of any size are
    taken of them (the size given in the model does not count), and latents inside are local.

    Raises:
        ValueError: If the model has `param` sites that are no module's, discrete latents with
            endless values or no continuous ones.
        ImportError: If the model has discrete latents and funsor is not installed.
    """
    if not callable(fn):
        raise ValueError(f"`fn` must be a numpyro model, a function; got {fn!r}.")
    args, kwargs = as_data(args, "args"), as_data(kwargs, "kwargs")
    fn, args, kwargs, structure = _inspected(fn, args, kwargs)
    target = NumpyroTarget(fn=fn, args=args, kwargs=kwargs, structure=structure)
    if target.structure.discrete:
        library()
        target = dataclasses.replace(target, structure=_summed_out(target))
    target = checked(dataclasses.replace(target, structure=_without_made_up_data(target)))
    for name in target.structure.counted:
        value = target.observed_data.get(name)
        if value is not None and not isinstance(value, Tracer):
            warn_of_counts(value, name, stacklevel=2)
    return target


def _inspected(fn, args, kwargs):
    """Return model and arguments, those held that must be part of the program, and what it is.

    Arguments whose numbers the model must see are found by trial: it is run on shapes with
    all of them held, then with one after another free again.
    """
    free = {n: v for n, v in parameters(fn, args, kwargs).items() if has_arrays(v)}
    known = [x for x in jax.tree.leaves((args, kwargs), is_leaf=_held) if _held(x)]
    whole = WholePlates(Holding(fn) if known else fn)
    try:
        structure = inspect_model(whole, args, kwargs)
    except (NeedsNumbers, AttributeError, TypeError) as error:
        whole, names = WholePlates(Holding(fn)), set(free)
        try:
            inspect_model(whole, *held(fn, args, kwargs, names))
        except (NeedsNumbers, AttributeError, TypeError):
            if any(hasattr(x.value, "columns") for x in known):
                error.add_note(
                    "Columns of a table are no JAX arrays: take them by "
                    '`jnp.asarray(table["x"].to_numpy())`.'
                )
            raise error from None
        for name in free:
            with contextlib.suppress(NeedsNumbers, AttributeError, TypeError):
                inspect_model(whole, *held(fn, args, kwargs, names - {name}))
                names.remove(name)
        args, kwargs = held(fn, args, kwargs, names)
        structure = inspect_model(whole, args, kwargs)
    return whole if structure.plates else whole.fn, args, kwargs, structure


def _held(leaf) -> bool:
    return isinstance(leaf, Held)


def _without_made_up_data(target: NumpyroTarget) -> Structure:
    """Leave out observed sites whose value is made of latents: they are no data."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(target)):
        return target.structure
    at_zero, at_one = (
        jax.tree.map(np.asarray, compiled(observed_values, target, p).call(target, p))
        for p in (constant_position(target, 0.0), constant_position(target, 1.0))
    )
    same = lambda a, b: a.tobytes() == b.tobytes()  # NaN is the same as NaN
    named = target.structure.observed
    data = tuple(n for n in named if same(at_zero[n], at_one[n]))
    factors = (*target.structure.factors, *(n for n in named if n not in data))
    return target.structure._replace(observed=data, factors=factors)


def _summed_out(target: NumpyroTarget) -> Structure:
    """Note what depends on discrete latents, and see that they can be summed out."""
    names = ", ".join(repr(latent.name) for latent in target.structure.discrete)
    zeros = {x.name: jnp.zeros(x.shape, int) for x in target.structure.discrete}
    position = constant_position(target, 0.0)

    def results(discrete):
        return target._draw(target._at(position, discrete))

    try:
        varying = depending(results, zeros)
        bounded = [site.name for site in target.sites if site.name in varying]
        if not bounded:
            _see_every_value(target, position, zeros)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            f"The list of values of a discrete latent (here {names}) must not depend on the "
            "numbers in array arguments: pass them (`total_count` of a Binomial, say) as "
            f"Python numbers. {error}"
        ) from error
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"numpyro cannot sum the discrete latents ({names}) out of the model. Each batch "
            "axis of such a model must be that of a `plate`, and indices into arrays must "
            f"broadcast (`Vindex` of `numpyro.ops.indexing` does): {error}"
        ) from error
    if bounded:
        raise ValueError(
            f"The support of site {bounded[0]!r} must not depend on discrete latents (here "
            f"{names}): with these summed out it has no one support."
        )
    dims = tuple(named for named in target.structure.dims if named[0] not in varying)
    return target.structure._replace(varying=tuple(sorted(varying)), dims=dims)


def _see_every_value(target, position, zeros) -> None:
    """Raise unless sites that depend on a discrete latent are evaluated at all its values.

    Enumeration gives a latent an axis, and a model that sums over all axes sums over that
    one too: numpyro then takes the site for one that does not depend on the latent.
    """
    axes: dict[str, frozenset[str]] = {}

    def visit():
        axes.update(enumerated(target._summed, target._latents(target._at(position))))

    jax.eval_shape(visit)
    names = list(zeros)
    # With many latents (steps of a loop) all at once: each one needs a run of the model.
    groups = [[name] for name in names] if len(names) <= 8 else [names]
    for group in groups:

        def terms(values):
            trace = target._at(position, {**zeros, **values})
            return {n: log_prob(s) for n, s in trace.items() if s["type"] == "sample"}

        for name in sorted(depending(terms, {n: zeros[n] for n in group})):
            if name in axes and not axes[name].intersection(group):
                raise ValueError(
                    f"site {name!r} depends on {group[0]!r}, but not along the axis of its "
                    "values; does it sum over all axes, or reshape?"
                )
