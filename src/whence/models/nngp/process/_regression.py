"""Regression with a scale mixture whose parameters are latents, for any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ....core._convert import part, whole
from ....core._types import AnyArray, PRNGKey
from ....language._latent import UNDRAWN, Coords, Latent, latents
from ....language._model import Model, sites
from .._parameter import Number, Parameter, Unknown, parameter, unknowns, with_values
from ..laws._abstract_law import AbstractLaw
from ..laws._numerical import scale_law
from ..network._abstract_layer import AbstractLayer
from ._cholesky import explain_factor
from ._identifiability import degeneracies
from ._joint import Joint
from ._remarks import remarks_on_inputs, remarks_on_moments, remarks_on_targets, repeated_rows
from ._scale_mixture import ScaleMixture, ScaleMixtureConditioned


def unknown_latents(model: Any) -> dict[str, Latent]:
    """Declare one latent for each parameter that has a prior."""
    return {
        name: Latent(unknown.prior, None, (), False, "prior")
        for name, unknown in unknowns(model.description).items()
    }


class Regression(Model):
    """`y | v ~ N(0, v (K + noise I))`, v of a law; what has a prior is a latent.

    Wherever a variance of a layer, `noise` or a parameter of a law is a number, a numpyro
    distribution may stand: it becomes a latent named by its path, such as
    `network.layers.0.weight_variance`, `scale.shape` or `noise`. The scale v is integrated
    out in closed form or by quadrature (`PointMass(prior)` would make it a latent too).

    Data depend on each other given a draw, so their log likelihood is one number:
    minibatches are refused, and predictions are made given the observed data.

    Args:
        network: Description of an infinitely wide network.
        scale: Law of v, or a numpyro distribution on the positive numbers, that law itself.
        noise: Variance of the noise as a multiple of v.
        outputs: Number of outputs, which share v; None if `y` has shape `(rows,)`.
        coords: As for any model.

    References:
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408.
    """

    network: AbstractLayer
    scale: AbstractLaw
    noise: Parameter
    outputs: int | None = eqx.field(static=True)
    values: dict[str, Any] = latents(unknown_latents)

    def __init__(
        self,
        network: AbstractLayer,
        scale: AbstractLaw | dist.Distribution,
        noise: Number = 0.0,
        *,
        outputs: int | None = None,
        coords: Mapping[str, Any] | None = None,
    ):
        self.network = part("network", AbstractLayer)(network)
        self.scale = scale_law(scale)
        self.noise = parameter("noise", noise, zero=True)
        self.outputs = whole("outputs", least=1, optional=True)(outputs)
        self.coords = Coords(coords)
        self.values = dict.fromkeys(unknowns(self.description), UNDRAWN)
        sites(self)  # refuses priors that do not fit

    @property
    def description(self) -> dict[str, Any]:
        """Network, law and noise, with priors where there is no value."""
        return {"network": self.network, "scale": self.scale, "noise": self.noise}

    def process(self) -> ScaleMixture:
        """Return the process of this draw, with all its closed forms.

        Raises:
            ValueError: If latents have no values yet.
        """
        if any(value is UNDRAWN for value in self.values.values()):
            raise ValueError(
                "The parameters of this model have no values yet; `posterior.map`, or "
                "`sample_prior(key)`, gives a model that has."
            )
        return ScaleMixture(**with_values(self.description, self.values))

    def likelihood(self, x: AnyArray) -> Joint:
        return self.process().prior(x, noisy=True, outputs=self.outputs)

    def given(self, y: AnyArray, x: AnyArray) -> ScaleMixtureConditioned:
        """Return the process of this draw given observations.

        Its `latent(new)` is the law of the function at new inputs, `observation(new)` that
        of new observations, `scale` that of v.
        """
        return self.process().condition(x, y)

    def predict_given(self, y: Any, inputs: tuple, new_inputs: tuple, *, key: PRNGKey) -> Array:
        drawn = jnp.asarray(self.given(y, *inputs).observation(*new_inputs).sample(key))
        return drawn if self.outputs is None else jnp.stack(jnp.split(drawn, self.outputs), -1)

    def log_density_given_rest(self, y: AnyArray, x: AnyArray) -> Array:
        """Return the log density of each row of `y` given all others, exactly."""
        return self.given(y, x).leave_one_out.log_density

    def check_observed(self, y: Any, likelihood: Any) -> None:
        """Refuse data that are not numbers, one for each row of the inputs (and output)."""
        if isinstance(y, Mapping):
            return
        got, want = jnp.shape(y), tuple(likelihood.shape())
        if got != want:
            hint = ""
            if len(got) == 2 and self.outputs is None and got[0] == want[0]:
                hint = f" For several outputs say so: `Regression(..., outputs={got[1]})`."
            raise ValueError(
                f"`y` must have shape {want}, one number for each row of the inputs"
                f"{' and output' * (self.outputs is not None)}; got {got}.{hint}"
            )
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(
                f"`y` must be floating-point numbers; got {y.dtype}. Labels are no numbers to "
                "regress on: classify them. If these are measurements, pass `y.astype(float)`."
            )
        if not isinstance(y, Tracer) and not np.all(np.isfinite(np.asarray(y))):
            raise ValueError(f"`y` must be finite; {np.sum(~np.isfinite(y))} are not.")

    def review(self, y: Any, *inputs: Any) -> tuple[str, ...]:
        """Refuse what has no posterior; return what to know of data and priors, in words."""
        said, (x,) = degeneracies(self.description), inputs
        if any(isinstance(value, Tracer) for value in jax.tree.leaves((self, y, x))):
            return said
        noiseless = not isinstance(self.noise, Unknown) and float(self.noise) == 0
        if noiseless and (repeated := repeated_rows(x)):
            raise ValueError(
                f"`noise` must be above 0, a number or a prior, where rows of the inputs "
                f"repeat each other; got 0, and {repeated} of {len(x)} rows that do."
            )
        said = (*said, *remarks_on_inputs(x), *remarks_on_targets(y))
        if unknowns(self.scale):
            return said
        order = float(self.scale.tail()) + np.size(y) / 2
        return (*said, *remarks_on_moments(order))

    def explain(self, y: Any, *inputs: Any) -> str:
        """Say why the log density of data under this draw is not finite."""
        process, (x,) = self.process(), inputs
        return explain_factor(process._with_noise(process.network.nngp(x)), process.noise)
