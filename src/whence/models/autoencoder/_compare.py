"""A table of models on the same data: what their priors make, what their posteriors hold."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ...core._key import seeded
from ...core._types import PRNGKey
from ._importance import importance_log_prob
from ._posterior import encode, log_likelihood, reconstruct
from ._variational import FittedVariational
from .density._mixture import DirichletMixture
from .distance._distributional import distributional_sliced_wasserstein
from .distance._sliced import sliced_wasserstein
from .priors._problem import images_of

COLUMNS = {
    "prior_dsw": "DSW of the prior predictive from the data, in units of a pixel",
    "prior_sw2": "SW2 of it",
    "held_out": "log likelihood of held-out data given themselves, mixture over draws",
    "plugin": "the same at averaged parameters",
    "generative": "log density of held-out data by importance sampling",
    "mse": "mean squared error of a pixel of held-out data",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores by model and column, with standard errors over data of likelihoods; print it.

    Nats are per datum, NaN where a model has no such score.
    """

    scores: dict[str, dict[str, float]]
    errors: dict[str, dict[str, float]]

    def __str__(self) -> str:
        lines = [f"{'model':<20}" + "".join(f"{c:>12}" for c in COLUMNS)]
        for name, row in self.scores.items():
            digits = {c: 4 if c[:5] == "prior" or c == "mse" else 1 for c in COLUMNS}
            cells = [f"{row[c]:>12.{digits[c]}f}" for c in COLUMNS]
            lines.append(f"{name:<20}" + "".join(cells).replace("nan", "  -"))
        return "\n".join([*lines, *(f"{c}: {said}" for c, said in COLUMNS.items())])


@seeded
def compare_autoencoders(
    models: Mapping[str, Any],
    x: Any,
    held_out: Any,
    *,
    key: PRNGKey,
    components: int = 10,
    samples: int = 100,
) -> Comparison:
    """Score posteriors of Bayesian autoencoders, and variational ones, on the same data.

    The first columns look at the prior alone, which is what selection by DSWD does; the
    others at held-out data. Only `generative` is a density of data: the likelihood of data
    given themselves rewards copying.

    Args:
        models: Posteriors and `FittedVariational` by name.
        x: Data of the fit.
        held_out: Others.
        key: A typed key.
        components: Of the mixture of codes, for `generative`.
        samples: Codes for each datum and part of the proposal, for `generative`.
    """
    scores, errors = {}, {}
    for name, model in models.items():
        key_prior, key_score = jr.split(key)
        own, each = dict.fromkeys(COLUMNS, math.nan), {}
        if isinstance(model, FittedVariational):
            each["plugin"] = model.log_likelihood(held_out)
            if model.problem.objective != "wae":
                each["generative"] = model.log_prob(held_out, key=key_score, samples=samples)
            image = model.reconstruct(held_out)
        else:
            own |= _of_prior(model.target.model, x, key_prior)
            each["held_out"] = log_likelihood(model, held_out)
            each["plugin"] = log_likelihood(model, held_out, mode="plugin")
            mixture = DirichletMixture(components).fit(encode(model, x), key=key_score)
            rule = {"key": key_score, "samples": samples}
            each["generative"] = importance_log_prob(model, mixture, held_out, **rule).log_prob
            image = reconstruct(model, held_out)
        own |= {column: float(v.mean()) for column, v in each.items()}
        own["mse"] = float(np.mean((image - np.asarray(held_out)) ** 2))
        scores[name] = own
        errors[name] = {c: float(v.std(ddof=1) / len(v) ** 0.5) for c, v in each.items()}
    return Comparison(scores, errors)


def _of_prior(model: Any, x: Any, key: PRNGKey) -> dict[str, float]:
    key_images, key_sliced = jr.split(key)
    x = jnp.asarray(model.check_data(x))
    made = images_of(model, model.prior, model.observation.read(x), key_images)
    x = x.reshape(made.shape).astype(made.dtype)
    slicer = distributional_sliced_wasserstein(made, x, key=key_sliced, projections=200)
    sliced = sliced_wasserstein(made, x, key=key_sliced)
    return {"prior_sw2": sliced.distance, "prior_dsw": slicer.distance}
