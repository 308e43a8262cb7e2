"""Moves of particles that leave one density of the path invariant.

All particles move together, in coordinates whitened by a factor of their covariance, so
that a unit is a posterior standard deviation and one scale serves every particle. A
proposal costs `num_evaluations` passes over all particles.

A kernel's first call at a temperature is a `refresh`: it proposes the particles
themselves, which evaluates the density (and gradient) there. It runs through the same
code as a move, so a program holds one copy of the model's gradient.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ...core._convert import number
from ...core._types import PRNGKey, Scalar
from ._metric import Factor

LogTerms = Callable[[Float[Array, " dim"]], tuple[Scalar, Scalar]]


class Particles(eqx.Module):
    """Points with the two terms of the path's log density."""

    x: Float[Array, "particle dim"]  # flat positions
    log_base: Float[Array, " particle"]  # in nats; 0 where not finite
    log_tilt: Float[Array, " particle"]  # in nats; `-inf` where either term is not finite

    def log_density(self, temperature: Scalar) -> Float[Array, " particle"]:
        """Return the log density at a positive temperature."""
        return self.log_base + temperature * self.log_tilt


class Proposal(NamedTuple):
    """Proposed particles."""

    particles: Particles  # where to
    # Of the log density there; None if the kernel uses none.
    gradient: Float[Array, "particle dim"] | None
    # What to add to the log density ratio before accepting.
    log_correction: Float[Array, " particle"]
    num_evaluations: Int[Array, ""]  # passes over all particles that this took


class AbstractKernel(eqx.Module):
    """A reversible proposal with one tunable scale.

    Attributes:
        uses_gradient: Whether it is given the gradient at the particles, and returns that at
            the proposed ones.
    """

    uses_gradient: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def first_scale(self, dim: int) -> float:
        """Return the scale to start from, in whitened units."""

    @abc.abstractmethod
    def target_acceptance(self, dim: int) -> float:
        """Return the acceptance rate the scale is tuned to."""

    @abc.abstractmethod
    def propose(
        self,
        log_terms: LogTerms,
        particles: Particles,
        gradient: Float[Array, "particle dim"] | None,
        temperature: Scalar,
        factor: Factor,
        scale: Scalar,
        refresh: Bool[Array, ""],
        *,
        key: PRNGKey,
    ) -> Proposal:
        """Propose a move of every particle, or (`refresh`) the particles themselves."""


class RandomWalk(AbstractKernel):
    """Gaussian random walk Metropolis with the particles' covariance.

    References:
        Roberts, Gelman and Gilks (1997), doi:10.1214/aoap/1034625254: scale 2.38 / sqrt(d),
        acceptance 0.234 (0.44 in one dimension).
    """

    uses_gradient: ClassVar[bool] = False

    def first_scale(self, dim: int) -> float:
        return 2.38 / dim**0.5

    def target_acceptance(self, dim: int) -> float:
        return 0.44 if dim == 1 else 0.234

    def propose(
        self, log_terms, particles, gradient, temperature, factor, scale, refresh, *, key
    ) -> Proposal:
        x = particles.x
        jump = scale.astype(x.dtype) * factor.colour(jr.normal(key, x.shape, x.dtype))
        x = jnp.where(refresh, x, x + jump)
        proposed = guard(x, *jax.vmap(log_terms)(x))
        return Proposal(
            proposed, None, jnp.zeros_like(proposed.log_base), jnp.asarray(1, jnp.int32)
        )


class Hamiltonian(AbstractKernel):
    """Leapfrog trajectories a quarter of a period long, in whitened coordinates.

    For a Gaussian whitened by its own covariance every coordinate has period 2 pi, and
    pi / 2 makes the end independent of the start. The scale is the longest step allowed;
    the step is the quarter period over a whole number. Each particle's step is drawn
    within 20% of that, so that no coordinate is in resonance with it.

    Attributes:
        max_leapfrogs: Most leapfrog steps in a trajectory.

    References:
        Neal (2011), arXiv:1206.1901.
        Buchholz, Chopin and Jacob (2021), tuning on the particles, Bayesian Analysis 16(3).
    """

    max_leapfrogs: int = 32
    uses_gradient: ClassVar[bool] = True

    def first_scale(self, dim: int) -> float:
        return dim**-0.25

    def target_acceptance(self, dim: int) -> float:
        return 0.8

    def propose(
        self, log_terms, particles, gradient, temperature, factor, scale, refresh, *, key
    ) -> Proposal:
        key_momentum, key_jitter = jr.split(key)
        x = particles.x
        jitter = jr.uniform(key_jitter, (x.shape[0], 1), x.dtype, 0.8, 1.2)
        quarter = 0.5 * jnp.pi
        num = jnp.clip(jnp.ceil(quarter / scale), 1, self.max_leapfrogs)
        step = jnp.minimum(scale, quarter / num).astype(x.dtype) * jitter
        num = jnp.where(refresh, 1, num.astype(jnp.int32))
        here = particles, jr.normal(key_momentum, x.shape, x.dtype), gradient
        return _trajectory(log_terms, here, temperature, factor, step, num, refresh)


class Langevin(AbstractKernel):
    """Metropolis-adjusted Langevin steps, in whitened coordinates: single leapfrog steps.

    References:
        Roberts and Rosenthal (1998), doi:10.1111/1467-9868.00123: scale of order d^(-1/6),
        acceptance 0.574.
    """

    uses_gradient: ClassVar[bool] = True

    def first_scale(self, dim: int) -> float:
        return dim ** (-1 / 6)

    def target_acceptance(self, dim: int) -> float:
        return 0.574

    def propose(
        self, log_terms, particles, gradient, temperature, factor, scale, refresh, *, key
    ) -> Proposal:
        x, one = particles.x, jnp.asarray(1, jnp.int32)
        here = particles, jr.normal(key, x.shape, x.dtype), gradient
        step = scale.astype(x.dtype)
        return _trajectory(log_terms, here, temperature, factor, step, one, refresh)


class Independent(AbstractKernel):
    """Proposals from a Student law with mean and covariance of the particles: no scale.

    For posteriors near to normal, of few dimensions; what it proposes knows nothing of where
    a particle is, so that particles change modes.

    Attributes:
        freedom: Degrees of freedom.

    References:
        Chopin (2002), doi:10.1093/biomet/89.3.539, section 3.
    """

    freedom: float = eqx.field(default=5.0, converter=number("freedom", above=2))
    uses_gradient: ClassVar[bool] = False

    def first_scale(self, dim: int) -> float:
        return 1.0

    def target_acceptance(self, dim: int) -> float:
        return 0.3  # below it, moves are not taken to have settled

    def propose(
        self, log_terms, particles, gradient, temperature, factor, scale, refresh, *, key
    ) -> Proposal:
        key_normal, key_spread = jr.split(key)
        x, half = particles.x, self.freedom / 2
        spread = jr.gamma(key_spread, half, (x.shape[0], 1), x.dtype) / half
        jump = jr.normal(key_normal, x.shape, x.dtype) / jnp.sqrt(spread)
        new = jnp.where(refresh, x, factor.centre[None] + factor.colour(jump))
        proposed = guard(new, *jax.vmap(log_terms)(new))
        power = half + x.shape[1] / 2
        log_law = lambda x: (
            -power * jnp.log1p(jnp.sum(factor.whiten(x) ** 2, axis=1) / self.freedom)
        )
        correction = (log_law(x) - log_law(new)).astype(proposed.log_base.dtype)
        return Proposal(proposed, None, correction, jnp.asarray(1, jnp.int32))


KERNELS: dict[str, AbstractKernel] = {
    "hmc": Hamiltonian(),
    "rwm": RandomWalk(),
    "mala": Langevin(),
    "independent": Independent(),
}


def _trajectory(log_terms, here, temperature, factor, step, num, refresh) -> Proposal:
    """Make leapfrog steps of all particles; at a refresh, evaluate where they are."""

    def log_density(x):
        log_base, log_tilt = log_terms(x)
        return log_base + temperature * log_tilt, (log_base, log_tilt)

    evaluate = jax.vmap(jax.grad(log_density, has_aux=True))

    def leapfrog(_, carry):
        here, momentum, gradient = carry
        half = momentum + 0.5 * step * factor.pull(gradient)
        x = jnp.where(refresh, here.x, here.x + step * factor.colour(half))
        gradient, terms = evaluate(x)
        momentum = half + 0.5 * step * factor.pull(gradient)
        return guard(x, *terms), momentum, gradient

    momentum = here[1]
    end, last_momentum, gradient = jax.lax.fori_loop(0, num, leapfrog, here)
    kinetic = 0.5 * jnp.sum(momentum**2 - last_momentum**2, axis=-1)
    return Proposal(end, gradient, kinetic.astype(end.log_base.dtype), num)


def guard(x, log_base, log_tilt) -> Particles:
    """Give a particle whose log density is not finite zero density at every temperature."""
    finite = jnp.isfinite(log_base) & jnp.isfinite(log_tilt)
    return Particles(x, jnp.where(finite, log_base, 0.0), jnp.where(finite, log_tilt, -jnp.inf))
