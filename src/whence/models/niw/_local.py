"""Local surrogates: a task's loss as a quadratic, and what it makes of a Gaussian prior.

A surrogate is `l(theta) = value + slope'e + e'diag(a)e / 2 + residual'Be + |Be|^2 / 2` with
`e = theta - centre`: a diagonal part, and rows B of a Gauss-Newton matrix, of which a task of
few points has few. With a prior `N(m0, S)` the best Gaussian is `V = (S^-1 + A)^-1` and
`m = m0 + V (A (centre - m0) - gradient)`. It is found with matrices of the size of the rows:
with `T = (S^-1 + diag a)^-1`, `G = T B'` and `K = B G`,

    V = T - G (I + K)^-1 G',    m = m0 + T w + G (I + K)^-1 (B d - residual - B T w),

where `d = centre - m0` and `w = a d - slope` (Woodbury's identity, and `V B' = G (I + K)^-1`).
Iterations to the centre are not differentiated through, so nothing of them is stored.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array

from ...core._convert import number, one_of, positive, whole
from ...core._types import PRNGKey, Scalar
from .._fit import minimised
from ._covariance import AbstractCovariance, Diagonal, Kronecker, Weights, log_det
from ._meta import TaskLoss

_STRUCTURES = ("full", "diagonal", "kronecker", "last_layer")
_STEPS = (0.0, 1.0, 0.5, 0.25, 0.125)  # parts of a Gauss-Newton step that are tried


def stop[T](tree: T) -> T:
    """Return a pytree that is not differentiated through."""
    cut = lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a
    return jax.tree.map(cut, tree)


class WeightGaussian(eqx.Module):
    """A normal law of weights: `V = T - G (I + K)^-1 G'`."""

    mean: Array  # `(weight,)`
    base: Any  # T, an `AbstractSpread`
    rows: Array | None = None  # B, `(row, weight)`; None if V is T
    gain: Any = None  # G, `(weight, row)`
    tril: Any = None  # the Cholesky factor of `I + K`

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers make a draw."""
        return self.base.noise_size + (0 if self.rows is None else self.rows.shape[-2])

    @property
    def log_det(self) -> Scalar:
        """Log determinant of V."""
        return self.base.log_det - (0 if self.rows is None else log_det(self.tril))

    @property
    def variance(self) -> Weights:
        """Diagonal of V."""
        own = self.base.marginal
        if self.rows is None:
            return own
        # By the inverse: triangular solves of as many columns as weights are slow in batches.
        eye = jnp.eye(len(self.tril), dtype=self.tril.dtype)
        white = solve_triangular(self.tril, eye, lower=True) @ self.gain.T
        return own - jnp.sum(white**2, axis=0)

    def move(self, noise: Array) -> Weights:
        """Map standard normal numbers to a draw of `N(0, V)`; minus them to minus it."""
        if self.rows is None:
            return self.base.root(noise)
        # Matheron's rule: correct a draw of T by how far it is from noisy zeros.
        own, rest = jnp.split(noise, [self.base.noise_size])
        own = self.base.root(own)
        return own - self.gain @ cho_solve((self.tril, True), self.rows @ own + rest)

    def times(self, columns: Array) -> Array:
        """Return V times `(weight, column)`."""
        own = self.base.times(columns)
        if self.rows is None:
            return own
        return own - self.gain @ cho_solve((self.tril, True), self.gain.T @ columns)


class Combined(NamedTuple):
    """A surrogate and a prior."""

    posterior: WeightGaussian  # the best Gaussian
    kl: Scalar  # its divergence from the prior, in nats
    energy: Scalar  # expected surrogate plus `kl`: minus the log evidence of the surrogate


class Quadratic(eqx.Module):
    """A quadratic in place of a task's loss; letters as in the module's docstring.

    The diagonal part may be in a basis of its own, which is taken of `basis`, whatever that
    scales by. The prior's precision is taken as one number for each array then.
    """

    centre: Array  # where it was made, `(weight,)`
    value: Array  # the loss there
    clipped: Array  # share of curvatures that were clipped
    diagonal: Array | None = None  # a; None if there is no diagonal part
    slope: Any = None
    rows: Array | None = None  # B; None if there is none
    residual: Any = None
    basis: Kronecker | None = None

    def at(self, weights: Weights) -> Scalar:
        """Return the surrogate loss."""
        e, total = weights - self.centre, self.value
        if self.diagonal is not None:
            turned = e if self.basis is None else self.basis.into(e)
            total = total + self.slope @ turned + jnp.sum(self.diagonal * turned**2) / 2
        if self.rows is not None:
            along = self.rows @ e
            total = total + self.residual @ along + jnp.sum(along**2) / 2
        return total

    def combine(self, mean: Any, covariance: AbstractCovariance) -> Combined:
        """Return the best Gaussian under a prior, in closed form."""
        if self.basis is not None:
            return self._combine_turned(self.basis, mean, covariance)
        base, gap, move = covariance, self.centre - mean, jnp.zeros_like(mean)
        trace = jnp.zeros((), mean.dtype)
        if self.diagonal is not None:
            base = covariance.with_precision(self.diagonal)
            move = base.times(self.diagonal * gap - self.slope)
        if self.rows is None:
            posterior = WeightGaussian(mean + move, base)
        else:
            gain = base.times(self.rows.T)
            eye = jnp.eye(len(self.rows), dtype=gain.dtype)
            tril = jnp.linalg.cholesky(eye + self.rows @ gain)
            off = self.rows @ (gap - move) - self.residual
            move = move + gain @ cho_solve((tril, True), off)
            posterior = WeightGaussian(mean + move, base, self.rows, gain, tril)
            # tr(B V B') = tr(K (I + K)^-1)
            trace = len(tril) - jnp.sum(solve_triangular(tril, eye, lower=True) ** 2)
        if self.diagonal is not None:
            trace = trace + jnp.sum(self.diagonal * posterior.variance)
        # tr(S^-1 V) = d - tr(A V), as S^-1 = V^-1 - A.
        logs = covariance.log_det - posterior.log_det
        kl = (logs - trace + covariance.quadratic(move)) / 2
        return Combined(posterior, kl, kl + self.at(mean + move) + trace / 2)

    def _combine_turned(self, basis: Kronecker, mean, covariance) -> Combined:
        """Combine in the basis; the bound is the prior's own, as it holds for any Gaussian."""
        if not isinstance(covariance, Diagonal):
            raise ValueError(
                "`structure='kronecker'` needs a model with `covariance='diagonal'`; got "
                f"{type(covariance).__name__}."
            )
        log_precision = basis.level(covariance.log_precision)
        gap = basis.into(self.centre - mean)
        inner = Quadratic(gap, self.value, self.clipped, self.diagonal, self.slope)
        found = inner.combine(jnp.zeros_like(mean), Diagonal(log_precision))
        base = Kronecker(found.posterior.base, basis.left, basis.right)
        move = basis.back(found.posterior.mean)
        trace = jnp.sum(jnp.exp(covariance.log_precision) * base.marginal)
        logs = covariance.log_det - base.log_det - len(mean)
        kl = (logs + trace + covariance.quadratic(move)) / 2
        return Combined(WeightGaussian(mean + move, base), kl, kl + found.energy - found.kl)


class AbstractLocal(eqx.Module):
    """How a surrogate of a task's loss is made."""

    @abc.abstractmethod
    def fit(
        self, loss: TaskLoss, mean: Weights, covariance: AbstractCovariance, *, key: PRNGKey
    ) -> Quadratic:
        """Make the surrogate of a loss, from the mean of the prior on.

        Derivatives in the loss and the prior do not go through its iterations.
        """


class SGLDMoments(AbstractLocal):
    """Mean and variance of a short chain of Langevin dynamics on the loss alone.

    The variances of so short a chain say how large its steps were where the loss is flat
    (about twice the step size times the steps kept), so `clip` is always at work; the share
    clipped is reported. `GGNLaplace` is measured better.

    Args:
        steps: Of the chain.
        warmup: Steps at its start that do not count; at least 2 fewer than `steps`.
        step_size: `theta' = theta - step_size * gradient + sqrt(2 step_size) * noise`.
        clip: Least and largest curvature.

    References:
        Welling, Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics,
        ICML, pages 681-688.
    """

    steps: int = eqx.field(default=30, converter=whole("steps", least=3))
    warmup: int = eqx.field(default=15, converter=whole("warmup", least=0))
    step_size: float = eqx.field(default=2e-5, converter=positive("step_size"))
    clip: tuple[float, float] = (1e-4, 1e5)

    def __check_init__(self):
        if self.warmup > self.steps - 2:
            raise ValueError(
                f"`warmup` must be at most `steps` - 2 = {self.steps - 2}; got {self.warmup}."
            )
        low, high = map(number("clip", least=0), self.clip)
        if not low < high:
            raise ValueError(f"`clip` must be a least and a larger number; got {self.clip}.")

    def fit(self, loss, mean, covariance, *, key):
        (loss, mean), noise = stop((loss, mean)), (2 * self.step_size) ** 0.5

        def step(carry, at):
            weights, average, squares = carry
            index, key = at
            drift = self.step_size * jax.grad(loss)(weights)
            weights = weights - drift + noise * jr.normal(key, mean.shape, mean.dtype)
            count = jnp.maximum(index - self.warmup + 1, 0).astype(mean.dtype)
            off = weights - average
            share = jnp.where(count > 0, 1 / jnp.maximum(count, 1), 0)
            average = average + share * off
            squares = squares + jnp.where(count > 0, off * (weights - average), 0)
            return (weights, average, squares), None

        start = (mean, jnp.zeros_like(mean), jnp.zeros_like(mean))
        over = (jnp.arange(self.steps), jr.split(key, self.steps))
        (_, average, squares), _ = jax.lax.scan(step, start, over)
        raw = (self.steps - self.warmup - 1) / squares
        diagonal = jnp.clip(raw, *self.clip)
        clipped = jnp.mean((raw != diagonal).astype(raw.dtype))
        return Quadratic(average, loss(average), clipped, diagonal, jnp.zeros_like(mean))


class GGNLaplace(AbstractLocal):
    """The generalised Gauss-Newton matrix near the maximum of a task's posterior.

    Adam looks for the maximum in coordinates in which the prior is standard normal, from
    the prior's mean; steps shrink to zero. Then Gauss-Newton steps go on, halved until they
    help. A head of labels is best served by these alone (`steps=0, newton=3`), one with
    Gaussian noise needs neither (`steps=0`). Where the matrix is not all there, what was found
    counts as the maximum, and is the mean. The structures of the matrix:

    - `"full"`: all of it, by its rows, of which there are points times outputs. Exact for
      networks linear in the adapted weights; for few points the cheapest, too.
    - `"diagonal"`: its diagonal.
    - `"last_layer"`: all of the last layer, the diagonal of the rest.
    - `"kronecker"`: two factors for each array; only for `covariance="diagonal"`.

    Args:
        steps: Of Adam.
        newton: Steps of Gauss and Newton; with none of either the loss is linearised at the
            prior's mean.
        learning_rate: Largest step, in standard deviations of the prior.
        structure: One of the above.

    References:
        Immer, Korzepa, Bauer (2021), Improving predictions of Bayesian neural nets via local
        linearization, arXiv:2008.08400. Of two factors: Morwani, Shapira, Vyas, Malach,
        Kakade, Janson (2024), A new perspective on Shampoo's preconditioner,
        arXiv:2406.17748.
    """

    steps: int = eqx.field(default=20, converter=whole("steps", least=0))
    newton: int = eqx.field(default=0, converter=whole("newton", least=0))
    learning_rate: float = eqx.field(default=0.1, converter=positive("learning_rate"))
    structure: str = eqx.field(default="full", converter=one_of("structure", _STRUCTURES))

    def fit(self, loss, mean, covariance, *, key):
        centre, none = mean, jnp.zeros((), mean.dtype)
        if self.steps:
            centre = stop(self._adam(*stop((loss, mean, covariance))))
        if self.newton:
            centre = self._gauss_newton(loss, mean, covariance, centre)
        value, (rows, residual) = loss(centre), loss.rows(centre)
        if self.structure == "full":
            return Quadratic(centre, value, none, rows=rows, residual=residual)
        gradient = rows.T @ residual
        if self.steps or self.newton:
            # As at the maximum. By what a search leaves of it all weights would step at once,
            # each as if alone: far too far.
            gradient = -stop(jax.grad(covariance.quadratic)(centre - mean)) / 2
        if self.structure == "kronecker":
            # Eigenvectors of equal eigenvalues have no derivative.
            return _kronecker(loss, *stop((centre, value, rows, gradient)))
        first = loss.meta.layout.last if self.structure == "last_layer" else len(mean)
        outside = jnp.arange(len(mean)) < first
        diagonal = jnp.where(outside, jnp.sum(rows**2, axis=0), 0)
        slope = jnp.where(outside, gradient, 0)
        if self.structure == "diagonal":
            return Quadratic(centre, value, none, diagonal, slope)
        inside = jnp.where(outside, 0, rows)
        return Quadratic(centre, value, none, diagonal, slope, inside, residual)

    def _adam(self, loss, mean, covariance) -> Weights:
        at = lambda u: mean + covariance.root(u)
        nearest = lambda u: loss(at(u)) + jnp.sum(u**2) / 2
        start = jnp.zeros(covariance.noise_size, mean.dtype)
        return at(minimised(nearest, start, self.steps, self.learning_rate))

    def _gauss_newton(self, loss, mean, covariance, centre) -> Weights:
        none = jnp.zeros((), mean.dtype)

        def step(centre, loss, mean, covariance):
            rows, residual = loss.rows(centre)
            here = Quadratic(centre, none, none, rows=rows, residual=residual)
            return here.combine(mean, covariance).posterior.mean - centre

        held, m, s = stop((loss, mean, covariance))

        def nearer(centre, _):
            move = step(centre, held, m, s)
            tried = centre + jnp.array(_STEPS, mean.dtype)[:, None] * move
            height = jax.vmap(lambda w: held(w) + s.quadratic(w - m) / 2)(tried)
            return tried[jnp.nanargmin(height)], None

        centre, _ = jax.lax.scan(nearer, stop(centre), None, length=self.newton)
        # At the maximum a step is none, and none is its derivative by where it starts from:
        # its derivative by all else is that of the maximum.
        move = step(centre, loss, mean, covariance)
        return centre + (move - stop(move))


def _kronecker(loss, centre, value, rows, gradient) -> Quadratic:
    """Return a curvature of one block `L x R / t` for each array, t the trace of either.

    For an array of shape `(row, column)` with derivatives J_k of the scores, `L = sum J_k
    J_k'` and `R = sum J_k' J_k`: the first step towards the nearest Kronecker product.
    """
    values, lefts, rights, at = [], [], [], 0
    for shape, size in zip(loss.meta.layout.shapes, loss.meta.layout.sizes):
        block = rows[:, at : at + size]
        at += size
        # A vector is a matrix of one column: its block is all of it, as R / t is 1.
        matrix = block.reshape(len(rows), shape[0] if len(shape) else 1, -1)
        left = jnp.einsum("kij,klj->il", matrix, matrix)
        right = jnp.einsum("kij,kil->jl", matrix, matrix)
        trace = jnp.maximum(jnp.trace(left), jnp.finfo(rows.dtype).tiny)
        (a, u), (b, v) = jnp.linalg.eigh(left), jnp.linalg.eigh(right)
        values.append(jnp.outer(jnp.maximum(a, 0), jnp.maximum(b, 0) / trace).ravel())
        lefts.append(u)
        rights.append(v)
    basis = Kronecker(Diagonal(jnp.zeros_like(centre)), tuple(lefts), tuple(rights))
    slope, none = basis.into(gradient), jnp.zeros((), centre.dtype)
    return Quadratic(centre, value, none, jnp.concatenate(values), slope, basis=basis)
