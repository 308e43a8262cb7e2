"""A new task: the posterior of its weights from few points, and predictions from it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ...core._convert import flag, one_of, part, positive, whole
from ...core._key import as_key
from ...core._types import PRNGKey, Scalar
from .._fit import minimised
from ._covariance import Diagonal, Full, of_tril
from ._likelihood import Gaussian
from ._local import AbstractLocal, GGNLaplace, WeightGaussian
from ._meta import NIWMeta, TaskLoss, check_fit
from ._objective import adaptation_ratio, combine_all, local_posterior
from ._prediction import Prediction
from ._prior import PRIORS, log_prior, prior_for, reweighted
from ._tasks import check_tasks

_METHODS = ("closed_form", "vi")
_ROUNDS = 10  # of the normal prior that stands for independent t


class AdaptedTask(eqx.Module):
    """A task after its support set: a mixture of normal laws of its weights.

    Attributes:
        loss: The model and the support set.
        posterior: Normal laws, stacked.
        log_weights: Of these, normalised.
        components: Posterior probabilities of the components of the population.
        scale: Posterior mean of v, the factor on the covariance that makes this task an
            ordinary one; 1 if the model has no `tails`.
        log_evidence: Log density of the support set by its surrogate, in nats.
        kl: Divergence of the posterior from the prior: how much was learned, in nats.
        ratio: How far the weights moved of what the data alone ask for, from 0 to 1.
        clipped: Share of curvatures that were clipped.
    """

    loss: TaskLoss
    posterior: WeightGaussian
    log_weights: Array
    components: Array
    scale: Scalar
    log_evidence: Scalar
    kl: Scalar
    ratio: Scalar
    clipped: Scalar

    @property
    def mean(self) -> Array:
        """Mean of the weights, `(weight,)`."""
        return jnp.exp(self.log_weights) @ self.posterior.mean

    @property
    def network(self) -> Any:
        """The Equinox module with the mean of the most probable law."""
        return self.loss.meta.network(self.posterior.mean[jnp.argmax(self.log_weights)])

    def sample(self, draws: int = 64, *, key: Any = 0) -> Array:
        """Draw weights, `(draw, weight)`.

        Args:
            draws: How many.
            key: A typed key, or a whole number.
        """
        return _sample(self, whole("draws", least=1)(draws), as_key(key))

    def predict(
        self, x: Any, *, draws: int = 64, linearised: bool = True, key: Any = 0
    ) -> Prediction:
        """Predict new observations.

        Args:
            x: Inputs of new points, `(point, ...)`.
            draws: Of weights, where there is no closed form.
            linearised: Take the network as linear in its weights around their mean, as the
                surrogate did; for Gaussian noise that is a closed form. Otherwise draws of
                weights go through the network itself.
            key: A typed key, or a whole number.

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        x, linearised = jnp.asarray(x), flag("linearised")(linearised)
        row = self.loss.x.shape[1:]
        if x.shape[1:] != row or not x.ndim:
            raise ValueError(
                f"`x` must have shape (point, ...) with points {row}; got {x.shape}."
            )
        return _predict(self, x, whole("draws", least=1)(draws), linearised, as_key(key))


def adapt(
    fit: Any,
    x: Any,
    y: Any,
    *,
    method: str = "closed_form",
    prior: str = "expected_precision",
    local: AbstractLocal | None = None,
    mask: Any = None,
    steps: Any = 300,
    learning_rate: Any = 0.05,
    pairs: Any = 4,
    key: Any = 0,
) -> AdaptedTask:
    """Find the posterior of a new task's weights.

    It may be mapped over tasks: `jax.vmap(lambda x, y: niw.adapt(fit, x, y).predict(new))`.

    Args:
        fit: What `whence.train` returned, or a `NIWMeta`.
        x: Inputs of the support set, `(point, ...)`.
        y: Its data, `(point,)` or `(point, output)`.
        method: `"closed_form"`: the best Gaussian under a surrogate, as in training.
            `"vi"`: the Gaussian (independent weights, or all of their covariance if the
            model's is full) with the best bound under the loss itself, from there on.
        prior: What of the law of (mu, Sigma) the new task gets:
            `"expected_precision"` as in training, the `"mode"`, which is narrower, or
            `"predictive_t"`, in which it is integrated out.
        local: How the surrogate is made; by default `GGNLaplace()`.
        mask: Which points are there; None for all.
        steps: Of `"vi"`.
        learning_rate: Of `"vi"`, in standard deviations of the prior.
        pairs: Of opposite draws in each step of `"vi"`.
        key: A typed key, or a whole number.

    Returns:
        The posterior, which predicts.

    Raises:
        ValueError: If an argument is wrong; before anything is compiled.
    """
    meta = model_of(fit)
    one_of("method", _METHODS)(method)
    one_of("prior", PRIORS)(prior)
    local = part("local", AbstractLocal)(GGNLaplace() if local is None else local)
    loss = check_support(meta, x, y, mask)
    rate = positive("learning_rate")(learning_rate)
    settings = whole("steps", least=1)(steps), rate, whole("pairs", least=1)(pairs)
    prior_for(meta, prior)  # refuses what there is not
    return _adapt(loss, local, method, prior, settings, as_key(key))


def model_of(fit: Any) -> NIWMeta:
    """Return the model in what `train` returned.

    Raises:
        ValueError: If there is none.
    """
    found = getattr(fit, "state", fit)
    found = getattr(found, "model", found)
    if not isinstance(found, NIWMeta):
        raise ValueError(
            "`fit` must be what `whence.train(meta.on(tasks), ...)` returned, or a `NIWMeta`; "
            f"got {type(fit).__name__}."
        )
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, found)


def check_support(meta: NIWMeta, x: Any, y: Any, mask: Any) -> TaskLoss:
    """Return the loss of a support set.

    Raises:
        ValueError: If it is none of this model's.
    """
    x, y = (v if isinstance(v, jax.Array) else np.asarray(v) for v in (x, y))
    if x.ndim < 1 or len(x) == 0:
        raise ValueError(f"`x` must hold at least one support point; got shape {x.shape}.")
    mask = np.ones(len(x), bool) if mask is None else mask
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if not isinstance(mask, Tracer) and not np.asarray(mask).any():
        raise ValueError("`mask` must leave at least one support point; got none.")
    batch = check_tasks(x[None], y[None], mask[None])
    check_fit(meta, *batch)
    return TaskLoss(meta, jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))


@eqx.filter_jit
def _adapt(loss, local, method, prior, settings, key) -> AdaptedTask:
    meta = loss.meta
    population, scales, df = prior_for(meta, prior)
    key_fit, key_vi = jr.split(key)
    found = local_posterior(loss, population, scales, local, key_fit)
    combined, near = found.combined, population
    if df is not None:
        for _ in range(_ROUNDS):
            posterior = jax.tree.map(lambda a: a[0, 0], combined.posterior)
            square = posterior.variance + (posterior.mean - population.mean[0]) ** 2
            near = reweighted(population, square, df)
            combined = combine_all(found.surrogates, near, scales)
    log_weights = found.log_weights.ravel()
    posterior = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), combined.posterior)
    best = jnp.argmax(log_weights)
    component = best // len(scales.values)
    kl = combined.kl.ravel()[best]
    if method == "vi":
        start = jax.tree.map(lambda a: a[best], posterior)
        covariance = jax.tree.map(lambda a: a[component], near.covariance)
        objective = lambda w: loss(w) - log_prior(w, population, scales, df)
        one = _variational(objective, start, covariance, settings, key_vi)
        posterior = jax.tree.map(lambda a: a[None], one)
        log_weights = jnp.zeros(1, log_weights.dtype)
    shares = jnp.exp(found.log_weights)
    return AdaptedTask(
        loss,
        posterior,
        log_weights,
        jnp.sum(shares, axis=1),
        jnp.sum(shares * scales.values[None]),
        jax.nn.logsumexp(found.log_prior - found.combined.energy),
        kl,
        adaptation_ratio(meta, found, component),
        found.surrogates.clipped[component],
    )


def _variational(objective, start, prior, settings, key) -> WeightGaussian:
    """Fit a Gaussian by reparameterised gradients, from the closed form's mean.

    Its root is that of the prior (of the prior's variances, unless it is full) times another
    one, which is what Adam moves.
    """
    steps, rate, pairs = settings
    unit = jnp.sqrt(prior.marginal)
    if isinstance(prior, Full):
        outer, inner = prior, Full(jnp.zeros_like(prior.lower))
    else:
        outer, inner = Diagonal(-2 * jnp.log(unit)), Diagonal(jnp.log(unit**2 / start.variance))

    def bound(params, key):
        shift, inner = params
        noise = jr.normal(key, (pairs, len(unit)), unit.dtype)
        moves = jax.vmap(lambda n: outer.root(inner.root(n)))(noise)
        drawn = start.mean + unit * shift + jnp.concatenate([moves, -moves])
        return jnp.mean(jax.vmap(objective)(drawn)) - inner.log_det / 2

    shift, inner = minimised(
        bound, (jnp.zeros_like(unit), inner), steps, rate, jr.split(key, steps)
    )
    mean = start.mean + unit * shift
    if isinstance(outer, Diagonal):
        return WeightGaussian(mean, Diagonal(outer.log_precision + inner.log_precision))
    return WeightGaussian(mean, of_tril(outer.tril @ inner.tril))


def _draws(task: AdaptedTask, draws: int, key: PRNGKey) -> tuple[Array, Array]:
    """Return means of the laws that draws are of, by systematic resampling, and moves."""
    ladder = (jnp.arange(draws) + 0.5) / draws
    which = jnp.searchsorted(jnp.cumsum(jnp.exp(task.log_weights)), ladder)
    which = jnp.minimum(which, len(task.log_weights) - 1)
    laws = jax.tree.map(lambda a: a[which], task.posterior)
    move = lambda law, key: law.move(jr.normal(key, (law.noise_size,), law.mean.dtype))
    return laws.mean, jax.vmap(move)(laws, jr.split(key, draws))


@eqx.filter_jit
def _sample(task: AdaptedTask, draws: int, key: PRNGKey) -> Array:
    return jnp.add(*_draws(task, draws, key))


@eqx.filter_jit
def _predict(task: AdaptedTask, x, draws: int, linearised: bool, key: PRNGKey) -> Prediction:
    meta, likelihood = task.loss.meta, task.loss.meta.likelihood
    scores = lambda weights: task.loss.scores(weights, x)
    if linearised and isinstance(likelihood, Gaussian):

        def closed(law):
            inner = TaskLoss(meta, x, jnp.zeros(len(x)), jnp.ones(len(x), bool))
            jacobian = inner.jacobian(law.mean)
            columns = jacobian.reshape(-1, jacobian.shape[-1]).T
            variance = jnp.sum(columns * law.times(columns), axis=0)
            return scores(law.mean), jnp.maximum(variance, 0).reshape(jacobian.shape[:2])

        loc, spread = jax.lax.map(closed, task.posterior)
        return Prediction(likelihood, task.log_weights, loc, spread)
    means, moves = _draws(task, draws, key)
    if linearised:
        one = lambda mean, move: jnp.add(*jax.jvp(scores, (mean,), (move,)))
    else:
        one = lambda mean, move: scores(mean + move)
    drawn = jax.vmap(one)(means, moves)
    equal = jnp.full(draws, -jnp.log(float(draws)), drawn.dtype)
    return Prediction(likelihood, equal, drawn)
