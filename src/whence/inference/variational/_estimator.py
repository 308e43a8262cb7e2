"""Estimates of the ELBO and of its gradient in the parameters of a family.

With positions `z_m = t(params, noise_m)`, both estimators pull a force on the positions
back through `t`. They differ in the force, and agree in expectation. Only values and
gradients of the log density at all positions together enter, so that one compiled copy of
it serves any of them, and what positions share is computed once.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._family import AbstractFamily, Noise

LogDensities = Callable[[Float[Array, "sample dim"]], Float[Array, " sample"]]


class AbstractEstimator(eqx.Module):
    """How the gradient of the ELBO is estimated from some draws of noise."""

    @abc.abstractmethod
    def estimate(
        self, family: AbstractFamily, params: PyTree, log_densities: LogDensities, noise: Noise
    ) -> tuple[Float[Array, " sample"], PyTree]:
        """Return `log p - log q` of each draw in nats, and the gradient of the ELBO.

        Args:
            family: The family.
            params: Its parameters.
            log_densities: The target's log densities at flat positions, one per draw.
            noise: From the family, with a leading axis `sample`.
        """


class PathDerivative(AbstractEstimator):
    """The force is the gradient of `log p - log q` at fixed parameters of `q`.

    What is left out, the expected score of `q`, is zero. If `q` is the target, each draw's
    force is zero: the estimate has no variance at the optimum ("sticking the landing").

    References:
        Roeder, Wu and Duvenaud (2017), "Sticking the landing: simple, lower-variance
        gradient estimators for variational inference", NeurIPS, equation 8.
    """

    def estimate(
        self, family: AbstractFamily, params: PyTree, log_densities: LogDensities, noise: Noise
    ) -> tuple[Float[Array, " sample"], PyTree]:
        """Pull back the gradient of `log p` less the score of `q`."""
        log_weights, gradient, pull_back = _evaluate(family, params, log_densities, noise)
        force = gradient - jax.vmap(lambda n: family.score(params, n))(noise)
        return log_weights, pull_back(force)


class ClosedFormEntropy(AbstractEstimator):
    """The force is the gradient of `log p`; the entropy of `q` is added in closed form.

    References:
        Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation
        variational inference", JMLR 18(14), section 2.5.
    """

    def estimate(
        self, family: AbstractFamily, params: PyTree, log_densities: LogDensities, noise: Noise
    ) -> tuple[Float[Array, " sample"], PyTree]:
        """Pull back the gradient of `log p`, and add that of the entropy."""
        log_weights, gradient, pull_back = _evaluate(family, params, log_densities, noise)
        entropy = jax.grad(lambda step: family.entropy(family.move(params, step)))(
            family.no_step(params)
        )
        return log_weights, jax.tree.map(lambda a, b: a + b, pull_back(gradient), entropy)


def _evaluate(family, params, log_densities, noise):
    """Log weights, gradients of the log density, and the mean pull-back of forces."""

    def positions_after(step):
        moved = family.move(params, step)
        return jax.vmap(lambda n: family.transform(moved, n))(noise)

    positions, pull_back = jax.vjp(positions_after, family.no_step(params))
    log_density, back = jax.vjp(log_densities, positions)
    # Of a coordinate that positions share, one of them has the gradient of all.
    (gradient,) = back(jnp.ones_like(log_density))
    log_prob = jax.vmap(lambda n: family.log_prob(params, n))(noise)
    mean = lambda force: pull_back(force / len(positions))[0]
    return log_density - log_prob, gradient, mean
