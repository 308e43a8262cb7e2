"""Local surrogates: a task's loss as a quadratic, and what it makes of a Gaussian prior.

A surrogate is `l(theta) = value + slope'e + e'diag(a)e / 2 + residual'Be + |Be|^2 / 2` with
`e = theta - centre`: a diagonal part, and rows B of a Gauss-Newton matrix, of which a task of
few points has few. With a prior `N(m0, S)` the best Gaussian is `V = (S^-1 + A)^-1` and
`m = m0 + V (A (centre - m0) - gradient)`. It is found with matrices of the size of the rows:
with `T = (S^-1 + diag a)^-1`, `G = T B'` and `K = B G`,

    V = T - G (I + K)^-1 G',    m = m0 + T w + G (I + K)^-1 (B d - residual - B T w),

where `d = centre - m0` and `w = a d - slope` (Woodbury's identity, and `V B' = G (I + K)^-1`).
What is fitted (centre, a, B, ...) is held fixed when the population is differentiated; m and V
are not, so nothing of the inner iterations is stored.
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
from ._covariance import AbstractCovariance, Diagonal, Kronecker, Weights
from ._meta import TaskLoss

_STRUCTURES = ("full", "diagonal", "kronecker", "last_layer")


class WeightGaussian(eqx.Module):
    """A normal law of weights: `V = T - G (I + K)^-1 G'`.

    Attributes:
        mean: `(weight,)`.
        base: T.
        rows: B, `(row, weight)`; None if V is T.
        gain: G, `(weight, row)`.
        tril: Cholesky factor of `I + K`.
    """

    mean: Array
    base: AbstractCovariance
    rows: Array | None = None
    gain: Array | None = None
    tril: Array | None = None

    @property
    def noise_size(self) -> int:
        """How many standard normal numbers make a draw."""
        return self.base.noise_size + (0 if self.tril is None else self.tril.shape[-1])

    @property
    def log_det(self) -> Scalar:
        """Log determinant of V."""
        own = self.base.log_det
        return own if self.tril is None else own - _log_det(self.tril)

    @property
    def variance(self) -> Weights:
        """Diagonal of V."""
        own = self.base.marginal
        if self.tril is None or self.gain is None:
            return own
        return own - jnp.sum(solve_triangular(self.tril, self.gain.T, lower=True) ** 2, axis=0)

    def move(self, noise: Array) -> Weights:
        """Map standard normal numbers to a draw of `N(0, V)`; minus them to minus it."""
        if self.tril is None or self.rows is None or self.gain is None:
            return self.base.root(noise)
        # Matheron's rule: correct a draw of T by how far it is from noisy zeros.
        size = self.base.noise_size
        own = self.base.root(noise[:size])
        off = self.rows @ own + noise[size:]
        return own - self.gain @ cho_solve((self.tril, True), off)

    def times(self, columns: Array) -> Array:
        """Return V times `(weight, column)`."""
        own = self.base.times(columns)
        if self.tril is None or self.gain is None:
            return own
        return own - self.gain @ cho_solve((self.tril, True), self.gain.T @ columns)


class Combined(NamedTuple):
    """A surrogate and a prior.

    Attributes:
        posterior: The best Gaussian.
        kl: Its divergence from the prior, in nats.
        energy: Expected surrogate plus `kl`: minus the log evidence of the surrogate.
    """

    posterior: WeightGaussian
    kl: Scalar
    energy: Scalar


class AbstractSurrogate(eqx.Module):
    """A quadratic in place of a task's loss.

    Attributes:
        centre: Where it was made, `(weight,)`.
        value: The loss there.
        clipped: Share of curvatures that were clipped.
    """

    centre: eqx.AbstractVar[Array]
    value: eqx.AbstractVar[Array]
    clipped: eqx.AbstractVar[Array]

    @abc.abstractmethod
    def at(self, weights: Weights) -> Scalar:
        """Return the surrogate loss."""

    @abc.abstractmethod
    def combine(self, mean: Weights, covariance: AbstractCovariance) -> Combined:
        """Return the best Gaussian under a prior, in closed form."""


class Quadratic(AbstractSurrogate):
    """A diagonal part and rows; see the module's docstring for the letters."""

    centre: Array
    value: Array
    clipped: Array
    diagonal: Array | None = None
    slope: Array | None = None
    rows: Array | None = None
    residual: Array | None = None

    def at(self, weights):
        e, total = weights - self.centre, self.value
        if self.diagonal is not None and self.slope is not None:
            total = total + self.slope @ e + jnp.sum(self.diagonal * e**2) / 2
        if self.rows is not None and self.residual is not None:
            along = self.rows @ e
            total = total + self.residual @ along + jnp.sum(along**2) / 2
        return total

    def combine(self, mean, covariance):
        base, gap, move = covariance, self.centre - mean, jnp.zeros_like(mean)
        trace = jnp.zeros((), mean.dtype)
        if self.diagonal is not None and self.slope is not None:
            base = covariance.with_precision(self.diagonal)
            move = base.times(self.diagonal * gap - self.slope)
        if self.rows is None or self.residual is None:
            posterior = WeightGaussian(mean + move, base)
        else:
            gain = base.times(self.rows.T)
            inner = jnp.eye(len(self.rows), dtype=gain.dtype) + self.rows @ gain
            tril = jnp.linalg.cholesky(inner)
            off = self.rows @ (gap - move) - self.residual
            move = move + gain @ cho_solve((tril, True), off)
            posterior = WeightGaussian(mean + move, base, self.rows, gain, tril)
            # tr(B V B') = tr(K (I + K)^-1)
            inverse = solve_triangular(tril, jnp.eye(len(tril), dtype=tril.dtype), lower=True)
            trace = len(tril) - jnp.sum(inverse**2)
        if self.diagonal is not None:
            trace = trace + jnp.sum(self.diagonal * posterior.variance)
        # tr(S^-1 V) = d - tr(A V), as S^-1 = V^-1 - A.
        logs = covariance.log_det - posterior.log_det
        kl = (logs - trace + covariance.quadratic(move)) / 2
        return Combined(posterior, kl, kl + self.at(mean + move) + trace / 2)


class KroneckerQuadratic(AbstractSurrogate):
    """One block `L x R / t` for each array of the network, t the trace of either factor.

    For an array of shape `(row, column)` with derivatives J_k of the scores, `L = sum J_k
    J_k'` and `R = sum J_k' J_k`: the first step towards the nearest Kronecker product. The
    prior's precision is taken as one number for each array when V is formed; the bound is
    that of the prior itself, as it holds for any Gaussian.

    References:
        Morwani, Shapira, Vyas, Malach, Kakade, Janson (2024), A new perspective on Shampoo's
        preconditioner, arXiv:2406.17748.
    """

    centre: Array
    value: Array
    clipped: Array
    gradient: Array
    values: tuple[Array, ...]
    left: tuple[Array, ...]
    right: tuple[Array, ...]

    def _curvature(self, vector: Array) -> Array:
        out, at = [], 0
        for v, a, b in zip(self.values, self.left, self.right):
            block = vector[at : at + v.size].reshape(v.shape)
            at += v.size
            out.append((a @ (v * (a.T @ block @ b)) @ b.T).ravel())
        return jnp.concatenate(out)

    def at(self, weights):
        e = weights - self.centre
        return self.value + self.gradient @ e + e @ self._curvature(e) / 2

    def combine(self, mean, covariance):
        assert isinstance(covariance, Diagonal)
        sizes = [v.size for v in self.values]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        blocks = jnp.split(covariance.log_precision, ends)
        levels = [jnp.exp(jnp.mean(block)) for block in blocks]
        base = Kronecker(
            tuple(v + p for v, p in zip(self.values, levels)), self.left, self.right
        )
        move = base.times(self._curvature(self.centre - mean) - self.gradient)
        precision, variance = jnp.exp(covariance.log_precision), base.marginal
        logs = covariance.log_det - base.log_det - len(mean)
        kl = (logs + jnp.sum(precision * variance) + covariance.quadratic(move)) / 2
        spread = [jnp.sum(v / w) for v, w in zip(self.values, base.values)]
        energy = kl + self.at(mean + move) + sum(spread) / 2
        return Combined(WeightGaussian(mean + move, base), kl, energy)


class AbstractLocal(eqx.Module):
    """How a surrogate of a task's loss is made."""

    @abc.abstractmethod
    def fit(
        self, loss: TaskLoss, mean: Weights, covariance: AbstractCovariance, *, key: PRNGKey
    ) -> AbstractSurrogate:
        """Make the surrogate.

        Args:
            loss: Of the task.
            mean: Of the prior; where to start.
            covariance: Of the prior.
            key: Random key.
        """

    @abc.abstractmethod
    def check(self, covariance: AbstractCovariance) -> None:
        """Raise `ValueError` if the surrogate has no closed form with such a prior."""


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
        _check_clip(self.clip)

    def fit(self, loss, mean, covariance, *, key):
        noise = (2 * self.step_size) ** 0.5

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
        diagonal, clipped = _clip(raw, self.clip)
        zero = jnp.zeros_like(mean)
        return Quadratic(average, loss(average), clipped, diagonal, zero)

    def check(self, covariance):
        """Accept any."""


class GGNLaplace(AbstractLocal):
    """The generalised Gauss-Newton matrix near the maximum of a task's posterior.

    Adam looks for the maximum in coordinates in which the prior is standard normal, from
    the prior's mean; steps shrink to zero. The structures of the matrix:

    - `"full"`: all of it, by its rows, of which there are points times outputs. Exact for
      networks linear in the adapted weights; for few points the cheapest, too.
    - `"diagonal"`: its diagonal.
    - `"last_layer"`: all of the last layer, the diagonal of the rest.
    - `"kronecker"`: two factors for each array; only for `covariance="diagonal"`.

    Args:
        steps: Of Adam; 0 linearises at the prior's mean.
        learning_rate: Largest step, in standard deviations of the prior.
        structure: One of the above.
        clip: Least and largest curvature of a diagonal.

    References:
        Immer, Korzepa, Bauer (2021), Improving predictions of Bayesian neural nets via local
        linearization, arXiv:2008.08400.
    """

    steps: int = eqx.field(default=20, converter=whole("steps", least=0))
    learning_rate: float = eqx.field(default=0.1, converter=positive("learning_rate"))
    structure: str = eqx.field(default="full", converter=one_of("structure", _STRUCTURES))
    clip: tuple[float, float] = (0.0, 1e8)

    def __check_init__(self):
        _check_clip(self.clip)

    def fit(self, loss, mean, covariance, *, key):
        centre = search(loss, mean, covariance, self.steps, self.learning_rate)
        value, (rows, residual) = loss(centre), loss.rows(centre)
        none = jnp.zeros((), mean.dtype)
        if self.structure == "full":
            return Quadratic(centre, value, none, rows=rows, residual=residual)
        if self.structure == "kronecker":
            return _kronecker(loss, centre, value, rows, residual)
        first = loss.meta.layout.last if self.structure == "last_layer" else len(mean)
        outside = jnp.arange(len(mean)) < first
        raw = jnp.where(outside, jnp.sum(rows**2, axis=0), 0)
        clipped_all, clipped = _clip(raw, self.clip)
        diagonal = jnp.where(outside, clipped_all, 0)
        slope = jnp.where(outside, rows.T @ residual, 0)
        if self.structure == "diagonal":
            return Quadratic(centre, value, clipped, diagonal, slope)
        inside = jnp.where(outside, 0, rows)
        return Quadratic(centre, value, clipped, diagonal, slope, inside, residual)

    def check(self, covariance):
        if self.structure == "kronecker" and not isinstance(covariance, Diagonal):
            raise ValueError(
                "`structure='kronecker'` needs a model with `covariance='diagonal'`; got "
                f"{type(covariance).__name__}."
            )


def search(
    loss: Any, mean: Weights, covariance: AbstractCovariance, steps: int, rate: float
) -> Weights:
    """Return weights near the maximum of a posterior, by Adam in whitened coordinates."""
    import optax  # imported here for the sake of the time that `import whence` takes

    if steps == 0:
        return mean
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    objective = lambda u: loss(mean + covariance.root(u)) + jnp.sum(u**2) / 2
    start = jnp.zeros(covariance.noise_size, mean.dtype)

    def step(carry, _):
        u, state = carry
        updates, state = adam.update(jax.grad(objective)(u), state)
        return (u + updates, state), None

    (u, _), _ = jax.lax.scan(step, (start, adam.init(start)), None, length=steps)
    return mean + covariance.root(u)


def _kronecker(loss, centre, value, rows, residual) -> KroneckerQuadratic:
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
        values.append(jnp.maximum(a, 0)[:, None] * jnp.maximum(b, 0)[None] / trace)
        lefts.append(u)
        rights.append(v)
    none = jnp.zeros((), centre.dtype)
    gradient = rows.T @ residual
    return KroneckerQuadratic(
        centre, value, none, gradient, tuple(values), tuple(lefts), tuple(rights)
    )


def _clip(raw: Array, limits: tuple[float, float]) -> tuple[Array, Array]:
    """Return clipped values, and the share of them that was outside."""
    low, high = limits
    outside = (raw < low) | (raw > high)
    return jnp.clip(raw, low, high), jnp.mean(outside.astype(raw.dtype))


def _check_clip(clip: Any) -> None:
    if not (isinstance(clip, tuple) and len(clip) == 2 and 0 <= clip[0] < clip[1]):
        raise ValueError(f"`clip` must be two numbers, 0 <= least < largest; got {clip!r}.")
    number("clip", least=0)(clip[0])


def _log_det(tril: Array) -> Scalar:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(tril)))
