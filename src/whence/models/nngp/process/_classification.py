"""Classification by a scale mixture: a sparse model of labels, for any engine."""

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

from ....core._convert import flag, number, part, whole
from ....core._types import AnyArray
from ....language._latent import UNDRAWN, Coords, Latent, latents
from ....language._model import Model, sites
from .._parameter import scalar, unknowns, with_values
from ..laws._abstract_law import AbstractLaw
from ..laws._closed_form import Jeffreys, PointMass
from ..laws._numerical import Draws, FromDistribution, scale_law
from ..network._abstract_layer import AbstractLayer
from ..network._arc_cosine import safe_sqrt
from ._cholesky import is_definite
from ._inducing import Projection, factor, project
from ._regression import unknown_latents
from ._softmax import SoftmaxLabels


def _parameters(model: Classification) -> dict[str, Latent]:
    """Declare what has a prior, and the inducing inputs if they are to be found."""
    specs = unknown_latents(model)
    if model.train_inducing:
        flat = dist.ImproperUniform(dist.constraints.real, (), model.inducing.shape)
        specs["inducing"] = Latent(flat, None, (), False, model.inducing)
    return specs


def _values(model: Classification) -> dict[str, Latent]:
    """Declare the scale, unless it is known, and the inducing values."""
    shape = (model.classes, len(model.inducing))
    white = Latent(dist.Normal(0.0, 1.0), shape, (), False, "prior")
    if isinstance(model.scale, PointMass):
        return {"white": white}
    return {"v": Latent(Classification.scale_prior, None, (), False), "white": white}


class Classification(Model):
    """`y ~ categorical(softmax(f(x)))`, `f_c | v ~ GP(0, v K)`, one v for all classes.

    Latents are the scale `v` and `white`, shape `(classes, inducing)`: the values of f at the
    inducing inputs are `sqrt(v) white L'` with `K(inducing, inducing) = L L'`. With them f at
    another input is normal, with a variance that is v times what the inducing inputs leave
    over. The log likelihood of a row is the mean of `log softmax(f)` over that normal law,
    integrated to 5e-4 nats. So for any engine:

    - with fewer inducing inputs than rows the evidence of this model is a lower bound of that
      of the process, and the ELBO of `BBVI` is the bound of the sparse variational Student t
      process (`ScaleMixtureFamily("v")`) or, with `PointMass` for a scale, of the sparse
      variational Gaussian process (`MeanField()` or `FullRank()`);
    - with the inducing inputs at the rows and no jitter it is the process itself.

    Rows are independent given the latents: minibatches work. What has a prior in place of a
    number (see `Regression`) is a latent too, in `parameters`.

    Args:
        network: Description of an infinitely wide network; its readout should have variance
            1, which v multiplies.
        scale: Law of v, or a numpyro distribution on the positive numbers, that law itself;
            `PointMass(v)` for a known scale.
        inducing: Inducing inputs, shape `(inducing, features)` or
            `(inducing, *spatial, channels)`; `stratified_rows` chooses them among data.
        classes: Number of classes; labels are 0 to `classes - 1`.
        jitter: Variance of a noise on the inducing values, a multiple of v and of the mean of
            the diagonal of K; the same in all that is computed.
        train_inducing: Whether inducing inputs are a latent, with a flat prior and this start.
            They are parameters of the bound, not of the model: use it with `MAP`, or with
            `BBVI` and `Factors({"inducing": Point()}, ...)`, not with a sampler.
        coords: As for any model.

    References:
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408. Hensman, Matthews, Ghahramani (2015), Scalable variational Gaussian
        process classification, AISTATS.
    """

    network: AbstractLayer
    scale: AbstractLaw
    inducing: Array
    classes: int = eqx.field(static=True)
    jitter: Array
    train_inducing: bool = eqx.field(static=True)
    parameters: dict[str, Any] = latents(_parameters)
    values: dict[str, Any] = latents(_values)

    def __init__(
        self,
        network: AbstractLayer,
        scale: AbstractLaw | dist.Distribution,
        inducing: AnyArray,
        classes: int,
        *,
        jitter: Any = 1e-6,
        train_inducing: bool = False,
        coords: Mapping[str, Any] | None = None,
    ):
        classes = whole("classes", least=2)(classes)
        if not isinstance(jitter, Tracer):
            number("jitter", least=0, below=1)(jitter)
        self.network = part("network", AbstractLayer)(network)
        self.scale = scale_law(scale)
        if isinstance(self.scale, Jeffreys | Draws):
            raise ValueError(
                "`scale` must have a density that integrates to 1, such as `InverseGamma`, or "
                f"be `PointMass`; got {type(self.scale).__name__}."
            )
        self.inducing = _check_inducing(inducing)
        self.classes, self.train_inducing = classes, flag("train_inducing")(train_inducing)
        self.jitter = scalar("jitter", jitter, least=0)
        self.coords = Coords(coords)
        self.parameters = dict.fromkeys(_parameters(self), UNDRAWN)
        self.values = dict.fromkeys(_values(self), UNDRAWN)
        self._check_factor()
        sites(self)  # refuses priors that do not fit

    @property
    def description(self) -> dict[str, Any]:
        """Network and law, with priors where there is no value."""
        return {"network": self.network, "scale": self.scale}

    def scale_prior(self) -> dist.Distribution:
        """Return the law of v given the parameters of this draw."""
        law = with_values(self.description, self.parameters)["scale"]
        if isinstance(law, FromDistribution):
            return law.distribution
        return law.posterior(0, jnp.zeros(()))

    @property
    def v(self) -> Array:
        """The scale of this draw."""
        if isinstance(self.scale, PointMass):
            return with_values(self.description, self.parameters)["scale"].value
        return self.values["v"]

    def inducing_values(self) -> Array:
        """Return the values of the function at the inducing inputs, `(classes, inducing)`."""
        network, inducing = self._parts()
        tril = factor(network, inducing, self.jitter)
        return jnp.sqrt(self.v) * self.values["white"] @ tril.T

    def project(self, x: AnyArray) -> Projection:
        """Return what the inducing values say of the function at `x`, for v = 1."""
        network, inducing = self._parts()
        return project(network, inducing, x, self.jitter)

    def likelihood(self, x: AnyArray) -> SoftmaxLabels:
        """Return the law of the class of each row.

        Its `probs` are the probabilities given this draw; its `log_prob` is the mean log
        probability of the bound. Pointwise log likelihoods of a posterior, and so LOO, are
        logs of `probs` (`log_density_given_rest`).

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.

        Raises:
            ValueError: If the examples are not of the shape of the inducing inputs.
        """
        if jnp.shape(x)[1:] != self.inducing.shape[1:]:
            raise ValueError(
                "`x` must have examples of the shape of the inducing inputs, "
                f"{self.inducing.shape[1:]}; got {jnp.shape(x)[1:]}."
            )
        seen, root = self.project(x), jnp.sqrt(self.v)
        loc = root * (self.values["white"] @ seen.read).T
        return SoftmaxLabels(loc, root * safe_sqrt(seen.residual))

    def log_density_given_rest(self, y: AnyArray, x: AnyArray) -> Array:
        """Return the log probability of each label given this draw, f integrated out, in nats.

        Not the mean log probability, which is fitted and is a bound of it: pointwise log
        likelihoods, LOO and WAIC are of the probability.
        """
        log_probs = self.likelihood(x).log_probs
        return jnp.take_along_axis(log_probs, jnp.asarray(y)[:, None], axis=1)[:, 0]

    def check_observed(self, y: Any, likelihood: Any) -> None:
        rows = likelihood.batch_shape[0]
        if rows < len(self.inducing):
            raise ValueError(
                f"`inducing` must have at most as many inputs as there are rows, {rows}; got "
                f"{len(self.inducing)}."
            )
        if isinstance(y, Mapping) or y.ndim != 1:
            got = sorted(y) if isinstance(y, Mapping) else y.shape
            raise ValueError(f"`y` must be one label per row; got {got}.")
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"`y` must be integers, the classes; got dtype {y.dtype}.")
        if isinstance(y, Tracer):
            return
        wrong = np.asarray((np.asarray(y) < 0) | (np.asarray(y) >= self.classes))
        if wrong.any():
            raise ValueError(
                f"`y` must be classes from 0 to {self.classes - 1}; got "
                f"{np.asarray(y)[wrong][0]} at index {int(np.argmax(wrong))} and "
                f"{int(wrong.sum()) - 1} more outside."
            )

    def _parts(self) -> tuple[AbstractLayer, Array]:
        network = with_values(self.description, self.parameters)["network"]
        return network, self.parameters.get("inducing", self.inducing)

    def _check_factor(self) -> None:
        """Raise if the covariance of the inducing values is singular, where it is known."""
        leaves = jax.tree.leaves((self.network, self.inducing, self.jitter))
        if unknowns(self.network) or any(isinstance(leaf, Tracer) for leaf in leaves):
            return
        tril = factor(self.network, self.inducing, self.jitter)
        if not is_definite(tril, tril @ tril.T):
            raise ValueError(
                "`inducing` must give a positive definite covariance; it does not with a "
                f"`jitter` of {float(self.jitter):.3g} in {tril.dtype}. Drop inputs that are "
                "equal, or raise `jitter`."
            )


def _check_inducing(inducing: Any) -> Array:
    inducing = inducing if isinstance(inducing, jax.Array) else np.asarray(inducing)
    if inducing.dtype.kind not in "iuf":
        raise ValueError(f"`inducing` must be an array of numbers; got {inducing!r}.")
    if inducing.ndim < 2 or 0 in inducing.shape:
        raise ValueError(
            "`inducing` must have shape (inducing, features) or (inducing, *spatial, channels) "
            f"with no axis of length 0; got {inducing.shape}."
        )
    if not isinstance(inducing, Tracer) and not np.isfinite(np.asarray(inducing)).all():
        raise ValueError("`inducing` must be finite; some numbers are not.")
    inducing = jnp.asarray(inducing)
    return inducing if jnp.issubdtype(inducing.dtype, jnp.floating) else inducing.astype(float)
