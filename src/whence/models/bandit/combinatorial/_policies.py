"""Policies that choose several actions at once and see a reward of each."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ....core._convert import part, positive, whole
from ....core._types import PRNGKey
from .._checks import Numbers, require_within
from ..contextual._linear import LinearGaussian
from ..contextual._ridge import (
    AbstractRidgeState,
    LinearState,
    RidgeState,
    WeightedRidgeState,
    checked_actions,
    checked_reward,
    start_linear,
    start_ridge,
)
from ._abstract_policy import AbstractCombinatorialPolicy, Oracle, checked_oracle


class AbstractRidgeBounds(AbstractCombinatorialPolicy):
    """Upper confidence bounds by ridge regression, for rewards from 0 to 1."""

    rho: eqx.AbstractVar[float]
    ridge: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def _width(self) -> float:
        """Distance of the bounds from the mean, in standard errors of the fit."""

    @abc.abstractmethod
    def _variance(self, state: AbstractRidgeState, x: Array) -> Array:
        """Return what the weight of each reward in the fit is divided by."""

    def init(self, batch: tuple[int, ...] = ()) -> AbstractRidgeState:
        return start_ridge(self.State, self.features, self.ridge, batch)

    def values(
        self, state: AbstractRidgeState, features: Numbers, *, key: PRNGKey
    ) -> Float[Array, "action *batch"]:
        return self._bounds(state, checked_actions(state, features))[1]

    def update(
        self,
        state: AbstractRidgeState,
        features: Numbers,
        rewards: Numbers,
        observed: Numbers | None = None,
    ) -> AbstractRidgeState:
        """Return the fit after the rewards of one round, with weights from before them."""
        require_within("rewards", rewards, 0.0, 1.0)
        x, y, seen = _checked_round(state, features, rewards, observed)
        return _learn_all(state, x, y, seen, self._variance(state, x))[0]

    def _bounds(self, state: AbstractRidgeState, x: Array) -> tuple[Array, Array]:
        mean, scale = state.predict(x)
        width = self._width * scale
        return jnp.clip(mean - width, 0, 1), jnp.clip(mean + width, 0, 1)


class C2UCB(AbstractRidgeBounds):
    """Upper confidence bounds by ridge regression, for rewards from 0 to 1 (C2-UCB-T).

    An action is worth `clip(features @ w + rho |features|, 0, 1)`, in the norm of the fit's
    standard error. Every reward that was seen has the same weight in the fit.

    Attributes:
        features: Number of features of an action.
        oracle: Chooses a set given the values of the actions, for example `TopK(5)`.
        rho: Width of the bounds. Theory asks for `sqrt(ridge) |w|` plus a term that grows
            with the number of features; 0.1 to 1 does better.
        ridge: Weight of the squared coefficients.

    References:
        Liu et al. (2023), algorithm 1, "Contextual combinatorial bandits with
        probabilistically triggered arms", ICML, arXiv:2303.17110.
    """

    State: ClassVar[type] = RidgeState

    features: int = eqx.field(converter=whole("features", least=1))
    oracle: Oracle = eqx.field(converter=checked_oracle)
    rho: float = eqx.field(default=0.5, converter=positive("rho"))
    ridge: float = eqx.field(default=1.0, converter=positive("ridge"))

    @property
    def _width(self) -> float:
        return self.rho

    def _variance(self, state: AbstractRidgeState, x: Array) -> Array:
        return jnp.ones_like(x[:, 0])


class VAC2UCB(AbstractRidgeBounds):
    """`C2UCB` that weighs each reward by how much it may vary, for rewards from 0 to 1.

    A reward with mean `m` has a variance of at most `m (1 - m)`. The largest that this can
    be between the bounds of `m`, `clip(features @ w -+ 2 rho |features|, 0, 1)`, is taken for
    the reward's variance in a weighted ridge regression. So actions that nearly always
    fail, or nearly always succeed, teach more.

    Attributes:
        features: Number of features of an action.
        oracle: Chooses a set given the values of the actions, for example `TopK(5)`.
        rho: Half the width of the bounds; 0.1 to 1 does well.
        ridge: Weight of the squared coefficients.
        floor: Least variance, below which no weight grows.

    References:
        Liu et al. (2023), algorithm 2, "Contextual combinatorial bandits with
        probabilistically triggered arms", ICML, arXiv:2303.17110.
    """

    State: ClassVar[type] = WeightedRidgeState

    features: int = eqx.field(converter=whole("features", least=1))
    oracle: Oracle = eqx.field(converter=checked_oracle)
    rho: float = eqx.field(default=0.5, converter=positive("rho"))
    ridge: float = eqx.field(default=1.0, converter=positive("ridge"))
    floor: float = eqx.field(default=1e-3, converter=positive("floor"))

    @property
    def _width(self) -> float:
        return 2 * self.rho

    def optimistic_variance(
        self, state: AbstractRidgeState, features: Numbers
    ) -> Float[Array, "action *batch"]:
        """Return the largest variance that a reward of each action may have."""
        return self._variance(state, checked_actions(state, features))

    def _variance(self, state: AbstractRidgeState, x: Array) -> Array:
        low, high = self._bounds(state, x)
        # The mean between the bounds that is closest to 1/2.
        mean = jnp.clip(0.5, low, high)
        return jnp.maximum(mean * (1 - mean), self.floor)


class CombinatorialTS(AbstractCombinatorialPolicy):
    """Thompson sampling of sets of actions: the best set under a draw of the coefficients.

    Rewards are taken for Gaussian with a common variance, which is learned.

    Attributes:
        prior: Belief in coefficients and noise variance before the first reward.
        oracle: Chooses a set given the values of the actions, for example `TopK(5)`.

    References:
        Wen, Kveton and Ashkan (2015), "Efficient learning in large-scale combinatorial
        semi-bandits", ICML.
    """

    State: ClassVar[type] = LinearState

    prior: LinearGaussian = eqx.field(converter=part("prior", LinearGaussian))
    oracle: Oracle = eqx.field(converter=checked_oracle)

    @property
    def features(self) -> int:
        """Number of features of an action."""
        return len(self.prior.mu)

    def init(self, batch: tuple[int, ...] = ()) -> LinearState:
        return start_linear(self.prior, batch)

    def values(
        self, state: LinearState, features: Numbers, *, key: PRNGKey
    ) -> Float[Array, "action *batch"]:
        x = checked_actions(state.fit, features)
        return jnp.einsum("af...,f...->a...", x, state.sample(key=key))

    def update(
        self,
        state: LinearState,
        features: Numbers,
        rewards: Numbers,
        observed: Numbers | None = None,
    ) -> LinearState:
        x, y, seen = _checked_round(state.fit, features, rewards, observed)
        fit, squared = _learn_all(state.fit, x, y, seen, jnp.ones_like(y))
        count = jnp.sum(seen, 0).astype(y.dtype)
        return LinearState(fit, state.alpha + count / 2, state.beta + squared / 2)


def _checked_round(
    fit, features, rewards, observed
) -> tuple[Array, Array, Bool[Array, "position *batch"]]:
    lead = jnp.asarray(rewards).shape[:1]
    x, y = checked_reward(fit, features, rewards, lead or (0,))
    seen = jnp.ones(y.shape, bool) if observed is None else jnp.asarray(observed)
    if seen.shape != y.shape or seen.dtype != bool:
        raise ValueError(
            f"`observed` must be true or false for each of the rewards, {y.shape}; got "
            f"{seen.dtype} of shape {seen.shape}."
        )
    return x, y, seen


@jax.jit
def _learn_all(fit, x, y, seen, variance) -> tuple[AbstractRidgeState, Array]:
    """Return the fit after the rewards that were seen, and the sum of squared errors."""

    def one(carry, row):
        fit, total = carry
        x, y, seen, variance = row
        new, squared = fit.learn(x, y, variance)
        fit = jax.tree.map(lambda a, b: jnp.where(seen, a, b), new, fit)
        return (fit, total + jnp.where(seen, squared, 0)), None

    start = (fit, jnp.zeros(fit.batch_shape, fit.mu.dtype))
    return jax.lax.scan(one, start, (x, y, seen, variance))[0]
