"""Policies that see features of every action before they choose one."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from ....core._convert import part, positive, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, require_counts, require_within
from .._policy import AbstractLearner, Arm
from .._student_t import t_upper_quantile
from ._linear import LinearGaussian
from ._ridge import (
    LinearState,
    RidgeState,
    checked_actions,
    checked_reward,
    start_linear,
    start_ridge,
)


class AbstractContextualPolicy(AbstractLearner):
    """A rule that chooses an action by its features: pure functions on a state.

    What is learned about one action is used for all, as they share the coefficients of
    their features. Actions may be other ones, and in another number, in every round.
    """

    features: eqx.AbstractVar[int]  # number of features of an action

    @abc.abstractmethod
    def act(self, state: Any, features: Numbers, *, key: PRNGKey) -> Arm:
        """Return the index of the action to take, shape `(*batch,)`.

        Args:
            state: From `init` or `update`.
            features: Features of each action, shape `(action, feature, *batch)`.
            key: For the choice; policies that leave nothing to chance do not use it.

        Raises:
            ValueError: If the shape is another or a value is not finite.
        """

    @abc.abstractmethod
    def update(self, state: Any, features: Numbers, reward: Numbers) -> Any:
        """Return the state after a reward.

        Args:
            state: From `init` or `update`.
            features: Features of the action taken, shape `(feature, *batch)`.
            reward: What it gave, shape `(*batch,)`.

        Raises:
            ValueError: If shapes do not match or a value is not finite.
        """


class AbstractLinearBelief(AbstractContextualPolicy):
    """A rule that chooses by what it believes of the coefficients, and of the noise."""

    State: ClassVar[type] = LinearState

    prior: eqx.AbstractVar[LinearGaussian]

    @property
    def features(self) -> int:
        """Number of features of an action."""
        return len(self.prior.mu)

    def init(self, batch: tuple[int, ...] = ()) -> LinearState:
        return start_linear(self.prior, batch)

    def update(self, state: LinearState, features: Numbers, reward: Numbers) -> LinearState:
        return state.update(features, reward)


class LinearTS(AbstractLinearBelief):
    """Thompson sampling of a linear model whose noise variance is unknown.

    Draw coefficients and a variance from what is believed by now, and take the action that
    is best under the draw.

    Attributes:
        prior: Belief in coefficients and noise variance before the first reward.

    References:
        Agrawal and Goyal (2013), "Thompson sampling for contextual bandits with linear
        payoffs", ICML.
    """

    prior: LinearGaussian = eqx.field(converter=part("prior", LinearGaussian))

    @seeded
    def act(self, state: LinearState, features: Numbers, *, key: PRNGKey) -> Arm:
        x = checked_actions(state.fit, features)
        draw = state.sample(key=key)
        return jnp.argmax(jnp.einsum("af...,f...->a...", x, draw), axis=0)


class LinearBayesUCB(AbstractLinearBelief):
    """Take the action with the highest quantile of the belief in its mean reward.

    The quantile is that of probability `1 - 1 / (round + 1/2)`, of the t distribution of
    the action's mean; it needs no width to be set, as the noise variance is learned.
    Rounds are counted by how much `alpha` has grown, so that a state must have begun from a
    prior with the `alpha` of this one.

    Attributes:
        prior: Belief in coefficients and noise variance before the first reward, with
            `alpha` of at least 1, below which quantiles are not computed accurately.

    References:
        Kaufmann, Cappe and Garivier (2012), "On Bayesian upper confidence bounds for bandit
        problems", AISTATS.
    """

    prior: LinearGaussian = eqx.field(converter=part("prior", LinearGaussian))

    def __check_init__(self):
        require_within("prior.alpha", self.prior.alpha, 1.0, jnp.inf)

    @seeded
    def act(self, state: LinearState, features: Numbers, *, key: PRNGKey) -> Arm:
        """Return the action with the highest quantile, the first of them in a tie."""
        mean, width = state.fit.predict(checked_actions(state.fit, features))
        counts = 2 * (state.alpha - self.prior.alpha)
        require_counts("alpha", counts, state.alpha)
        round = counts + 1
        quantile = t_upper_quantile(1 / (round + 0.5), 2 * state.alpha)
        return jnp.argmax(mean + jnp.sqrt(state.beta / state.alpha) * quantile * width, axis=0)


class LinUCB(AbstractContextualPolicy):
    """Ridge regression with a bonus: `features @ w + width |features|` in the fit's norm.

    The norm is the standard error of the prediction for noise of variance 1, so that `width`
    is so many standard deviations of the noise, in units of the reward: it must be set.

    Attributes:
        features: Number of features of an action.
        width: Factor of the bonus, in units of the reward.
        ridge: Weight of the squared coefficients.

    References:
        Li, Chu, Langford and Schapire (2010), algorithm 1 with shared coefficients,
        doi:10.1145/1772690.1772758.
    """

    State: ClassVar[type] = RidgeState

    features: int = eqx.field(converter=whole("features", least=1))
    width: float = eqx.field(default=1.0, converter=positive("width"))
    ridge: float = eqx.field(default=1.0, converter=positive("ridge"))

    def init(self, batch: tuple[int, ...] = ()) -> RidgeState:
        return start_ridge(RidgeState, self.features, self.ridge, batch)

    @seeded
    def act(self, state: RidgeState, features: Numbers, *, key: PRNGKey) -> Arm:
        """Return the action with the highest index, the first of them in a tie."""
        mean, width = state.predict(checked_actions(state, features))
        return jnp.argmax(mean + self.width * width, axis=0)

    def update(self, state: RidgeState, features: Numbers, reward: Numbers) -> RidgeState:
        x, y = checked_reward(state, features, reward)
        return state.learn(x, y, jnp.ones_like(y))[0]
