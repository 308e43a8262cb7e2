"""Linear models that learn one row at a time, many problems at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, require_finite
from ._linear import LinearGaussian


class AbstractRidgeState(eqx.Module):
    """Coefficients of a linear model and a square root of their covariance.

    Updates are made to the root, so that the covariance never loses its positive sign to
    rounding and is never factorised anew.

    Attributes:
        mu: Expected coefficients, shape `(feature, *batch)`.
        root: A square root of their covariance, in general not triangular, shape
            `(feature, feature, *batch)`.

    References:
        Potter's square root filter: Bierman (1977), "Factorization Methods for Discrete
        Sequential Estimation".
    """

    mu: Float[Array, "feature *batch"]
    root: Float[Array, "feature feature *batch"]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of problems."""
        return self.mu.shape[1:]

    def predict(
        self, features: Float[Array, "action feature *batch"]
    ) -> tuple[Float[Array, "action *batch"], Float[Array, "action *batch"]]:
        """Return the expected mean reward of actions, and its scale.

        Returns:
            The means, and the standard deviations in units of that of the noise.
        """
        mean = jnp.einsum("af...,f...->a...", features, self.mu)
        white = jnp.einsum("af...,fg...->ag...", features, self.root)
        return mean, jnp.sqrt(jnp.sum(white**2, axis=1))

    def learn[State: "AbstractRidgeState"](
        self: State, features: Float[Array, "feature *batch"], reward: Array, variance: Array
    ) -> tuple[State, Array]:
        """Return the state after one reward, and the squared error of its prediction.

        Args:
            features: Features of the action taken.
            reward: Its reward, shape `(*batch,)`.
            variance: Variance of its noise, relative to that of the model.

        Returns:
            The state, and the squared error over its predictive variance.
        """
        white = jnp.einsum("f...,fg...->g...", features, self.root)
        # Predictive variance s = v + x'RR'x. With f = R'x, R (I - f f' / (s + sqrt(s v))) is a
        # root of RR' - Rff'R' / s, as squaring it shows.
        spread = variance + jnp.sum(white**2, axis=0)
        along = jnp.einsum("fg...,g...->f...", self.root, white)
        error = reward - jnp.sum(features * self.mu, axis=0)
        shrink = white / (spread + jnp.sqrt(spread * variance))
        state = type(self)(
            self.mu + along * (error / spread), self.root - along[:, None] * shrink[None]
        )
        return state, error**2 / spread


class RidgeState(AbstractRidgeState):
    """Coefficients of a linear model, all of whose rewards have the same weight.

    `root @ root.T` is the covariance in units of the noise variance, the inverse of
    `ridge I + sum of x x'`.
    """


class WeightedRidgeState(AbstractRidgeState):
    """Coefficients of a linear model whose rewards are weighted by their own variances.

    `root @ root.T` is the covariance, the inverse of `ridge I + sum of x x' / variance`.
    """


class LinearState(eqx.Module):
    """A `LinearGaussian` belief for a batch of problems, updated one reward at a time.

    Attributes:
        fit: Coefficients, and a square root of their covariance in units of the noise
            variance.
        alpha: Shape of the inverse gamma distribution of the noise variance, `(*batch,)`.
        beta: Its scale, in squared units of the reward, shape `(*batch,)`.
    """

    fit: RidgeState
    alpha: Float[Array, "*batch"]
    beta: Float[Array, "*batch"]

    def update(self, features: Numbers, reward: Numbers) -> "LinearState":
        """Return the state after one more reward.

        Args:
            features: Features of the action taken, shape `(feature, *batch)`.
            reward: Its reward, shape `(*batch,)`.

        Raises:
            ValueError: If shapes do not match or a value is not finite.
        """
        x, y = checked_reward(self.fit, features, reward)
        fit, squared = self.fit.learn(x, y, jnp.ones_like(y))
        return LinearState(fit, self.alpha + 0.5, self.beta + squared / 2)

    @seeded
    def sample(self, *, key: PRNGKey) -> Float[Array, "feature *batch"]:
        """Draw coefficients."""
        key_variance, key_noise = jr.split(key)
        mu = self.fit.mu
        variance = self.beta / jr.gamma(key_variance, self.alpha, dtype=mu.dtype)
        noise = jr.normal(key_noise, mu.shape, mu.dtype)
        step = jnp.einsum("fg...,g...->f...", self.fit.root, noise)
        return mu + jnp.sqrt(variance) * step

    def belief(self) -> LinearGaussian:
        """Return the belief of one problem, without batch axes.

        Raises:
            ValueError: If there are batch axes.
        """
        if self.fit.batch_shape:
            raise ValueError(
                f"Only a state without batch axes is one belief; it has {self.fit.batch_shape}."
            )
        root = self.fit.root
        return LinearGaussian(self.fit.mu, root @ root.T, self.alpha, self.beta)


def start_ridge(kind: type, features: int, ridge: float | int, batch: tuple[int, ...]) -> Any:
    """Return coefficients of zero with covariance `I / ridge`, in the default precision."""
    mu = jnp.zeros((features, *batch))
    root = jnp.eye(features, dtype=mu.dtype) / jnp.sqrt(jnp.asarray(ridge, mu.dtype))
    return kind(mu, _wide(root, batch))


def start_linear(prior: LinearGaussian, batch: tuple[int, ...]) -> LinearState:
    """Return a belief as the state of a batch of problems."""
    fit = RidgeState(_wide(prior.mu, batch), _wide(jnp.linalg.cholesky(prior.cov), batch))
    return LinearState(fit, _wide(prior.alpha, batch), _wide(prior.beta, batch))


def checked_actions(fit: AbstractRidgeState, features: Numbers) -> Float[Array, "..."]:
    """Check features `(action, feature, *batch)`; return them in the state's type."""
    require_finite("features", features)
    x = jnp.asarray(features, fit.mu.dtype)
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1:] != fit.mu.shape:
        want = ", ".join(["action", *map(str, fit.mu.shape)])
        raise ValueError(f"`features` must have shape ({want}); got {x.shape}.")
    return x


def checked_reward(
    fit: AbstractRidgeState, features: Numbers, reward: Numbers, lead: tuple[int, ...] = ()
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Check features `(*lead, feature, *batch)` and their rewards; return both as arrays."""
    require_finite("features", features)
    require_finite("reward", reward)
    x, y = jnp.asarray(features, fit.mu.dtype), jnp.asarray(reward, fit.mu.dtype)
    want, want_reward = (*lead, *fit.mu.shape), (*lead, *fit.batch_shape)
    if x.shape != want or y.shape != want_reward:
        raise ValueError(
            f"`features` of what was chosen must have shape {want} and `reward` "
            f"{want_reward}; got {x.shape} and {y.shape}."
        )
    return x, y


def _wide(array: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """Return an array repeated along batch axes at the end."""
    expanded = array.reshape(array.shape + (1,) * len(batch))
    return jnp.broadcast_to(expanded, (*array.shape, *batch))
