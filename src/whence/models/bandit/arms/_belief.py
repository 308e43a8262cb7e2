"""What every belief about the arms can do."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ....core._types import PRNGKey
from .._checks import Numbers, one_hot, pulled, require_arm

PerArm = Float[Array, "arm *batch"]


class AbstractBelief(eqx.Module):
    """A distribution of the arms' mean rewards: a prior, and after rewards a posterior.

    Every leaf has axis 0 for the arms. Axes after it are a batch of independent problems,
    which all methods treat elementwise: `expand` adds them. A method returns a new belief
    and leaves the old one as it is, so that beliefs are states for `jax.jit`, `jax.vmap`
    and `jax.lax.scan`. Values are checked outside of these; inside, where they are not
    known, a reward that is not finite makes the belief about its arm NaN.
    """

    @property
    @abc.abstractmethod
    def mean(self) -> PerArm:
        """Expected mean reward of each arm."""

    @abc.abstractmethod
    def update(self, arm: Numbers, reward: Numbers) -> "AbstractBelief":
        """Return the belief after one more reward.

        Args:
            arm: Index of the arm, an integer of shape `(*batch,)`.
            reward: The reward of that arm, shape `(*batch,)`.

        Raises:
            ValueError: If the arm does not exist or the reward is impossible.
        """

    @abc.abstractmethod
    def update_batch(self, arms: Numbers, rewards: Numbers) -> "AbstractBelief":
        """Return the belief after many rewards, in any order.

        Args:
            arms: Indices of arms, shape `(data, *batch)`.
            rewards: Their rewards, shape `(data, *batch)`.

        Raises:
            ValueError: If an arm does not exist or a reward is impossible.
        """

    @abc.abstractmethod
    def log_evidence(self, arms: Numbers, rewards: Numbers) -> PerArm:
        """Return the log marginal likelihood of rewards, per arm, in nats.

        Args:
            arms: Indices of arms, shape `(data, *batch)`.
            rewards: Their rewards, shape `(data, *batch)`.
        """

    @abc.abstractmethod
    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        """Draw mean rewards from the belief.

        Returns:
            Draws of shape `(*shape, arm, *batch)`.
        """

    @abc.abstractmethod
    def predictive(self) -> Any:
        """Return the distribution of the next reward of each arm, as numpyro has it."""

    @property
    def arms(self) -> int:
        """Number of arms."""
        return jax.tree.leaves(self)[0].shape[0]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of problems."""
        return jax.tree.leaves(self)[0].shape[1:]

    def expand[Belief](self: Belief, batch: tuple[int, ...]) -> Belief:
        """Return the same belief for a batch of problems.

        Args:
            batch: Shape of the batch; that of the belief must broadcast to it.

        Raises:
            ValueError: If it does not.
        """
        has = jax.tree.leaves(self)[0].shape[1:]
        if len(has) > len(batch) or any(
            n not in (1, m) for n, m in zip(has[::-1], batch[::-1])
        ):
            raise ValueError(
                f"`batch` must be a shape to which that of the belief, {has}, broadcasts; "
                f"got {batch}."
            )

        def leaf(x):
            x = x.reshape(x.shape[:1] + (1,) * (len(batch) - x.ndim + 1) + x.shape[1:])
            return jnp.broadcast_to(x, (x.shape[0], *batch))

        return jax.tree.map(leaf, self)


def chosen(
    belief: AbstractBelief, arm: Numbers, reward: Numbers
) -> tuple[Bool[Array, "arm *batch"], Float[Array, "..."]]:
    """Check an arm and its reward; return its mask, and the reward in the belief's type."""
    arm, reward = pulled(arm, reward, belief.arms, belief.batch_shape, belief.mean.dtype)
    return one_hot(arm, belief.arms), reward


def chosen_many(
    belief: AbstractBelief, arms: Numbers, rewards: Numbers
) -> tuple[Bool[Array, "data arm *batch"], Shaped[Array, "data 1 *batch"]]:
    """Check arms and their rewards; return masks and rewards that broadcast to one shape."""
    require_arm(arms, belief.arms)
    arms, rewards = jnp.asarray(arms), jnp.asarray(rewards, belief.mean.dtype)
    if arms.ndim < 1 or arms.shape != rewards.shape or arms.shape[1:] != belief.batch_shape:
        raise ValueError(
            "`arms` and `rewards` must have one shape, (data,) followed by the batch's "
            f"{belief.batch_shape}; got {arms.shape} and {rewards.shape}."
        )
    return jax.vmap(lambda arm: one_hot(arm, belief.arms))(arms), rewards[:, None]


def reward_moments(
    hit: Bool[Array, "data arm *batch"], rewards: Array
) -> tuple[PerArm, PerArm, PerArm]:
    """Return count, mean and sum of squared deviations of each arm's rewards."""
    count = jnp.sum(hit, 0).astype(rewards.dtype)
    mean = jnp.sum(jnp.where(hit, rewards, 0), 0) / jnp.maximum(count, 1)
    return count, mean, jnp.sum(jnp.where(hit, (rewards - mean) ** 2, 0), 0)
