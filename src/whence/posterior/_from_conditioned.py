"""Independent draws of a closed form, in the form of a posterior."""

from typing import Any

import numpy as np

from ..core._conditioned import Conditioned
from ..core._convert import whole
from ..core._engine import Sample
from ..core._require import require_key
from ..core._types import AnyArray, PRNGKey
from ..diagnostics._records import Remarks
from ._citation import references
from ._from_draws import external_manifest


def exact(conditioned: Any, x: AnyArray, draws: Any, key: PRNGKey) -> dict[str, Any]:
    """Return what a `Posterior` of a closed form holds; see `Posterior.from_conditioned`."""
    if not isinstance(conditioned, Conditioned):
        raise ValueError(
            "`conditioned` must be a `whence.core.Conditioned`, such as `condition` of a "
            f"`ScaleMixture` returns; got {type(conditioned).__name__}."
        )
    require_key(key)
    drawn = conditioned.sample(x, key=key, draws=whole("draws", least=1)(draws))
    values = {name: np.asarray(value)[None] for name, value in drawn.items()}
    said = conditioned.remarks
    sample = Sample(
        values,
        {},
        method="exact",
        log_evidence=float(conditioned.log_evidence),
        record=Remarks(said) if said else None,
    )
    engine = type(conditioned).__name__
    noted = {"references": references(conditioned)}
    axes = ("point", "output")[: values["latent"].ndim - 2]
    return {
        "sample": sample,
        "engine": engine,
        "manifest": external_manifest(conditioned, engine) | noted,
        "variables": values,
        "described": {"dims": {"latent": axes}, "coords": {}},
    }
