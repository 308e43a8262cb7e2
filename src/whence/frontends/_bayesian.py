"""`bayesian()`: an Equinox module with random arrays, a Bayesian neural network in a line."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path
from numpyro.distributions import Distribution

from ..core._convert import flag, one_of
from ..language import Model
from ..language._latent import UNDRAWN, Latent, latents
from ..language._model import sites
from ..language._module_leaves import check_module, select
from ..language._module_priors import as_data, priors_of
from ._bayesian_heads import AbstractHead, Function, classification, poisson, regression

_STARTS = ("prior", "module", "uniform")


def _specs(model: "BayesianModule") -> dict[str, Latent]:
    """Declare one latent for each random array, and those of the likelihood."""
    starts = model.initial or ("prior" if model.from_prior else None,) * len(model.names)
    specs = {
        name: Latent(prior, shape, (), model.noncentered, start)
        for name, shape, prior, start in zip(model.names, model.shapes, model.priors, starts)
    }
    if model.head is not None:
        specs |= {name: Latent(d, None, (), False) for name, d in model.head.priors.items()}
    return specs


class BayesianModule(Model):
    """An Equinox module whose arrays are latents; made by `bayesian`.

    Called with inputs of many rows, a draw gives the module's outputs for them.

    Attributes:
        priors: Priors of the module's latents.
        initial: Values to start from; empty to start elsewhere.
        arrays: Module and likelihood with only the arrays that stay as they are.
        rest: Module and likelihood without any array.
        structure: The module's structure with only its latents.
        names: Paths of the module's latents.
        shapes: Their shapes.
        noncentered: Whether engines see them standardised.
        from_prior: Whether engines start from draws of the prior.
        values: The latents by path; those of the likelihood by name.
    """

    __whence_columns__: ClassVar[bool] = False  # a module takes matrices
    priors: tuple[Any, ...]
    initial: tuple[Any, ...]
    arrays: Any
    rest: Any = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    noncentered: bool = eqx.field(static=True)
    from_prior: bool = eqx.field(static=True)
    values: dict[str, Any] = latents(_specs)

    @property
    def module(self) -> Any:
        """The Equinox module with this draw's values."""
        if any(value is UNDRAWN for value in self.values.values()):
            raise ValueError(
                "The arrays of this module have no values yet; `posterior.map`, or "
                "`sample_prior(key)`, gives a model that has."
            )
        drawn = self.structure.unflatten(self.values[name] for name in self.names)
        return eqx.combine(drawn, self.arrays[0], self.rest[0])

    @property
    def head(self) -> Any:
        """The likelihood; None if there is none."""
        return eqx.combine(self.arrays[1], self.rest[1])

    def __call__(self, *inputs: Any) -> Any:
        """Return the module's outputs.

        Args:
            *inputs: What the module takes, with rows along a first axis.
        """
        module = self.module  # before `try`: its message is its own
        try:
            return jax.vmap(module)(*inputs)
        except Exception as error:
            shapes = ", ".join(str(jnp.shape(x)[1:]) for x in jax.tree.leaves(inputs))
            raise ValueError(
                f"`{type(module).__name__}` failed. It is called for one row at a time, here "
                f"with inputs of shape {shapes or 'nothing'}: {error}"
            ) from error

    def likelihood(self, *x):
        if self.head is None:
            raise ValueError(
                "This model has no likelihood: pass one, as in `whence.bayesian(module, prior, "
                "likelihood=whence.regression())`, or use it as a field of another model."
            )
        values = {name: self.values[name] for name in self.head.priors}
        return self.head(self(*x), values)

    def check_observed(self, y, likelihood):
        if isinstance(y, Mapping) or not isinstance(likelihood, Distribution):
            return
        got, want = jnp.shape(y), tuple(likelihood.shape())
        if got != want:
            hint = " Pass `y[:, 0]`." if got == (*want, 1) else ""
            if want == (*got, 1):
                hint = " Let `likelihood` drop the last axis: `out[:, 0]`."
            raise ValueError(
                f"`y` must have shape {want}, as the module's outputs ask for; got {got}.{hint}"
            )
        self.head.check(y)


def bayesian(
    module: Any,
    prior: Any,
    *,
    likelihood: Any = None,
    where: Any = None,
    start: str = "prior",
    noncentered: bool = False,
) -> BayesianModule:
    """Make a model of an Equinox module: its arrays become latents.

    Latents are named by path (`layers.0.weight`). A draw is a model again: called with
    inputs of many rows, it gives the outputs (`posterior.map(lambda m: m(x))`), and
    `m.module` is the Equinox module itself. The values that the arrays have now do not
    count, unless `start="module"`.

    Args:
        module: An instance of an Equinox module, a function of one row of the inputs; it is
            mapped over their first axes. It has no state and, in inference mode, no dropout.
        prior: A numpyro distribution, for every entry of every array; a `FanIn`; a function
            `(path, array) -> prior`; or a dict of these, by type of layer
            (`equinox.nn.Linear`, matching all arrays inside such a layer) or by pattern of
            paths (`"*.weight"`), of which the first that matches counts. None as a prior
            keeps an array as it is. An array that no key matches is an error, and so is a
            key that matches no array.
        likelihood: `regression()`, `classification()`, `poisson()`, or a function of the
            outputs (rows along the first axis) that returns a numpyro distribution with the
            rows as its batch axis. Without one, the model serves as a field of another.
        where: Which arrays become latents, all with floating-point numbers by default: a
            function of the module that returns some of its arrays or parts, as for
            `equinox.tree_at`, or of `(path, array)` that returns a bool. Others stay as
            they are.
        start: Where engines start: a draw from the `"prior"` (the default), the values of
            the `"module"`, all chains alike, or `"uniform"` on (-2, 2) as other latents.
        noncentered: Let engines see arrays standardised, for location-scale priors.

    Returns:
        A `Model`: `whence.condition(bayesian(...), y, x)` is a target for any engine.

    Raises:
        ValueError: If an argument is not of the form above, or the module has state or
            dropout.
    """
    check_module(module)
    start, noncentered = one_of("start", _STARTS)(start), flag("noncentered")(noncentered)
    module = jax.tree.map(_as_array, module)
    leaves = select(module, where)
    priors = priors_of(prior, leaves)
    if not priors:
        raise ValueError("`prior` must give at least one array a prior; got None for all.")
    chosen = [leaf for leaf in leaves if leaf.path in priors]
    random, arrays, rest = _split(module, list(priors))
    head = _as_head(likelihood)
    head_arrays, head_rest = eqx.partition(head, eqx.is_array)
    names = tuple(priors)
    brought = () if head is None else tuple(head.priors)
    clash = set(names) & set(brought)
    if clash:
        raise ValueError(
            f"`module` has an array called {clash.pop()!r}, and so has `likelihood`; rename it."
        )
    model = BayesianModule(
        values=dict.fromkeys((*names, *brought), UNDRAWN),
        priors=tuple(priors.values()),
        initial=tuple(leaf.value for leaf in chosen) if start == "module" else (),
        arrays=(arrays, head_arrays),
        rest=(rest, head_rest),
        structure=jax.tree.structure(random),
        names=names,
        shapes=tuple(leaf.value.shape for leaf in chosen),
        noncentered=noncentered,
        from_prior=start == "prior",
    )
    sites(model)  # refuses priors that do not fit
    return model


def _split(module, paths) -> tuple[Any, Any, Any]:
    """Return the module with only its latents, only its other arrays, only the rest."""
    arrays, rest = eqx.partition(module, eqx.is_array)
    name = lambda path: keystr(path, simple=True, separator=".")
    chosen = tree_map_with_path(lambda path, _: name(path) in paths, arrays)
    random, arrays = eqx.partition(arrays, chosen)
    return random, arrays, rest


def _as_array(leaf):
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _as_head(likelihood) -> AbstractHead | None:
    if likelihood is None or isinstance(likelihood, AbstractHead):
        return jax.tree.map(as_data, likelihood)
    forgotten = any(likelihood is made for made in (regression, classification, poisson))
    if isinstance(likelihood, Distribution) or not callable(likelihood) or forgotten:
        raise ValueError(
            "`likelihood` must be `regression()`, `classification()`, `poisson()` or a "
            f"function of the outputs that returns a distribution; got {likelihood!r}."
        )
    return Function(likelihood)
