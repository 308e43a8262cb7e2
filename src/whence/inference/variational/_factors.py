"""Families made of families: a product over latents, equal blocks, and single points."""

import abc
from fnmatch import fnmatchcase
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from ...core._convert import part, whole
from ...core._types import PRNGKey, Scalar
from ._family import (
    AbstractFamily,
    AbstractGaussian,
    FullRank,
    Layout,
    MeanField,
    Noise,
    Vector,
)


class Point(AbstractFamily):
    """One point without spread: its latents are optimised together with the rest.

    The ELBO is then a function of them: their log density counts, on unconstrained space, an
    entropy does not. With a flat prior this is type-II maximum likelihood, approximately.
    """

    def bind(self, layout: Layout) -> "Point":
        return self

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        return (True,) * len(layout)

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        return jnp.zeros((num, 0), like.dtype)

    def init(self, location: Vector) -> dict[str, Array]:
        return {"loc": location}

    def no_step(self, params: dict[str, Array]) -> dict[str, Array]:
        return jax.tree.map(jnp.zeros_like, params)

    def move(self, params: dict[str, Array], step: dict[str, Array]) -> dict[str, Array]:
        return {"loc": params["loc"] + step["loc"]}

    def transform(self, params: dict[str, Array], noise: Noise) -> Vector:
        return params["loc"]

    def log_prob(self, params: dict[str, Array], noise: Noise) -> Scalar:
        return jnp.zeros((), params["loc"].dtype)

    def score(self, params: dict[str, Array], noise: Noise) -> Vector:
        return jnp.zeros_like(params["loc"])

    def entropy(self, params: dict[str, Array]) -> Scalar:
        return jnp.zeros((), params["loc"].dtype)

    def describe(self, params: dict[str, Array]) -> dict[str, Array]:
        return {"loc": params["loc"]}


def _named_families(factors: Any) -> tuple[tuple[str, AbstractFamily], ...]:
    """Return the pairs of a mapping from names to families."""
    try:
        pairs = tuple(dict(factors).items())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`factors` must be a dict of families by name of latents; got {factors!r}."
        ) from error
    return tuple((name, part(f"factors[{name!r}]", AbstractFamily)(f)) for name, f in pairs)


class Factors(AbstractFamily):
    """A product of families over latents that are named, and `rest` for all others.

    For example `Factors({"inducing": Point()}, ScaleMixtureFamily("v"))`.

    Args:
        factors: A family for each name or pattern (`*`, `?`, `[...]`) of names of latents; all
            that match it share one member. The first pattern that matches counts.
        rest: Family of the latents that match none.
        places: Set by `bind`.
    """

    factors: tuple[tuple[str, AbstractFamily], ...] = eqx.field(
        default=(), converter=_named_families
    )
    rest: AbstractFamily = eqx.field(
        default=MeanField(), converter=part("rest", AbstractFamily)
    )
    places: tuple[tuple[tuple[int, int], ...], ...] = ()  # per factor, where its parts are

    @property
    def families(self) -> tuple[AbstractFamily, ...]:
        """The families of the factors in order, `rest` last."""
        return (*(family for _, family in self.factors), self.rest)

    def bind(self, layout: Layout) -> "Factors":
        owners = [self._owner(name) for name, *_ in layout]
        for number, (pattern, _) in enumerate(self.factors):
            if number not in owners:
                known = ", ".join(name for name, *_ in layout)
                raise ValueError(
                    f"`factors` must name latents of the target ({known}); got {pattern!r}."
                )
        places: list[list] = [[] for _ in self.families]
        layouts: list[list] = [[] for _ in self.families]
        start = 0
        for owner, named in zip(owners, layout):
            places[owner].append((start, start + named[1]))
            layouts[owner].append(named)
            start += named[1]
        *bound, rest = (
            family.bind(tuple(own)) if own else family
            for family, own in zip(self.families, layouts)
        )
        names = (name for name, _ in self.factors)
        return Factors(dict(zip(names, bound)), rest, tuple(map(tuple, places)))

    def owner(self, name: str) -> AbstractFamily:
        """Return the family of a latent.

        Args:
            name: Of the latent.
        """
        return self.families[self._owner(name)]

    def _owner(self, name: str) -> int:
        matches = (fnmatchcase(name, pattern) for pattern, _ in self.factors)
        return next((i for i, match in enumerate(matches) if match), len(self.factors))

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        owners = [self._owner(name) for name, *_ in layout]
        found = [False] * len(layout)
        for number, family in enumerate(self.families):
            mine = [i for i, owner in enumerate(owners) if owner == number]
            for i, same in zip(mine, family.shared(tuple(layout[i] for i in mine))):
                found[i] = same
        return tuple(found)

    def _split(self, vector: Vector) -> list[Array]:
        empty = vector[:0]
        return [
            jnp.concatenate([empty, *(vector[start:stop] for start, stop in place)])
            for place in self.places
        ]

    def join(self, vectors: list[Array]) -> Array:
        """Return the flat position of which these are the parts of each factor."""
        parts = {}
        for vector, place in zip(vectors, self.places):
            used = 0
            for start, stop in place:
                parts[start] = vector[used : used + stop - start]
                used += stop - start
        return jnp.concatenate([parts[start] for start in sorted(parts)])

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        keys = jr.split(key, len(self.families))
        parts = zip(self.families, self._split(like), keys)
        return tuple(family.noise(part, num, key=k) for family, part, k in parts)

    def init(self, location: Vector) -> PyTree:
        return tuple(f.init(part) for f, part in zip(self.families, self._split(location)))

    def no_step(self, params: PyTree) -> PyTree:
        return tuple(f.no_step(p) for f, p in zip(self.families, params))

    def move(self, params: PyTree, step: PyTree) -> PyTree:
        return tuple(f.move(p, s) for f, p, s in zip(self.families, params, step))

    def transform(self, params: PyTree, noise: Noise) -> Vector:
        return self.join([f.transform(p, n) for f, p, n in zip(self.families, params, noise)])

    def log_prob(self, params: PyTree, noise: Noise) -> Scalar:
        parts = zip(self.families, params, noise)
        return jnp.sum(jnp.stack([f.log_prob(p, n) for f, p, n in parts]))

    def score(self, params: PyTree, noise: Noise) -> Vector:
        return self.join([f.score(p, n) for f, p, n in zip(self.families, params, noise)])

    def entropy(self, params: PyTree) -> Scalar:
        return jnp.sum(jnp.stack([f.entropy(p) for f, p in zip(self.families, params)]))

    def describe(self, params: PyTree) -> dict[str, Any]:
        names = [name for name, _ in self.factors] + ["rest"]
        return {
            f"{name}: {what}": value
            for name, family, own in zip(names, self.families, params)
            for what, value in family.describe(own).items()
        }


class AbstractRepeated(AbstractFamily):
    """Independent members of one family for parts of equal size of a flat position.

    Attributes:
        family: Family of a part.
    """

    family: eqx.AbstractVar[AbstractFamily]

    @abc.abstractmethod
    def each(self, params: PyTree) -> PyTree:
        """Return parameters of the family of each part, with that leading axis."""

    @abc.abstractmethod
    def apart(self, vector: Vector) -> Float[Array, "part width"]:
        """Return the parts of a flat position."""

    @abc.abstractmethod
    def together(self, parts: Float[Array, "part width"]) -> Vector:
        """Return the flat position of these parts."""

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        return (False,) * len(layout)

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        parts = self.apart(like)
        one = lambda k: self.family.noise(parts[0], num, key=k)
        return jax.vmap(one, out_axes=1)(jr.split(key, len(parts)))

    def transform(self, params: PyTree, noise: Noise) -> Vector:
        return self.together(jax.vmap(self.family.transform)(self.each(params), noise))

    def log_prob_parts(self, params: PyTree, noise: Noise) -> Float[Array, " part"]:
        """Return the log density of each part, in nats."""
        return jax.vmap(self.family.log_prob)(self.each(params), noise)

    def log_prob(self, params: PyTree, noise: Noise) -> Scalar:
        return self.log_prob_parts(params, noise).sum()

    def score(self, params: PyTree, noise: Noise) -> Vector:
        return self.together(jax.vmap(self.family.score)(self.each(params), noise))

    def entropy(self, params: PyTree) -> Scalar:
        return jax.vmap(self.family.entropy)(self.each(params)).sum()


class AbstractTable(AbstractRepeated):
    """Each part has parameters of its own."""

    def each(self, params: PyTree) -> PyTree:
        return params

    def init(self, location: Vector) -> PyTree:
        return jax.vmap(self.family.init)(self.apart(location))

    def no_step(self, params: PyTree) -> PyTree:
        return jax.vmap(self.family.no_step)(params)

    def move(self, params: PyTree, step: PyTree) -> PyTree:
        return jax.vmap(self.family.move)(params, step)

    def describe(self, params: PyTree) -> dict[str, Any]:
        return jax.vmap(self.family.describe)(params)


class Blocks(AbstractTable, AbstractGaussian):
    """Independent members of one Gaussian family for equal blocks of coordinates.

    With `FullRank()` the covariance is block diagonal: for latents of shape
    `(classes, points)` and `blocks=classes`, one matrix per class.

    Attributes:
        blocks: Number of blocks; they follow each other in a flat position.
        family: Family of each.
    """

    blocks: int = eqx.field(static=True, converter=whole("blocks", least=1))
    family: AbstractGaussian = eqx.field(
        default=FullRank(), converter=part("family", AbstractGaussian)
    )

    def bind(self, layout: Layout) -> "Blocks":
        """Itself, if the blocks are equal."""
        total = sum(part[1] for part in layout)
        if total % self.blocks:
            raise ValueError(
                f"`blocks` must divide the {total} coordinates of the latents "
                f"({', '.join(name for name, *_ in layout)}); got {self.blocks}."
            )
        return self

    def apart(self, vector: Vector) -> Float[Array, "part width"]:
        return vector.reshape(self.blocks, -1)

    def together(self, parts: Float[Array, "part width"]) -> Vector:
        return parts.ravel()

    def location(self, params: PyTree) -> Vector:
        return self.together(jax.vmap(self.family.location)(params))

    def inverse(self, params: PyTree, position: Vector) -> Noise:
        return jax.vmap(self.family.inverse)(params, self.apart(position))
