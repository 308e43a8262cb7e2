"""Families for local latents: a table of parameters by data row, or an encoder of the row.

Both are one family for each row, of which a minibatch touches those of its rows. Parameters
of all rows are `Local`'s state; a step of `Amortised` is one of its encoder, whatever the row.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from ...core._convert import part
from ...core._types import PRNGKey
from ._factors import AbstractRepeated, AbstractTable, Factors
from ._family import AbstractFamily, Layout, MeanField, Vector, key_of

Rows = Int[Array, " batch"]


@runtime_checkable
class TakesRows(Protocol):
    """A target that can give the data of some rows."""

    def take(self, rows: Array) -> tuple[Any, tuple]:
        """Return data and inputs; arrays with one entry per row at `rows` only."""
        ...


class AbstractByRow(AbstractRepeated):
    """Independent members of one family, one for each data row.

    Attributes:
        widths: Sizes of the parts of a row; set by `bind`.
    """

    widths: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def at_rows(self, params: PyTree, rows: Rows, target: Any) -> PyTree:
        """Return the parameters that members of some rows are made of."""

    @abc.abstractmethod
    def with_rows(self, params: PyTree, new: PyTree, rows: Rows) -> PyTree:
        """Return the parameters with those of some rows replaced."""

    def bind(self, layout: Layout) -> "AbstractByRow":
        """Itself with the sizes of the latents of a row."""
        named = []
        for name, size, *rows in layout:
            if not rows or not rows[0]:
                raise ValueError(
                    f"`{type(self).__name__}` must be of latents with one value per data row, "
                    f"declared by `latent(prior, local=True)`; got {name!r}, which has none."
                )
            named.append((name, size // rows[0]))
        family = self.family.bind(tuple(named))
        return dataclasses.replace(self, family=family, widths=tuple(w for _, w in named))

    def times_rows(self, vector: Vector, factors: Float[Array, " row"]) -> Vector:
        """Return a vector with the coordinates of each row times its factor."""
        return self.together(self.apart(vector) * factors[:, None])

    @property
    def _ends(self) -> list[int]:
        return [sum(self.widths[:i]) for i in range(1, len(self.widths))]

    def apart(self, vector: Vector) -> Float[Array, "row width"]:
        rows = vector.size // sum(self.widths)
        parts = jnp.split(vector, [rows * end for end in self._ends])
        return jnp.concatenate([p.reshape(rows, -1) for p in parts], axis=1)

    def together(self, parts: Float[Array, "row width"]) -> Vector:
        return jnp.concatenate([p.ravel() for p in jnp.split(parts, self._ends, axis=1)])


class Local(AbstractTable, AbstractByRow):
    """A table: each data row has parameters of its own, which only its batches change.

    Attributes:
        family: Family of the latents of a row.
        widths: Set by `bind`.

    References:
        Hoffman, Blei, Wang, Paisley (2013), Stochastic variational inference, JMLR 14.
    """

    family: AbstractFamily = eqx.field(
        default=MeanField(), converter=part("family", AbstractFamily)
    )
    widths: tuple[int, ...] = ()

    def at_rows(self, params: PyTree, rows: Rows, target: Any) -> PyTree:
        return jax.tree.map(lambda x: x[rows], params)

    def with_rows(self, params: PyTree, new: PyTree, rows: Rows) -> PyTree:
        return jax.tree.map(lambda x, n: x.at[rows].set(n), params, new)


class Amortised(AbstractByRow):
    """An encoder: the parameters of a row are a function of its data, trained with the rest.

    `Amortised(lambda key: eqx.nn.MLP(64, 4, 32, 1, key=key))` for rows of 64 numbers and two
    latents with means and log scales. A trained encoder serves rows that it has not seen.

    Attributes:
        encoder: Makes the encoder, given a key: a module, called with the data of a row (and
            with its inputs, if the likelihood has any). It returns the parameters of
            `family` for that row, as one vector (of `MeanField()` the means, then the log
            scales) or by name.
        family: Family of the latents of a row.
        widths: Set by `bind`.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114.
    """

    encoder: Callable[[PRNGKey], Callable[..., Any]]
    family: AbstractFamily = eqx.field(
        default=MeanField(), converter=part("family", AbstractFamily)
    )
    widths: tuple[int, ...] = ()

    def __check_init__(self):
        if isinstance(self.encoder, eqx.Module) or not callable(self.encoder):
            raise ValueError(
                "`encoder` must be a function of a key that makes the module, such as "
                "`lambda key: eqx.nn.MLP(64, 4, 32, 1, key=key)`; got "
                f"{type(self.encoder).__name__}."
            )

    def check(self, target: Any) -> None:
        """Raise `ValueError` unless the encoder fits the target and the family.

        Args:
            target: The target.

        Raises:
            ValueError: If it does not.
        """
        if not isinstance(target, TakesRows):
            raise ValueError(
                "`Amortised` needs a target that gives the data of some rows, by a method "
                f"`take(rows)`; {type(target).__name__} has none."
            )
        rows = jnp.zeros(1, jnp.int32)

        def encode(key):
            params = {"encoder": _leaves(self.encoder(key))}
            return self._encode(self.at_rows(params, rows, target))

        try:
            found = jax.eval_shape(encode, jr.key(0))
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(
                "`encoder` must take the data of one row (and its inputs); it fails: "
                f"{str(error).splitlines()[0]}"
            ) from error
        want = jax.eval_shape(self.family.init, jnp.zeros(sum(self.widths)))
        number = sum(leaf.size for leaf in jax.tree.leaves(want))
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found)
        if shapes(one) not in (shapes(want), (number,)):
            names = ", ".join(f"{name} {leaf.shape}" for name, leaf in want.items())
            raise ValueError(
                f"`encoder` must return the {number} parameters of "
                f"{type(self.family).__name__} for one row ({names}); got {shapes(one)}."
            )

    def each(self, params: PyTree) -> PyTree:
        found = self._encode(params)
        if not eqx.is_array(found):
            return found
        _, unravel = ravel_pytree(self.family.init(jnp.zeros(sum(self.widths), found.dtype)))
        return jax.vmap(unravel)(found)

    def _encode(self, params: PyTree) -> PyTree:
        made = eqx.filter_eval_shape(self.encoder, jr.key(0))
        is_leaf = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        leaves, treedef = jax.tree.flatten(made)
        given = iter(params["encoder"])
        leaves = [next(given) if is_leaf(leaf) else leaf for leaf in leaves]
        encoder = jax.tree.unflatten(treedef, leaves)
        return jax.vmap(lambda row: encoder(*row))(params["data"])

    def at_rows(self, params: PyTree, rows: Rows, target: Any) -> PyTree:
        y, inputs = target.take(rows)
        whole = jax.tree.leaves((target.y, target.inputs))
        leaves, treedef = jax.tree.flatten((y, *inputs))
        is_row = lambda w: jnp.ndim(w) > 0 and jnp.shape(w)[0] == target.num_data
        # What has no entry per row is the same for all.
        by_row = [
            x if is_row(w) else jnp.broadcast_to(x, (len(rows), *jnp.shape(x)))
            for x, w in zip(leaves, whole)
        ]
        return {**params, "data": jax.tree.unflatten(treedef, by_row)}

    def with_rows(self, params: PyTree, new: PyTree, rows: Rows) -> PyTree:
        return {"encoder": new["encoder"]}

    def init(self, location: Vector) -> PyTree:
        return {"encoder": _leaves(self.encoder(key_of(location)))}

    def no_step(self, params: PyTree) -> PyTree:
        return {"encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}

    def move(self, params: PyTree, step: PyTree) -> PyTree:
        return {**params, "encoder": jax.tree.map(jnp.add, params["encoder"], step["encoder"])}

    def describe(self, params: PyTree) -> dict[str, Any]:
        return {"encoder": params["encoder"]}


def _leaves(module: Any) -> tuple[Array, ...]:
    """Return the arrays of an encoder, which are all trained."""
    arrays = [leaf for leaf in jax.tree.leaves(module) if eqx.is_array(leaf)]
    for array in arrays:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"`encoder` must hold floating-point arrays; got {array.dtype}.")
    return tuple(arrays)


# Over the factors of a product.


def map_factors(function: Callable[..., Any], family: AbstractFamily, *trees: PyTree) -> PyTree:
    """Return `function(factor, *trees)` of each factor, in the form of parameters."""
    if not isinstance(family, Factors):
        return function(family, *trees)
    each = zip(family.families, *trees)
    return tuple(map_factors(function, *one) for one in each)


def factors_of(family: AbstractFamily, *trees: PyTree) -> list[tuple]:
    """Return each factor with what is its own of trees in the form of parameters."""
    found: list[tuple] = []
    map_factors(lambda *own: found.append(own), family, *trees)
    return found


def has_kind(family: AbstractFamily, kind: type) -> bool:
    """Whether a part of the family is of this kind."""
    return any(isinstance(part, kind) for part, *_ in factors_of(family))


def has_rows(family: AbstractFamily) -> bool:
    """Whether a part of the family is one member for each data row."""
    return has_kind(family, AbstractByRow)


def at_rows(family: AbstractFamily, params: PyTree, rows: Rows, target: Any) -> PyTree:
    """Return what members of some rows are made of."""
    own = lambda f, p: f.at_rows(p, rows, target) if isinstance(f, AbstractByRow) else p
    return map_factors(own, family, params)


def with_rows(family: AbstractFamily, params: PyTree, new: PyTree, rows: Rows | None) -> PyTree:
    """Return parameters with those of some rows replaced."""

    def one(part, old, moved):
        if rows is None or not isinstance(part, AbstractByRow):
            return moved
        return part.with_rows(old, moved, rows)

    return map_factors(one, family, params, new)


def split_tables(family: AbstractFamily, tree: PyTree) -> tuple[PyTree, PyTree]:
    """Return what is no table, and the tables; each with None in place of the other."""
    is_table = lambda f: isinstance(f, Local)
    rest = map_factors(lambda f, t: None if is_table(f) else t, family, tree)
    tables = map_factors(lambda f, t: t if is_table(f) else None, family, tree)
    return rest, tables


def join_tables(family: AbstractFamily, rest: PyTree, tables: PyTree) -> PyTree:
    """Undo `split_tables`."""
    one = lambda f, r, t: t if isinstance(f, Local) else r
    return map_factors(one, family, rest, tables)
