"""Gaussian surrogates of the likelihoods of shards, one pass over the data each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ...core._target import AbstractDataTarget, AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ._gradient import Space, Vector, find_mode

SURROGATES = ("laplace", "local", "none")
LARGEST = 500  # latents up to which a precision is a matrix, and not its diagonal
LOCAL_STEPS, LOCAL_STEP = 4_000, 0.1  # of the chain of `"local"`, preconditioned to unit scale


class Surrogates(eqx.Module):
    """Natural parameters of one Gaussian per shard: `log q_s = linear x - x' precision x / 2`.

    Attributes:
        linear: `(shard, dim)`.
        precision: `(shard, dim, dim)`, or `(shard, dim)` if diagonal.
    """

    linear: Float[Array, "shard dim"]
    precision: Float[Array, "shard dim *more"]

    def conducive(self, shard: Int[Array, ""], weight: Scalar, flat: Vector) -> Vector:
        """Return the gradient of `sum_r log q_r - weight * log q_shard`."""
        linear = self.linear.sum(0) - weight * self.linear[shard]
        precision = self.precision.sum(0) - weight * self.precision[shard]
        return linear - (precision @ flat if precision.ndim == 2 else precision * flat)


class _Shard(AbstractTarget):
    """The posterior that one shard would have alone."""

    target: AbstractDataTarget
    first: Int[Array, ""]
    size: Int[Array, ""]
    width: int = eqx.field(static=True)  # rows of the largest shard

    def init(self, *, key: PRNGKey) -> Position:
        return self.target.init(key=key)

    def constrain(self, position: Position) -> Position:
        return position

    def log_likelihood(self, position: Position) -> Float[Array, " row"]:
        """Return one entry per row; zero for those beyond the shard."""
        place = jnp.arange(self.width, dtype=jnp.int32)
        inside = place < self.size
        rows = self.first + jnp.where(inside, place, 0)
        each = self.target.log_likelihood(position, rows).reshape(self.width, -1).sum(1)
        return jnp.where(inside, each, jnp.zeros_like(each))

    def log_density(self, position: Position) -> Scalar:
        return self.target.log_prior(position) + self.log_likelihood(position).sum()


def fit_surrogates(
    space: Space, flat: Vector, sizes: tuple[int, ...], kind: str, *, key: PRNGKey
) -> Surrogates:
    """Fit a Gaussian to the likelihood of each shard.

    Args:
        space: The target density.
        flat: A position, for its shape.
        sizes: Rows of each shard.
        kind: `"laplace"` or `"local"`.
        key: For the searches and chains.
    """
    target, form = space.target, space.form
    assert isinstance(target, AbstractDataTarget)

    def one(shard):
        first, size, key = shard
        alone = _Shard(target, first, size, max(sizes))
        mode = find_mode(alone, key=jr.fold_in(key, 0)).astype(flat.dtype)
        if kind == "local" and flat.size <= LARGEST:
            return _from_chain(alone, mode, form, key=jr.fold_in(key, 1))
        likelihood = lambda x: alone.log_likelihood(form(x)).sum()
        if flat.size <= LARGEST:
            precision = -jax.hessian(likelihood)(mode)
            return jax.grad(likelihood)(mode) + precision @ mode, precision
        # The diagonal of the Fisher information: squares of the gradients of single rows.
        row = lambda i: jax.grad(lambda x: alone.log_likelihood(form(x))[i])(mode)
        squares = lambda i, total: total + row(i) ** 2
        precision = jax.lax.fori_loop(0, size, squares, jnp.zeros_like(mode))
        return jax.grad(likelihood)(mode) + precision * mode, precision

    starts = np.cumsum(sizes) - np.asarray(sizes)
    shards = (jnp.asarray(starts, jnp.int32), jnp.asarray(sizes, jnp.int32))
    linear, precision = jax.lax.map(one, (*shards, jr.split(key, len(sizes))))
    return Surrogates(linear, precision)


def _from_chain(alone: _Shard, mode: Vector, form, *, key: PRNGKey):
    """Natural parameters from moments of a Langevin chain, the prior's taken away."""
    density = lambda x: alone.log_density(form(x))
    prior = lambda x: alone.target.log_prior(form(x))
    values, axes = jnp.linalg.eigh(-jax.hessian(density)(mode))
    tiny = 10 * mode.size * jnp.finfo(mode.dtype).eps
    root = axes / jnp.sqrt(jnp.maximum(values, tiny * values[-1]))[None]  # root root' = 1 / H

    def step(i, carry):
        z, total, squares = carry
        slope = root.T @ jax.grad(density)(mode + root @ z)
        noise = jr.normal(jr.fold_in(key, i), z.shape, z.dtype)
        z = z + LOCAL_STEP * slope + jnp.sqrt(2 * jnp.asarray(LOCAL_STEP, z.dtype)) * noise
        return z, total + z, squares + z[:, None] * z[None]

    zero = jnp.zeros_like(mode)
    start = zero, zero, jnp.zeros((mode.size, mode.size), mode.dtype)
    _, total, squares = jax.lax.fori_loop(0, LOCAL_STEPS, step, start)
    mean = total / LOCAL_STEPS
    spread = squares / LOCAL_STEPS - mean[:, None] * mean[None]
    # The step makes variances of a Gaussian too large by `1 / (1 - LOCAL_STEP / 2)`.
    inverse = jnp.linalg.inv(root)
    precision = inverse.T @ jnp.linalg.inv(spread * (1 - LOCAL_STEP / 2)) @ inverse
    centre = mode + root @ mean
    hessian = -jax.hessian(prior)(centre)
    linear = precision @ centre - (jax.grad(prior)(centre) + hessian @ centre)
    return linear, precision - hessian
