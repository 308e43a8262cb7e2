"""`prior_predictive()`: what a model expects before it has seen data, for ArviZ's plots."""

from typing import Any

import jax.random as jr

from ..core._convert import whole
from ..core._engine import Sample
from ..core._key import as_key
from ..core._require import require_target
from ..core._target import AbstractDescribedTarget, AbstractTarget
from ._groups import Contents, Wish, export

_GROUPS = ("prior", "prior_predictive", "observed_data", "constant_data")


def prior_predictive(target: AbstractTarget, draws: Any = 500, *, key: Any = 0) -> Any:
    """Draw from the prior, and data given each draw, without any fit.

    Args:
        target: A target that describes its data, as `whence.condition` makes.
        draws: How many.
        key: A typed key or a whole number; by default a fixed one.

    Returns:
        An `xarray.DataTree` with the groups `prior`, `prior_predictive`, `observed_data` and
        `constant_data`, as `arviz.plot_prior_predictive` and `plot_ppc_dist` take it.

    Raises:
        ValueError: If the prior is improper, or the model cannot draw data.
    """
    require_target(target)
    if not isinstance(target, AbstractDescribedTarget):
        raise ValueError(
            "`target` must describe its data, such as one made by `whence.condition`; got "
            f"{type(target).__name__}."
        )
    number = whole("draws", least=1)(draws)
    none = Sample({}, {}, method="exact")
    contents = Contents(target, none, {}, target.dims, target.coords, {})
    wish = Wish(key=jr.fold_in(as_key(key), 0), prior_draws=number)
    return export(contents, _GROUPS, wish)
