"""A zoo of real posteriors with reference draws: those of posteriordb.

`ZOO` names them all. Their data and draws are not in the package, except for a few small
ones whose data and reference moments are: `shipped` lists them.

References:
    Magnusson, Torgander, Buerkner, Zhang, Carpenter and Vehtari (2025), "posteriordb:
    Testing, Benchmarking and Developing Bayesian Inference Algorithms", AISTATS.
"""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from . import _zoo_models as models, _zoo_regression as regression
from ._compare import Estimate
from ._zoo_types import Entry


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_BETA_SIGMA = _same("beta", "sigma")

ZOO: dict[str, Entry] = {
    "arK-arK": Entry(models.ark, _same("alpha", "beta", "sigma")),
    "bball_drive_event_0-hmm_drive_0": Entry(
        models.hmm_drive, _same("theta1", "theta2", "phi") | {"lambda": "lam"}
    ),
    "diamonds-diamonds": Entry(regression.diamonds, _same("b", "Intercept", "sigma")),
    "earnings-earn_height": Entry(regression.earn_height, _BETA_SIGMA),
    "earnings-log10earn_height": Entry(regression.log10earn_height, _BETA_SIGMA),
    "earnings-logearn_height": Entry(regression.logearn_height, _BETA_SIGMA),
    "earnings-logearn_interaction": Entry(regression.logearn_interaction, _BETA_SIGMA),
    "earnings-logearn_logheight_male": Entry(regression.logearn_logheight_male, _BETA_SIGMA),
    "eight_schools-eight_schools_noncentered": Entry(
        models.eight_schools, _same("theta", "mu", "tau")
    ),
    "garch-garch11": Entry(models.garch11, _same("mu", "alpha0", "alpha1", "beta1")),
    "gp_pois_regr-gp_pois_regr": Entry(models.gp_pois_regr, _same("rho", "alpha", "f")),
    "hudson_lynx_hare-lotka_volterra": Entry(
        models.lotka_volterra, _same("theta", "z_init", "sigma")
    ),
    "kidiq-kidscore_momhs": Entry(regression.kidscore("mom_hs"), _BETA_SIGMA),
    "kidiq-kidscore_momhsiq": Entry(regression.kidscore("mom_hs", "mom_iq"), _BETA_SIGMA),
    "kidiq-kidscore_momiq": Entry(regression.kidscore("mom_iq"), _BETA_SIGMA),
    "kidiq_with_mom_work-kidscore_interaction_c": Entry(
        regression.kidscore_interaction("c"), _BETA_SIGMA
    ),
    "kidiq_with_mom_work-kidscore_interaction_c2": Entry(
        regression.kidscore_interaction("c2"), _BETA_SIGMA
    ),
    "kidiq_with_mom_work-kidscore_interaction_z": Entry(
        regression.kidscore_interaction("z"), _BETA_SIGMA
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": Entry(
        models.low_dim_gauss_mix, _same("mu", "sigma", "theta")
    ),
    "mesquite-logmesquite": Entry(
        regression.logmesquite(
            "diam1", "diam2", "canopy_height", "total_height", "density", "group"
        ),
        _BETA_SIGMA,
    ),
    "mesquite-logmesquite_logva": Entry(
        regression.logmesquite("volume", "area", "group"), _BETA_SIGMA
    ),
    "mesquite-logmesquite_logvas": Entry(
        regression.logmesquite("volume", "area", "shape", "total_height", "density", "group"),
        _BETA_SIGMA,
    ),
    "mesquite-logmesquite_logvolume": Entry(regression.logmesquite("volume"), _BETA_SIGMA),
    "mesquite-mesquite": Entry(regression.mesquite, _BETA_SIGMA),
    **{
        f"nes{year}-nes": Entry(regression.nes, _BETA_SIGMA)
        for year in (1972, 1976, 1980, 1984, 1992, 1996, 2000)
    },
    "sblri-blr": Entry(regression.sblri_blr, _BETA_SIGMA),
}

_FOLDER = resources.files(__package__) / "data"


def shipped() -> tuple[str, ...]:
    """Names of the posteriors whose data and reference moments are in the package."""
    files = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(f.removesuffix(".json") for f in files if f.endswith(".json")))


def load_shipped(name: str) -> tuple[Mapping[str, Any], dict[str, Estimate]]:
    """Data and reference moments of a posterior that is in the package.

    Returns:
        The data under Stan's names, for `ZOO[name].build`, and by scalar variable
        (`beta[1]`) the moments of the reference draws with their standard errors.

    Raises:
        ValueError: If `name` is not one of `shipped()`.
    """
    if name not in shipped():
        raise ValueError(f"`name` must be one of {shipped()}; got {name!r}.")
    content = json.loads((_FOLDER / f"{name}.json").read_text())
    reference = {k: Estimate(**v) for k, v in content["reference"].items()}
    return content["data"], reference
