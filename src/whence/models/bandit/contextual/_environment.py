"""Environments whose actions have features: many instances, with the truth known."""

import abc
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from ....core._convert import whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, one_hot, real, require_finite, require_positive
from .._policy import AbstractPolicy
from ._linear import LinearGaussian
from ._policies import AbstractContextualPolicy

# Features of all rounds, or a function that draws those of one round.
Contexts = Callable[[PRNGKey], Array] | Float[Array, "..."]
Turn = tuple[Any, Bool[Array, "arm instance"], Float[Array, " instance"]]


class AbstractContextualEnvironment(eqx.Module):
    """Instances of a problem in which the mean reward is linear in an action's features."""

    coefficients: eqx.AbstractVar[Float[Array, "feature instance"]]
    contexts: eqx.AbstractVar[Contexts]

    @abc.abstractmethod
    def accepts(self, policy: Any) -> str:
        """Return what is wrong with a policy for this environment; nothing if it fits."""

    @abc.abstractmethod
    def turn(self, policy: Any, state: Any, round: Array, *, key: PRNGKey) -> Turn:
        """Play one round on every instance.

        Args:
            policy: The policy.
            state: Its state, for all instances.
            round: Number of the round, from 0.
            key: For the round; the same key gives the same contexts and noise, whatever
                the policy does.

        Returns:
            The state after the round, which arms were pulled, and the regret.
        """

    @property
    def instances(self) -> int:
        """Number of instances."""
        return self.coefficients.shape[1]

    @property
    def arms(self) -> int:
        """Number of actions in a round."""
        if callable(self.contexts):
            return jax.eval_shape(self.contexts, jr.key(0)).shape[0]
        return self.contexts.shape[1]

    @property
    def rounds(self) -> int | None:
        """Number of rounds for which there are features; None if they are drawn."""
        return None if callable(self.contexts) else self.contexts.shape[0]

    def draw_features(
        self, round: Array, *, key: PRNGKey
    ) -> Float[Array, "arm feature instance"]:
        """Return the features of a round.

        Args:
            round: Number of the round, from 0.
            key: For the draw, one per instance.
        """
        dtype = self.coefficients.dtype
        if callable(self.contexts):
            draws = jax.vmap(self.contexts, out_axes=-1)(jr.split(key, self.instances))
            return draws.astype(dtype)
        row = jnp.take(self.contexts, round, axis=0).astype(dtype)
        row = row if row.ndim == 3 else row[..., None]
        return jnp.broadcast_to(row, (*row.shape[:2], self.instances))


class ContextualLinear(AbstractContextualEnvironment):
    """Rewards `features @ coefficients + noise`: one action per round.

    Args:
        coefficients: The true coefficients, shape `(feature, instance)`.
        scale: Standard deviation of the noise; a scalar or per instance.
        contexts: Features of the actions: an array of shape `(round, arm, feature)`,
            the same for all instances, or `(round, arm, feature, instance)`; or a
            function of a key that draws one round, shape `(arm, feature)`, for example
            the `sample` of a numpyro distribution.

    Raises:
        ValueError: If shapes do not match, a value is not finite, or a standard
            deviation is not positive.
    """

    coefficients: Float[Array, "feature instance"]
    scale: Float[Array, " instance"]
    contexts: Contexts

    def __init__(self, coefficients: Numbers, scale: Numbers, contexts: Any):
        require_positive("scale", scale)
        self.coefficients, self.contexts = checked_problem(coefficients, contexts)
        instances, scale = self.coefficients.shape[1], jnp.asarray(scale)
        if scale.shape not in ((), (instances,)):
            raise ValueError(
                f"`scale` must be a scalar or have shape ({instances},); got {scale.shape}."
            )
        scale = scale.astype(self.coefficients.dtype)
        self.scale = jnp.broadcast_to(scale, (instances,))

    @staticmethod
    @seeded
    def from_prior(
        prior: LinearGaussian, contexts: Any, *, instances: int, key: PRNGKey
    ) -> "ContextualLinear":
        """Draw instances from a prior, so that mean regret over them is Bayes regret.

        Args:
            prior: Distribution of coefficients and noise variance.
            contexts: Features of the actions, as for the environment itself.
            instances: Number of instances.
            key: For the draws.

        Raises:
            ValueError: If `instances` is not a positive integer or shapes do not match.
        """
        instances = whole("instances", least=1)(instances)
        key_variance, key_noise = jr.split(key)
        dtype = prior.mu.dtype
        variance = prior.beta / jr.gamma(key_variance, prior.alpha, (instances,), dtype)
        noise = jr.normal(key_noise, (len(prior.mu), instances), dtype)
        step = jnp.sqrt(variance) * (jnp.linalg.cholesky(prior.cov) @ noise)
        return ContextualLinear(prior.mu[:, None] + step, jnp.sqrt(variance), contexts)

    def accepts(self, policy: Any) -> str:
        """Return what is wrong with a policy; one that sees no features is fine."""
        if isinstance(policy, AbstractPolicy):
            return wrong_number("arms", policy.arms, self.arms)
        if not isinstance(policy, AbstractContextualPolicy):
            return f"chooses one of several actions; it is a {type(policy).__name__}"
        return wrong_number("features", policy.features, self.coefficients.shape[0])

    def turn(self, policy: Any, state: Any, round: Array, *, key: PRNGKey) -> Turn:
        key_context, key_noise, key_act = jr.split(key, 3)
        x = self.draw_features(round, key=key_context)
        means = jnp.einsum("af...,f...->a...", x, self.coefficients)
        blind = isinstance(policy, AbstractPolicy)
        seen = () if blind else (x,)
        arm = policy.act(state, *seen, key=key_act)
        hit = one_hot(arm, x.shape[0])
        mean = jnp.sum(jnp.where(hit, means, 0), 0)
        reward = mean + self.scale * jr.normal(key_noise, mean.shape, mean.dtype)
        action = arm if blind else jnp.sum(jnp.where(hit[:, None], x, 0), 0)
        return policy.update(state, action, reward), hit, jnp.max(means, 0) - mean


def own_coefficients(context: Numbers, *, arms: int) -> Float[Array, "arm feature"]:
    """Return features under which every arm has coefficients of its own.

    For one context that all arms share, such as a patient: arm `i` has the context in the
    i-th block and zeros elsewhere. The noise variance remains a common one.

    Args:
        context: Features of the round, shape `(context,)`.
        arms: Number of arms.

    Returns:
        Features of each arm, shape `(arms, arms * context)`.

    Raises:
        ValueError: If `context` is not a vector or `arms` not a positive integer.
    """
    arms = whole("arms", least=1)(arms)
    z = real(context)
    if z.ndim != 1 or not z.size:
        raise ValueError(f"`context` must be a vector; got shape {z.shape}.")
    return jnp.kron(jnp.eye(arms, dtype=z.dtype), z[None])


def checked_problem(
    coefficients: Numbers, contexts: Any
) -> tuple[Float[Array, "feature instance"], Contexts]:
    """Check true coefficients, and features that go with them."""
    require_finite("coefficients", coefficients)
    w = real(coefficients)
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"`coefficients` must have shape (feature, instance); got {w.shape}.")
    features, instances = w.shape
    if callable(contexts):
        shape = jax.eval_shape(contexts, jr.key(0)).shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != features:
            raise ValueError(
                f"`contexts` must draw an array of shape (arm, {features}); it draws {shape}."
            )
        return w, cast(Contexts, contexts)
    require_finite("contexts", contexts)
    x = jnp.asarray(contexts)
    tail = (features,) if x.ndim == 3 else (features, instances)
    if x.ndim not in (3, 4) or 0 in x.shape or x.shape[2:] != tail:
        raise ValueError(
            f"`contexts` must be a function of a key, or have shape (round, arm, {features}) "
            f"or (round, arm, {features}, {instances}); got {x.shape}."
        )
    return w, x.astype(w.dtype)


def wrong_number(what: str, has: int, wants: int) -> str:
    """Return a complaint if two numbers differ."""
    return "" if has == wants else f"is for the environment's {wants} {what}; it is for {has}"
