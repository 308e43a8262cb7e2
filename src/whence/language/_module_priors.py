"""Priors for the arrays of a module: by rule, by path, by type of layer."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, Normal

from ..core._convert import positive

_NORMALISING = eqx.nn.LayerNorm | eqx.nn.GroupNorm | eqx.nn.RMSNorm


class Leaf(NamedTuple):
    """An array of a module.

    Attributes:
        path: Where it is, for example `layers.0.weight`.
        value: The array.
        owners: The modules around it, outermost first.
    """

    path: str
    value: Any
    owners: tuple[Any, ...]


class FanIn(eqx.Module):
    """Normal priors under which a layer's outputs keep their size, however wide the layer.

    Weights are Normal(0, scale / sqrt(fan_in)), where `fan_in` is the number of inputs that
    one output sums over, as Equinox lays out its layers: `(out, in)` for `Linear`,
    `(out, in / groups, *kernel)` for convolutions; other arrays with two axes or more count
    all but the first. Rows of an `Embedding` are chosen, not summed: Normal(0, scale). So
    are biases and arrays with one axis or none, and gains of normalising layers are
    Normal(1, scale).

    Attributes:
        scale: Standard deviation of a sum over inputs of unit size.

    References:
        Neal (1996), "Bayesian Learning for Neural Networks", chapter 2: the limit of a wide
        layer exists under this scaling, and is a Gaussian process.
    """

    scale: float = eqx.field(default=1.0, converter=positive("scale"))

    def prior(self, leaf: Leaf) -> Normal:
        """Return the prior of one entry of an array."""
        name = leaf.path.rpartition(".")[2]
        gain = isinstance(_owner(leaf), _NORMALISING) and not name.startswith("bias")
        return Normal(float(gain), self.scale / math.sqrt(_fan_in(leaf, name)))


def _owner(leaf: Leaf):
    return leaf.owners[-1] if leaf.owners else None


def _fan_in(leaf: Leaf, name: str) -> int:
    owner, shape = _owner(leaf), leaf.value.shape
    if name.startswith("bias") or isinstance(owner, eqx.nn.Embedding | _NORMALISING):
        return 1
    if isinstance(owner, eqx.nn.Conv | eqx.nn.ConvTranspose):
        return owner.in_channels // owner.groups * math.prod(owner.kernel_size)
    if isinstance(owner, eqx.nn.Linear | eqx.nn.GRUCell | eqx.nn.LSTMCell):
        return max(1, shape[-1])  # of layers stacked by `vmap`, too
    return max(1, math.prod(shape[1:])) if len(shape) > 1 else 1


def priors_of(prior: Any, leaves: list[Leaf]) -> dict[str, Distribution]:
    """Return the prior of each leaf that has one, by path."""
    if isinstance(prior, Mapping):
        _check_keys(prior, leaves)
    found = {}
    for leaf in leaves:
        made = _prior(prior, leaf)
        if made is not None:
            found[leaf.path] = jax.tree.map(as_data, made)
    return found


def _prior(rule, leaf: Leaf) -> Distribution | None:
    if isinstance(rule, Mapping):
        matching = [value for key, value in rule.items() if _matches(key, leaf)]
        if not matching:
            raise ValueError(
                f"`prior` has no entry for `{leaf.path}` of shape {leaf.value.shape}. Add one "
                "(`'*'` as the last key matches the rest), or None as its prior to keep the "
                "array as it is."
            )
        rule = matching[0]
    if callable(rule) and not isinstance(rule, Distribution | FanIn | type):
        rule = rule(leaf.path, leaf.value)
    if isinstance(rule, FanIn):
        rule = rule.prior(leaf)
    if rule is not None and not isinstance(rule, Distribution):
        raise ValueError(
            f"The prior of `{leaf.path}` must be a numpyro distribution, a `FanIn` or None; "
            f"got {rule!r}."
        )
    return rule


def _matches(key, leaf: Leaf) -> bool:
    if isinstance(key, str):
        return fnmatchcase(leaf.path, key)
    return any(isinstance(owner, key) for owner in leaf.owners)


def _check_keys(prior: Mapping, leaves: list[Leaf]) -> None:
    for key in prior:
        if not isinstance(key, str | type):
            raise ValueError(
                "Keys of `prior` must be types of layers or patterns of paths "
                f"(`'*.weight'`); got {key!r}."
            )
        if not any(_matches(key, leaf) for leaf in leaves):
            known = ", ".join(leaf.path for leaf in leaves[:8])
            more = f" and {len(leaves) - 8} more" if len(leaves) > 8 else ""
            raise ValueError(f"No array matches {key!r} of `prior`; there are {known}{more}.")


def as_data(leaf: Any) -> Any:
    """Make a number of a prior an array."""
    # A Python float would be part of the program: another scale, another compilation.
    if isinstance(leaf, float | np.ndarray | np.floating):
        return jnp.asarray(leaf)
    return leaf
