"""What targets of other libraries' models share: draws that are dicts of values by site."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array

from ..core import AbstractDescribedTarget
from ..core._flat import position_shapes
from ..core._indices import check_indices
from ..core._key import seeded
from ..core._names import check_variable_names
from ..core._show import target_html
from ..core._slopes import warn_of_slopes
from ..core._target import LatentShape
from ..core._types import PRNGKey, Scalar
from ..core._values import check_values
from ..language._latent import Coords
from ._axes import name_axes
from ._trace import Latent


class AbstractSitesTarget(AbstractDescribedTarget):
    """The posterior of a model that can be run with chosen values at its sites.

    What such a run leaves, in a form that only the subclass knows, is called a run below.
    """

    structure: eqx.AbstractVar[Any]  # with `sites`, latents in order, and `dims`; static
    labels: eqx.AbstractVar[Coords]

    @abc.abstractmethod
    def _at(self, position: dict[str, Array]) -> Any:
        """Return the run at a position."""

    @abc.abstractmethod
    def _given(self, draw: dict[str, Array]) -> Any:
        """Return the run with the latents of a draw."""

    @abc.abstractmethod
    def _prior(self, key: PRNGKey) -> Any:
        """Return a run with latents drawn from the prior."""

    @abc.abstractmethod
    def _draw(self, run: Any) -> dict[str, Array]:
        """Return latents and derived values of a run, by name."""

    @abc.abstractmethod
    def _inverse(self, run: Any) -> dict[str, Array]:
        """Return the position of a run."""

    @abc.abstractmethod
    def _log_det(self, run: Any, position: dict[str, Array]) -> Scalar:
        """Return the log-determinant of the way from the position to the latents of its run."""

    @abc.abstractmethod
    def _prior_terms(self, run: Any) -> dict[str, Array]:
        """Return the log prior density of the latents of a run, by name."""

    @abc.abstractmethod
    def _log_likelihood(self, run: Any) -> Scalar:
        """Return the log likelihood of a run."""

    @property
    def sites(self) -> tuple[Latent, ...]:
        """The continuous latents, in the order of the model."""
        return self.structure.sites

    @property
    def latents(self) -> tuple[LatentShape, ...]:
        return tuple(LatentShape(site.name, tuple(site.shape)) for site in self.sites)

    @seeded
    def init(self, *, key):
        """Return a position uniform on (-2, 2), as numpyro and Stan do."""
        keys = jr.split(key, len(self.sites))
        return {
            site.name: jr.uniform(k, site.unconstrained_shape, minval=-2.0, maxval=2.0)
            for site, k in zip(self.sites, keys)
        }

    def log_jacobian(self, position: dict[str, Array]) -> Scalar:
        return self._log_det(self._at(position), position)

    def constrain(self, position):
        return self._draw(self._at(position))

    def unconstrain(self, draw: dict[str, Array]) -> dict[str, Array]:
        return self._inverse(self._given(draw))

    def log_prior(self, position):
        return self._log_prior(self._at(position), position)

    def _log_prior(self, run, position):
        terms = (jnp.sum(term) for term in self._prior_terms(run).values())
        return self._log_det(run, position) + sum(terms)

    def log_prior_terms(self, draw: dict[str, Array]) -> dict[str, Array]:
        return self._prior_terms(self._given(draw))

    def _repr_html_(self) -> str:
        return target_html(self, type(self).__name__)

    def variables(self, draw):
        return dict(draw)

    @property
    def dims(self):
        """Names of axes: of plates, for those they make, and those given by `with_coords`."""
        return dict(self.structure.dims)

    @property
    def coords(self):
        return self.labels

    def with_coords(self, coords: Mapping[str, Any], *, dims: Mapping[str, Any] | None = None):
        """Return a target with labels along axes; other labels compile nothing.

        Args:
            coords: Labels, or a length, by axis: names of plates, or those in `dims`.
            dims: A name for each axis, by latent, derived, observed or constant variable;
                in place of what plates say of it.

        Raises:
            ValueError: If names or lengths do not fit the model.
        """
        named, labels = name_axes(self, coords, dims)
        structure = self.structure._replace(dims=named)
        return dataclasses.replace(self, structure=structure, labels=labels)

    @seeded
    def sample_prior(self, *, key):
        return self._draw(self._prior(key))

    @seeded
    def sample_prior_position(self, *, key: PRNGKey) -> dict[str, Array]:
        return self._inverse(self._prior(key))


def checked[T: AbstractSitesTarget](target: T) -> T:
    """Return the target; refuse numbers, indices and names that would spoil a run of it."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(target)):
        return target
    check_values(target)
    check_indices(target)
    if target.observed_data or getattr(target.structure, "factors", ()):
        shapes = position_shapes(target)
        warn_of_slopes(jax.make_jaxpr(target.log_likelihood)(shapes), shapes, "the model", 3)
    drawn = jax.eval_shape(lambda key: target.constrain(target.init(key=key)), jr.key(0))
    check_variable_names((drawn, target.observed_data, target.constant_data), target.dims)
    return target
