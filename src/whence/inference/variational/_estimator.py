"""Estimates of an objective and of its gradient in the parameters of a family.

With positions `z_m = t(params, noise_m)`, all but `ScoreFunction` pull a force on the
positions back through `t`. They differ in the force, and agree in expectation. Only values
and gradients of the log density at all positions together enter, so that one compiled copy of
it serves any of them, and what positions share is computed once.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._family import AbstractFamily, Noise
from ._flow import Flow
from ._gamma import HasRejection
from ._local import has_kind
from ._objective import ELBO, AbstractObjective, path_slopes, score_slopes, slopes
from ._terms import (
    Terms,
    as_terms,
    coefficients,
    entropy_total,
    log_prob_terms,
    scaled_score,
)

Positions = Float[Array, "sample dim"]
LogDensities = Callable[[Positions], Any]  # log densities of draws, or `Terms`
LogWeights = Any  # as the log densities are
PLAIN = ELBO()


class AbstractEstimator(eqx.Module):
    """How the gradient of an objective is estimated from some draws of noise."""

    @abc.abstractmethod
    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        """Raise `ValueError` if it does not go together with the rest.

        Args:
            objective: The objective.
            family: The family, bound.
            samples: Draws per update.
        """

    @abc.abstractmethod
    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Return the gradient of the objective by a step.

        Args:
            at: The draws, and what was computed there.
            objective: What is maximised.
        """

    def estimate(
        self,
        family: AbstractFamily,
        params: PyTree,
        log_densities: LogDensities,
        noise: Noise,
        objective: AbstractObjective = PLAIN,
        mask: np.ndarray | None = None,
    ) -> tuple[LogWeights, PyTree]:
        """Return `log p - log q` of each draw in nats, and the gradient of the objective.

        Args:
            family: The family.
            params: Its parameters.
            log_densities: The target's log densities at flat positions, one per draw.
            noise: From the family, with a leading axis `sample`.
            objective: What is maximised.
            mask: Which coordinates draws share, `(dim,)`; None for none of them.
        """
        at = Evaluated(family, params, log_densities, noise, mask)
        return at.plain, self.gradient(at, objective)


class PathDerivative(AbstractEstimator):
    """The force is the gradient of `log p - log q` at fixed parameters of `q`.

    For the `ELBO`, what is left out, the expected score of `q`, is zero. If `q` is the
    target, each draw's force is zero: the estimate has no variance at the optimum ("sticking
    the landing"). For other bounds the score's part is a path derivative too, which makes this
    the doubly reparameterised gradient (DReG): its signal to noise grows with the number of
    draws in a group, where that of `TotalDerivative` falls. Of flows the force is carried
    along with the draws, without inverting them.

    References:
        Roeder, Wu and Duvenaud (2017), "Sticking the landing: simple, lower-variance
        gradient estimators for variational inference", NeurIPS, equation 8.
        Tucker, Lawson, Gu, Maddison (2019), Doubly reparameterized gradient estimators for
        Monte Carlo objectives, arXiv:1810.04152.
        Vaitl, Winkler, Richter, Kessel (2024), Fast and unified path gradient estimators for
        normalizing flows, arXiv:2403.15881.
    """

    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        _check_moving(self, objective)

    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Pull back the gradient of `log p` less the score of `q`."""
        own = coefficients(path_slopes, objective, at.weights)
        is_linear = isinstance(objective, ELBO)
        scores = at.scores(own) if is_linear else at.moving_scores(own)
        return at.pull_back(at.force(own, objective) - scores)


class TotalDerivative(AbstractEstimator):
    """The plain reparameterisation gradient, the score of `q` left in.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114.
    """

    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        _check_moving(self, objective)

    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Pull back the gradient of `log p`, less that of `log q` by noise."""
        own = coefficients(slopes, objective, at.weights)
        energy = at.pull_back(at.force(own, objective))
        return jax.tree.map(jnp.subtract, energy, at.prob_pull_back(own))


class ClosedFormEntropy(AbstractEstimator):
    """The force is the gradient of `log p`; the entropy of `q` is added in closed form.

    References:
        Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation
        variational inference", JMLR 18(14), section 2.5.
    """

    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        _check_elbo(self, objective)
        if has_kind(family, Flow):
            raise ValueError(
                "ClosedFormEntropy needs a family with an entropy in closed form, which `Flow` "
                "has not: use `estimator=PathDerivative()`."
            )

    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Pull back the gradient of `log p`, and add that of the entropy."""
        return jax.tree.map(jnp.add, at.energy_gradient(), at.entropy_gradient())


class ScoreFunction(AbstractEstimator):
    """Log weights times scores of `q`, the other draws as control variate.

    It asks no gradient of the target but by what draws share. Its variance grows with the
    number of latents: for targets that have no gradient, and for `LogVariance`.

    References:
        Ranganath, Gerrish, Blei (2014), Black box variational inference, AISTATS.
        Mnih, Rezende (2016), arXiv:1602.06725.
    """

    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        if samples < 2:
            raise ValueError(
                f"ScoreFunction needs at least 2 `samples`, the others for control of "
                f"each; got {samples}."
            )

    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Return the mean of coefficients times scores."""
        own = coefficients(score_slopes, objective, at.weights)
        force = at.model_force(objective) - at.moving_scores(own)
        return jax.tree.map(jnp.add, at.pull_back(force), at.prob_pull_back(own))


class RejectionSampling(AbstractEstimator):
    """Reparameterisation through the accepted proposals of a rejection sampler.

    The force is that of `log p` at fixed accepted proposals; their density depends on the
    parameters, which a term with the score of its ratio corrects. The entropy is added in
    closed form. For families with such a sampler: `Gamma`.

    References:
        Naesseth, Ruiz, Linderman, Blei (2017), Reparameterization gradients through
        acceptance-rejection sampling algorithms, arXiv:1610.05683, equations 7 and 8.
    """

    def check(self, objective: AbstractObjective, family: AbstractFamily, samples: int) -> None:
        _check_elbo(self, objective)
        if not isinstance(family, HasRejection):
            raise ValueError(
                "RejectionSampling needs a family with a rejection sampler, `Gamma`; got "
                f"{type(family).__name__}."
            )

    def gradient(self, at: "Evaluated", objective: AbstractObjective) -> PyTree:
        """Pull back the gradient of `log p`, and add correction and entropy."""
        family, params = at.family, at.params
        assert isinstance(family, HasRejection)
        accepted = jax.vmap(lambda n: family.accepted(params, n))(at.noise)
        value = at.log_density.shared
        rest = (jnp.sum(value) - value) / max(value.size - 1, 1)
        signal = (value - rest) / value.size  # the ratio's own score has mean zero

        def by_step(step):
            moved = family.move(params, step)
            positions = jax.vmap(lambda e: family.proposed(moved, e))(accepted)
            ratios = jax.vmap(lambda e: family.log_ratio(moved, e))(accepted)
            return jnp.sum(force * positions) / value.size + signal @ ratios

        force = at.force(coefficients(slopes, objective, at.weights), objective)
        energy = jax.grad(by_step)(family.no_step(params))
        return jax.tree.map(jnp.add, energy, at.entropy_gradient())


class Evaluated:
    """What estimators are made of, at some draws; unused parts are never computed."""

    def __init__(
        self,
        family: AbstractFamily,
        params: PyTree,
        log_densities: LogDensities,
        noise: Noise,
        mask: np.ndarray | None = None,
    ):
        """Evaluate log densities of draws; arguments as of `AbstractEstimator.estimate`."""
        self.family, self.params, self.noise = family, params, noise
        self.mask = None if mask is None or not mask.any() else mask
        self._zero = family.no_step(params)

        def positions_after(step):
            moved = family.move(params, step)
            return jax.vmap(lambda n: family.transform(moved, n))(noise)

        positions, self._back_positions = jax.vjp(positions_after, self._zero)
        plain = []

        def terms(x):
            value = log_densities(x)
            plain.append(not isinstance(value, Terms))
            return as_terms(value)

        self.log_density, self._back = jax.vjp(terms, positions)
        self.weights = jax.tree.map(jnp.subtract, self.log_density, self._log_prob(self._zero))
        self._is_plain = plain[0]

    @property
    def plain(self) -> LogWeights:
        """Log weights in the form of the log densities."""
        return self.weights.shared if self._is_plain else self.weights

    def _log_prob(self, step) -> Terms:
        moved = self.family.move(self.params, step)
        one = lambda n: log_prob_terms(self.family, moved, n, self.log_density)
        return jax.vmap(one)(self.noise)

    def pull_back(self, force: Positions) -> PyTree:
        """Return the gradient by a step, of the mean over draws of forces times positions."""
        return self._back_positions(force / len(force))[0]

    def prob_pull_back(self, own: Terms) -> PyTree:
        """Return that of the mean of coefficients times `log q`, at fixed noise."""
        size = own.shared.size
        _, back = jax.vjp(self._log_prob, self._zero)
        return back(jax.tree.map(lambda x: x / size, own))[0]

    def energy_gradient(self) -> PyTree:
        """Return the gradient of the expected `log p` by a step."""
        return self.pull_back(self.force(coefficients(slopes, ELBO(), self.weights), ELBO()))

    def entropy_gradient(self) -> PyTree:
        """Return the gradient of the entropy by a step."""
        scale = self.log_density.scale
        entropy = lambda s: entropy_total(self.family, self.family.move(self.params, s), scale)
        return jax.grad(entropy)(self._zero)

    def force(self, own: Terms, objective: AbstractObjective) -> Positions:
        """Return gradients of `log p` times coefficients; for what draws share, the model's."""
        # Of a coordinate that positions share, one of them has the gradient of all.
        (gradient,) = self._back(own)
        if isinstance(objective, ELBO) or self.mask is None:
            return gradient
        return jnp.where(self.mask[None], self._of_model(objective), gradient)

    def model_force(self, objective: AbstractObjective) -> Positions:
        """Return the gradient of the objective by what draws share, zero elsewhere."""
        if self.mask is not None:
            return jnp.where(self.mask[None], self._of_model(objective), 0)
        shape = jax.eval_shape(self._back, self.log_density)[0]
        return jnp.zeros(shape.shape, shape.dtype)

    def scores(self, own: Terms) -> Positions:
        """Return scores times coefficients."""
        one = lambda n, c: scaled_score(self.family, self.params, n, c)
        return jax.vmap(one)(self.noise, own)

    def moving_scores(self, own: Terms) -> Positions:
        """As `scores`, zero for what draws share: there the law of the rest has a parameter.

        The expected score by that is zero, unless it is weighted.
        """
        scores = self.scores(own)
        return scores if self.mask is None else jnp.where(self.mask[None], 0, scores)

    def _of_model(self, objective: AbstractObjective) -> Positions:
        return self._back(coefficients(slopes, objective.of_model, self.weights))[0]


def _check_moving(estimator: AbstractEstimator, objective: AbstractObjective) -> None:
    if objective.at_fixed_draws:
        raise ValueError(
            f"{type(objective).__name__} is a gradient at fixed draws, and "
            f"{type(estimator).__name__} moves them: use `estimator=ScoreFunction()`."
        )


def _check_elbo(estimator: AbstractEstimator, objective: AbstractObjective) -> None:
    if not isinstance(objective, ELBO):
        raise ValueError(
            f"{type(estimator).__name__} is for the `ELBO` alone, whose log weights enter "
            f"linearly; got {type(objective).__name__}. Use `estimator=PathDerivative()`."
        )
