"""Environments: many instances of a bandit problem, with the truth known."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from ....core._convert import part, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, require_finite, require_positive, require_within
from ._normal_gamma import NormalGamma

PerInstance = Float[Array, "arm instance"]
Keys = Key[Array, " instance"]


class AbstractEnvironment(eqx.Module):
    """Instances of a bandit problem. Every leaf is a parameter of shape `(arm, instance)`."""

    @property
    @abc.abstractmethod
    def means(self) -> Float[Array, "..."]:
        """Mean reward, of the shape of the parameters."""

    @abc.abstractmethod
    def sample(self, lead: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        """Draw rewards, of shape `lead` followed by the shape of the parameters."""

    @property
    def arms(self) -> int:
        """Number of arms."""
        return jax.tree.leaves(self)[0].shape[0]

    @property
    def instances(self) -> int:
        """Number of instances."""
        return jax.tree.leaves(self)[0].shape[1]

    @seeded
    def pull(self, arm: Array, *, key: PRNGKey) -> Float[Array, " instance"]:
        """Draw a reward of one arm per instance."""
        return self._only(arm).sample(key=key)

    def pull_keyed(self, arm: Array, *, keys: Keys) -> Float[Array, " instance"]:
        """Draw a reward of one arm per instance, each with a key of its own."""
        return jax.vmap(lambda one, key: one.sample(key=key))(self._only(arm), keys)

    def _only(self, arm: Array) -> Any:
        """Return the parameters of one arm per instance, without the axis of arms."""
        return jax.tree.map(lambda x: x[arm, jnp.arange(x.shape[1])], self)


class GaussianArms(AbstractEnvironment):
    """Gaussian rewards.

    Attributes:
        loc: Mean rewards, shape `(arm, instance)`.
        scale: Standard deviations of the rewards, shape `(arm, instance)`.

    Raises:
        ValueError: If shapes do not match, or a standard deviation is not positive.
    """

    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(self, loc: Numbers, scale: Numbers):
        require_finite("loc", loc)
        require_positive("scale", scale)
        self.loc, self.scale = _per_instance(loc=loc, scale=scale)

    @property
    def means(self) -> Float[Array, "..."]:
        return self.loc

    @seeded
    def sample(self, lead: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        noise = jr.normal(key, (*lead, *self.loc.shape), self.loc.dtype)
        return self.loc + self.scale * noise


class BernoulliArms(AbstractEnvironment):
    """Rewards of 0 or 1.

    Attributes:
        probs: Probabilities of 1, shape `(arm, instance)`.

    Raises:
        ValueError: If the shape is another or a probability is not from 0 to 1.
    """

    probs: Float[Array, "..."]

    def __init__(self, probs: Numbers):
        require_within("probs", probs, 0.0, 1.0)
        (self.probs,) = _per_instance(probs=probs)

    @property
    def means(self) -> Float[Array, "..."]:
        return self.probs

    @seeded
    def sample(self, lead: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        shape = (*lead, *self.probs.shape)
        return jr.bernoulli(key, self.probs, shape).astype(self.probs.dtype)


class BetaArms(AbstractEnvironment):
    """Rewards from 0 to 1 with a beta distribution.

    Attributes:
        alpha: First parameters, shape `(arm, instance)`.
        beta: Second parameters, shape `(arm, instance)`.

    Raises:
        ValueError: If shapes do not match, or a parameter is not positive.
    """

    alpha: Float[Array, "..."]
    beta: Float[Array, "..."]

    def __init__(self, alpha: Numbers, beta: Numbers):
        require_positive("alpha", alpha)
        require_positive("beta", beta)
        self.alpha, self.beta = _per_instance(alpha=alpha, beta=beta)

    @property
    def means(self) -> Float[Array, "..."]:
        return self.alpha / (self.alpha + self.beta)

    @seeded
    def sample(self, lead: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        shape = (*lead, *self.alpha.shape)
        return jr.beta(key, self.alpha, self.beta, shape, self.alpha.dtype)


class UniformArms(AbstractEnvironment):
    """Rewards uniform on an interval.

    Attributes:
        centre: Mean rewards, shape `(arm, instance)`.
        half_width: Half the lengths of the intervals, shape `(arm, instance)`.

    Raises:
        ValueError: If shapes do not match, or a length is not positive.
    """

    centre: Float[Array, "..."]
    half_width: Float[Array, "..."]

    def __init__(self, centre: Numbers, half_width: Numbers):
        require_finite("centre", centre)
        require_positive("half_width", half_width)
        self.centre, self.half_width = _per_instance(centre=centre, half_width=half_width)

    @property
    def means(self) -> Float[Array, "..."]:
        """Mean rewards."""
        return self.centre

    @seeded
    def sample(self, lead: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        shape, dtype = (*lead, *self.centre.shape), self.centre.dtype
        return self.centre + self.half_width * jr.uniform(key, shape, dtype, -1, 1)


@seeded
def sample_instances(prior: NormalGamma, *, instances: int, key: PRNGKey) -> GaussianArms:
    """Draw Gaussian arms from a prior, so that mean regret over them is Bayes regret.

    Args:
        prior: Distribution of means and precisions.
        instances: Number of instances.
        key: For the draws.

    Returns:
        Arms of shape `(arm, instance)`.

    Raises:
        ValueError: If the prior has batch axes, or `instances` is not a positive integer.
    """
    instances = whole("instances", least=1)(instances)
    part("prior", NormalGamma)(prior)
    if prior.batch_shape:
        raise ValueError(f"`prior` must be without batch axes; it has {prior.batch_shape}.")
    key_precision, key_mean = jr.split(key)
    mu, kappa, alpha, beta = jax.tree.leaves(prior.expand((instances,)))
    scale = jnp.sqrt(beta / jr.gamma(key_precision, alpha, dtype=mu.dtype))
    noise = jr.normal(key_mean, mu.shape, mu.dtype)
    return GaussianArms(mu + scale / jnp.sqrt(kappa) * noise, scale)


def _per_instance(**values: Any) -> tuple[PerInstance, ...]:
    arrays = {name: jnp.asarray(value) for name, value in values.items()}
    shapes = {array.shape for array in arrays.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 2 or 0 in shape:
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"Parameters must have one shape (arm, instance); got {got}.")
    dtype = jnp.result_type(*arrays.values(), 0.0)
    return tuple(array.astype(dtype) for array in arrays.values())
