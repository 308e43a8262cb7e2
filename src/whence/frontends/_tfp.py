"""`from_tfp()`: a joint distribution of TensorFlow Probability and data become a `Target`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ..core._key import seeded
from ..language._check_data import check_data
from ..language._latent import Coords
from ._joint import (
    JointStructure,
    Skeleton,
    bijector,
    component_names,
    forward,
    inspect_joint,
    library,
    log_det,
    pointwise,
    quietly,
    take_arrays,
    walk,
)
from ._sites_target import AbstractSitesTarget, checked


class TFPTarget(AbstractSitesTarget):
    """The posterior of a joint distribution given data; made by `from_tfp`.

    A draw is a dict of latent and deterministic components by name.

    Attributes:
        arrays: The arrays of the joint distribution: data.
        observed: Observed values by name.
        skeleton: The joint distribution without its arrays.
        structure: What is known of its components.
        labels: Labels along named axes.

    References:
        Dillon et al. (2017), TensorFlow Distributions, arXiv:1711.10604.
    """

    arrays: tuple[Any, ...]
    observed: dict[str, Array]
    skeleton: Skeleton = eqx.field(static=True)
    structure: JointStructure = eqx.field(static=True)
    labels: Coords = eqx.field(static=True, default=Coords())

    @property
    def joint(self) -> Any:
        """The joint distribution."""
        return self.skeleton.fill(self.arrays)

    def log_density(self, position):
        parts = self._at(position)
        return self._log_prior(parts, position) + self._log_likelihood(parts)

    @property
    def num_data(self) -> None:
        """None: rows of data cannot be told apart inside a joint distribution."""
        return

    def log_likelihood(self, position, rows=None):
        if rows is not None:
            raise ValueError(f"{type(self).__name__} has no rows of data to choose from.")
        return self._log_likelihood(self._at(position))

    def with_data(self, data: Mapping[str, Any]) -> "TFPTarget":
        """Return this target with other observed values of the same shapes, by component."""
        return dataclasses.replace(self, observed={name: data[name] for name in self.observed})

    def leaf_name(self, path: str) -> str:
        """Return the name of an array of this target for messages, given its path."""
        where, _, name = path.partition(".")
        return f"`observed[{name!r}]`" if where == "observed" else f"Array {name} of `joint`"

    @property
    def observed_data(self):
        return dict(self.observed)

    @property
    def constant_data(self):
        """Nothing: the arrays of a joint distribution have no names."""
        return {}

    def pointwise(self, draw):
        parts = self._given(draw)
        with quietly():
            return {name: pointwise(*parts[name]) for name in self.observed}

    @seeded
    def predict(self, draw, inputs, *, key):
        """Return one data set drawn given one draw.

        Args:
            draw: A draw; only its latents count.
            inputs: None: a joint distribution takes none.
            key: A typed key.

        Raises:
            ValueError: If `inputs` are given.
        """
        if inputs is not None:
            raise ValueError(
                "`predict` of a joint distribution takes no new inputs, since the joint takes "
                "none. Make the joint at the new inputs, and a target of it with `from_tfp`."
            )
        latents = {site.name for site in self.sites}
        keys = self._keys(key)

        def choose(name, d):
            if name in latents:
                return draw[name]
            return d.sample(seed=keys[name])

        parts = walk(self.joint, self.structure.names, choose)
        return {name: parts[name].value for name in self.observed}

    def _walk(self, choose_latent):
        derived = {x.name: x.unconstrained_shape for x in self.structure.derived}

        def choose(name, d):
            if name in self.observed:
                return self.observed[name]
            if name in derived:  # a point of a space without dimensions
                return forward(d, jnp.zeros(derived[name]))
            return choose_latent(name, d)

        return walk(self.joint, self.structure.names, choose)

    def _at(self, position):
        return self._walk(lambda name, d: forward(d, position[name]))

    def _given(self, draw):
        return self._walk(lambda name, _: draw[name])

    def _prior(self, key):
        keys = self._keys(key)
        return self._walk(lambda name, d: d.sample(seed=keys[name]))

    def _keys(self, key):
        return {name: jr.fold_in(key, i) for i, name in enumerate(self.structure.names)}

    def _draw(self, run):
        names = {x.name for x in self.sites + self.structure.derived}
        return {name: jnp.asarray(p.value) for name, p in run.items() if name in names}

    def _inverse(self, run):
        with quietly():
            return {
                site.name: bijector(run[site.name].distribution)
                .inverse(run[site.name].value)
                .astype(jnp.result_type(float))
                for site in self.sites
            }

    def _log_det(self, run, position):
        total = jnp.zeros((), jnp.result_type(float))
        with quietly():
            for site in self.sites:
                total += log_det(run[site.name].distribution, position[site.name])
        return total

    def _prior_terms(self, run):
        with quietly():
            return {
                site.name: run[site.name].distribution.log_prob(run[site.name].value)
                for site in self.sites
            }

    def _log_likelihood(self, run):
        total = jnp.zeros((), jnp.result_type(float))
        with quietly():
            for name in self.observed:
                d, value = run[name]
                total += jnp.sum(d.log_prob(value))
        return total


def from_tfp(joint: Any, observed: Any = None) -> TFPTarget:
    """Make a target of a joint distribution of TensorFlow Probability, some of it observed.

    Bounded latents go to unconstrained space by their default event-space bijectors, also
    where bounds depend on other components. A `Deterministic` component is a derived value.

    Args:
        joint: A joint distribution of `tensorflow_probability.substrates.jax`: Named,
            Sequential or Coroutine, AutoBatched or not; or one with pinned values
            (`experimental_pin`), which then are observed. Arrays of its distributions are
            data: others of the same shape reuse what is compiled, if its functions are the
            same objects. What its functions hold is part of the program.
        observed: A dict of arrays by name of component, or by position if components have
            an order of their own (Sequential, Coroutine); data likewise.

    Raises:
        ImportError: If TensorFlow Probability is not installed.
        ValueError: If `observed` does not fit `joint`, or `joint` has discrete latents,
            several densities in a batch, or no latents.
    """
    joint, pins = _joint_and_pins(joint)
    try:
        names = component_names(joint)
        values = pins | _by_name(joint, names, {} if observed is None else observed)
        values = {name: _as_data(name, value) for name, value in values.items()}
        arrays, skeleton = take_arrays(joint)
        structure, dtypes = inspect_joint(skeleton, arrays, names, values)
    except TypeError as error:
        if "incompatible dtypes" not in str(error):
            raise
        raise ValueError(
            "`joint` must not mix float32 and float64 in one distribution. To TensorFlow "
            "Probability Python's numbers are float32 and arrays of NumPy float64, whatever "
            "JAX's precision: give it `jnp.asarray(...)` of both, which have the present one "
            f"({np.dtype(jnp.result_type(float)).name}). {error}"
        ) from error
    ordered = [name for name in names if name in values]
    data = {name: _cast(name, values[name], dtypes[name]) for name in ordered}
    return checked(
        TFPTarget(arrays=arrays, observed=data, skeleton=skeleton, structure=structure)
    )


def _joint_and_pins(joint):
    tfp = library()
    if isinstance(joint, tfp.experimental.distributions.JointDistributionPinned):
        return joint.distribution, dict(joint.pins)
    if not isinstance(joint, tfp.distributions.JointDistribution):
        raise ValueError(
            "`joint` must be a joint distribution of `tensorflow_probability.substrates.jax`; "
            f"got {type(joint).__module__}.{type(joint).__name__}."
        )
    if joint.batch_ndims:
        raise ValueError(
            f"`joint` must be one density; got a batch of them (`batch_ndims` is "
            f"{joint.batch_ndims})."
        )
    return joint, {}


def _by_name(joint, names, observed) -> dict[str, Any]:
    if not isinstance(observed, Mapping):
        raise ValueError(
            "`observed` must be a dict of arrays by name of component; got "
            f"{type(observed).__name__}."
        )
    # The order of a Named joint is made up from who depends on whom.
    ordered = callable(joint.model) or isinstance(joint.model, list | tuple)
    ordered = ordered and not hasattr(joint.model, "_fields")
    found: dict[Any, Any] = {}
    for key, value in observed.items():
        position = isinstance(key, int | np.integer) and not isinstance(key, bool)
        if position:
            known, name = ordered and 0 <= key < len(names), names[key % len(names)]
        else:
            known, name = key in names, key
        if not known:
            also = f", or positions up to {len(names) - 1}" if ordered else ""
            raise ValueError(
                f"`observed` must name components of `joint` ({', '.join(names)}{also}); got "
                f"{key!r}."
            )
        if name in found:
            raise ValueError(f"`observed` has component {name!r} twice, by name and position.")
        found[name] = value
    return found


def _as_data(name, value) -> Array:
    value = check_data(value, f"observed[{name!r}]", name)
    if not hasattr(value, "shape"):
        raise ValueError(f"`observed[{name!r}]` must be one array; got {value!r}.")
    return value


def _cast(name, value, dtype) -> Array:
    """Return an observed value in the type of its component, in which others may use it."""
    cast = value.astype(dtype)
    if isinstance(value, Tracer) or jnp.issubdtype(dtype, value.dtype):
        return cast
    integers = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.integer)
    lost = np.asarray(value)[np.asarray(cast, np.float64) != np.asarray(value)]
    if integers and lost.size:
        raise ValueError(
            f"`observed[{name!r}]` must fit {np.dtype(dtype).name}, the type of its component; "
            f"got {lost.flat[0]}, which does not."
        )
    return cast
