"""Objectives: functionals of log importance weights, arranged as (outer, inner).

The log weight of a draw is `log p - log q` there, in nats. A bound averages over `outer`
groups what it makes of the `inner` draws of each; all are at most the log evidence in
expectation, up to `Renyi` with a negative alpha. `samples` of `BBVI` is the number of draws in
all, outer times inner.

Two gradients are taken: one by the parameters of the family, and one by what all draws share
(a `Point`, the parameters of a model), which may follow an objective of its own.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from ...core._convert import number, whole
from ...core._engine import Sample
from ...core._flat import flat_draws
from ...core._types import PRNGKey, Scalar

Arranged = Float[Array, "outer inner"]
Weights = Float[Array, " sample"]
Rows = tuple[tuple[float, ...], ...]


def _outer(default: int):
    return eqx.field(default=default, converter=whole("outer", least=1))


class AbstractObjective(eqx.Module):
    """What is maximised, given log weights.

    Attributes:
        outer: Groups of draws whose values are averaged; 0 for a group for each draw.
        least: Draws that a group needs.
        at_fixed_draws: Whether the family follows the gradient at fixed draws: not of an
            expectation over draws from the family, but as if they came from elsewhere.
        model: The objective that the parameters of a model follow; None for the same.
        draws: Positions that take the place of draws of the family; None for none.
    """

    outer: eqx.AbstractVar[int]
    least: ClassVar[int] = 1
    at_fixed_draws: ClassVar[bool] = False
    model: ClassVar["AbstractObjective | None"] = None
    draws: ClassVar[Rows | None] = None

    @abc.abstractmethod
    def value(self, log_weights: Arranged) -> Scalar:
        """Return the objective in nats; larger is better."""

    @property
    def of_model(self) -> "AbstractObjective":
        """The objective that the parameters of a model follow."""
        return self if self.model is None else self.model

    def arrange(self, log_weights: Weights) -> Arranged:
        """Return the log weights of all draws by group."""
        return log_weights.reshape(self.outer or log_weights.size, -1)

    def check(self, samples: int) -> None:
        """Raise `ValueError` unless so many draws can be arranged.

        Args:
            samples: Draws per update.

        Raises:
            ValueError: If they cannot.
        """
        name, outer = type(self).__name__, self.outer or samples
        if samples % outer:
            raise ValueError(
                f"`samples` must be a multiple of `outer` of {name}, {outer}; got {samples}."
            )
        if samples // outer < self.least:
            raise ValueError(
                f"{name} needs at least {self.least} draws in each of its {outer} groups; "
                f"got `samples={samples}`."
            )
        if self.draws is not None and samples > len(self.draws):
            raise ValueError(
                f"`samples` must be at most the number of `draws` of {name}, "
                f"{len(self.draws)}; got {samples}."
            )

    @property
    def shown(self) -> "AbstractObjective":
        """The objective whose value is recorded: the `ELBO` where its own is no bound."""
        return ELBO() if self.at_fixed_draws and self.draws is None else self


def some_draws(
    objective: AbstractObjective, samples: int, like: Float[Array, " dim"], *, key: PRNGKey
) -> Float[Array, "sample dim"]:
    """Return positions that an objective was given: all if they are so many, else some."""
    given = jnp.asarray(np.asarray(objective.draws), like.dtype)
    number = len(given)
    return given if samples == number else given[jr.randint(key, (samples,), 0, number)]


class ELBO(AbstractObjective):
    """The evidence lower bound, the mean log weight."""

    outer: int = eqx.field(default=0, init=False)

    def value(self, log_weights: Arranged) -> Scalar:
        return jnp.mean(log_weights)


class IWAE(AbstractObjective):
    """The importance weighted bound of all draws: the log of their mean weight.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders,
        arXiv:1509.00519.
    """

    outer: int = eqx.field(default=1, init=False)

    def value(self, log_weights: Arranged) -> Scalar:
        return _log_mean(log_weights)


class MIWAE(AbstractObjective):
    """The mean over `outer` groups of the importance weighted bound of each.

    Attributes:
        outer: Groups.

    References:
        Rainforth, Kosiorek, Le, Maddison, Igl, Wood, Teh (2018), Tighter variational bounds
        are not necessarily better, arXiv:1802.04537.
    """

    outer: int = _outer(8)

    def value(self, log_weights: Arranged) -> Scalar:
        return _log_mean(log_weights)


class PIWAE(AbstractObjective):
    """`MIWAE` for the family, and for the parameters of the model `IWAE` of the same draws.

    Attributes:
        outer: Groups.

    References:
        Rainforth and others (2018), arXiv:1802.04537, section 5.
    """

    outer: int = _outer(8)
    model: ClassVar[AbstractObjective | None] = IWAE()

    def value(self, log_weights: Arranged) -> Scalar:
        return _log_mean(log_weights)


class CIWAE(AbstractObjective):
    """`beta` times the evidence lower bound, and the rest of the importance weighted one.

    Attributes:
        beta: Between 0 (`IWAE`) and 1 (`ELBO`).
        outer: Groups.

    References:
        Rainforth and others (2018), arXiv:1802.04537, section 5.
    """

    beta: float = eqx.field(default=0.05, converter=number("beta", least=0, most=1))
    outer: int = _outer(1)

    def value(self, log_weights: Arranged) -> Scalar:
        return self.beta * jnp.mean(log_weights) + (1 - self.beta) * _log_mean(log_weights)


class Renyi(AbstractObjective):
    """The variational Renyi bound, `log E[w^(1 - alpha)] / (1 - alpha)`.

    With `alpha` 0 it is `IWAE`, towards 1 `ELBO`; below 0, given draws enough, an upper bound.

    Attributes:
        alpha: Any number but 1.
        outer: Groups.

    References:
        Li, Turner (2016), Renyi divergence variational inference, arXiv:1602.02311.
    """

    alpha: float = eqx.field(default=0.5, converter=number("alpha"))
    outer: int = _outer(1)
    least: ClassVar[int] = 2

    def __check_init__(self):
        if self.alpha == 1:
            raise ValueError("`alpha` must not be 1, where the bound is the `ELBO`; got 1.0.")

    def value(self, log_weights: Arranged) -> Scalar:
        return _log_mean((1 - self.alpha) * log_weights) / (1 - self.alpha)


class LogVariance(AbstractObjective):
    """Minus half the variance of the log weights, at fixed draws.

    Its gradient is that of the `ELBO` by `ScoreFunction`, the mean as control variate; it is
    zero for every set of draws where the family is the target. The model follows the `ELBO`.

    References:
        Richter, Boustati, Nuesken, Ruiz, Akyildiz (2020), VarGrad, arXiv:2010.10436.
    """

    outer: int = _outer(1)
    least: ClassVar[int] = 2
    at_fixed_draws: ClassVar[bool] = True
    model: ClassVar[AbstractObjective | None] = ELBO()

    def value(self, log_weights: Arranged) -> Scalar:
        return -0.5 * jnp.mean(jnp.var(log_weights, axis=1, ddof=1))


def _rows_of(value: Any) -> Rows | None:
    """Return `draws` as plain numbers."""
    if value is None:
        return None
    sample, found = getattr(value, "sample", None), value
    if isinstance(sample, Sample):
        if sample.log_weights is not None:
            raise ValueError(
                "`draws` must be equally weighted: those of a posterior with `log_weights` are "
                "not; give `posterior.resample(...)`."
            )
        flat = flat_draws(sample.positions)
        found = flat.reshape(-1, flat.shape[2])
    array: Any
    try:
        array = np.asarray(found, float)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(
            "`draws` must be a posterior, or finite positions `(draw, dim)`, two or more; got "
            f"{value!r:.100}."
        )
    return tuple(tuple(row) for row in array.tolist())


class ForwardKL(AbstractObjective):
    """The divergence from target to family, by draws weighted to the target or given ones.

    Without `draws` they are the family's own: its gradient is the weighted mean of its scores
    (wake phase of reweighted wake-sleep), and the model follows `IWAE`. `value` is then a
    quantity with that gradient at fixed draws, minus the importance weighted bound, and not to
    be read as a bound.

    With `draws` from the target, as a sampler has made them, it is maximum likelihood of a
    Gaussian family: mean and covariance become those of the draws, as far as the family has
    them. The value is minus the mean log weight of the draws, in expectation at most minus the
    log evidence.

    Attributes:
        outer: Groups of draws; for given ones it makes no difference.
        draws: A posterior with equal weights, or unconstrained positions `(draw, dim)`;
            `samples` of them, chosen at random, make an update (all of them if that many).
            They are part of the configuration, as plain numbers.

    References:
        Bornschein, Bengio (2015), Reweighted wake-sleep, arXiv:1406.2751.
    """

    outer: int = _outer(1)
    draws: Rows | None = eqx.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, static=True, repr=False, converter=_rows_of
    )
    least: ClassVar[int] = 2
    at_fixed_draws: ClassVar[bool] = True
    model: ClassVar[AbstractObjective | None] = IWAE()

    def value(self, log_weights: Arranged) -> Scalar:
        if self.draws is not None:
            return -jnp.mean(log_weights)
        return -_log_mean(log_weights)


def _log_mean(log_weights: Arranged) -> Scalar:
    inner = log_weights.shape[1]
    return jnp.mean(logsumexp(log_weights, axis=1)) - jnp.log(
        jnp.asarray(inner, log_weights.dtype)
    )


# Coefficients are those of a sum over draws, times the number of draws: of the `ELBO` all 1.


def slopes(objective: AbstractObjective, log_weights: Weights) -> Weights:
    """Return derivatives of the objective by each log weight, times the number of draws."""
    if isinstance(objective, ELBO):
        return jnp.ones_like(log_weights)
    gradient = jax.grad(lambda w: objective.value(objective.arrange(w)))(log_weights)
    return log_weights.size * gradient


def path_slopes(objective: AbstractObjective, log_weights: Weights) -> Weights:
    """Return what forces along the path of each draw are multiplied with: slope less curvature.

    With `z_k = t(eps_k)` the gradient of an objective `L` is the sum of `dL/dw_k` times that of
    `w_k` along the path of `z_k`, less `dL/dw_k` times the score of `z_k`. Of the latter the
    expectation is that of `d/dw_k (dL/dw_k)` times the path again: the doubly
    reparameterised gradient, for any objective. Of `IWAE` it has squared weights.
    """
    if isinstance(objective, ELBO):
        return jnp.ones_like(log_weights)
    size = log_weights.size
    function = lambda w: objective.value(objective.arrange(w))
    curvature = jnp.diagonal(jax.hessian(function)(log_weights))
    return slopes(objective, log_weights) - size * curvature


def score_slopes(objective: AbstractObjective, log_weights: Weights) -> Weights:
    """Return what the score of each draw is multiplied with, others being the control variate.

    The value of a group, less what it is with the draw's log weight replaced by the mean of
    the others; in groups of one, less the mean of the other groups.

    References:
        Mnih, Rezende (2016), Variational inference for Monte Carlo objectives,
        arXiv:1602.06725. Kool, van Hoof, Welling (2019), Buy 4 REINFORCE samples, get a
        baseline for free.
    """
    direct = slopes(objective, log_weights)
    if objective.at_fixed_draws:
        return -direct
    groups = objective.arrange(log_weights)
    outer, inner = groups.shape
    group = lambda w: objective.value(w[None])
    if inner == 1:
        value = jax.vmap(group)(groups)
        others = (jnp.sum(value) - value) / (outer - 1)
        signal = value - others
    else:
        others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (inner - 1)
        mine = jnp.eye(inner, dtype=bool)[None]
        replaced = jnp.where(mine, others[:, :, None], groups[:, None, :])
        without = jax.vmap(jax.vmap(group))(replaced)
        signal = ((jax.vmap(group)(groups)[:, None] - without) * inner).ravel()
    return signal - (direct - 1)
