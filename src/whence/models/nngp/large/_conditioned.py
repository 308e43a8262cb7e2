"""Scale mixtures given many observations: by products with the kernel, no factorisation."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ....core._convert import number, part, positive, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey, Scalar
from .._precision import check_evidence, is_single, lost_nats, resolved
from ..laws._abstract_law import AbstractLaw, mean_inverse
from ..process._abstract_conditioned import OneScale
from ..process._remarks import remarks_of
from ..process._scale_mixture import ScaleMixture, check_targets
from ._gradient import evidence_gradient
from ._kernel import KernelTiles, kernel_tiles
from ._log_det import log_det_estimate
from ._solve import Solution, Whitener, conjugate_gradients, random_pivots, whitener

POINTS_AT_A_TIME = 64  # new inputs at a time
MAX_RANK = 1024


class LargeMoments(NamedTuple):
    """Marginal moments of the function at new inputs for v = 1.

    Attributes:
        loc: Shape `(points, outputs)`.
        loc_error: It is off by at most this, for the sum of squares over outputs.
        variance: From above, shape `(points,)`.
        variance_error: It is too large by at most this.
    """

    loc: Array
    loc_error: Array
    variance: Array
    variance_error: Array


class LargeConditioned(OneScale, eqx.Module):
    """A `ScaleMixture` given many observations, as `Conditioned` but for joint laws.

    Attributes:
        process: What was conditioned.
        x: Inputs.
        y: Observations, shape `(rows,)` or `(rows, outputs)`.
        weights: `A^-1 y`, shape `(rows, outputs)`.
        quadratic: Whitened sum of squares, the trace of `y' A^-1 y`, from below.
        quadratic_error: It is too small by at most this, rounding aside.
        log_det: Log determinant of the covariance of all observations for v = 1: a random
            estimate, the same for the same key.
        log_det_error: Its standard error.
        steps: Products with the kernel that the solution took.
    """

    process: ScaleMixture
    x: Array
    y: Array
    weights: Float[Array, "rows outputs"]
    quadratic: Scalar
    quadratic_error: float
    log_det: Scalar
    log_det_error: float
    steps: int
    kernel: KernelTiles
    whiten: Whitener
    probes: tuple[Array, Array]  # W u and W g, for `B u = g` with g random signs
    said: tuple[str, ...] = eqx.field(static=True)

    @property
    def log_evidence_error(self) -> float:
        """Standard error of the log determinant's share, plus the bound of the solution's.

        Most of it is common to processes that are conditioned with the same key.
        """
        slope = abs(_slope(self.process.scale, self.size, self.quadratic))
        return self.log_det_error / 2 + float(slope) * self.quadratic_error

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before trusting it, in words."""
        return remarks_of(self, 0.0) + self.said

    def gradient(self) -> ScaleMixture:
        """Return the gradient of the log evidence by every parameter, as a process.

        An estimate by the probes of the log determinant: the same for the same key. At the
        price of about four evaluations of the kernel.
        """
        slope = _slope(self.process.scale, self.size, self.quadratic)
        outputs, (solved, probes) = self.weights.shape[1], self.probes
        # d log p = slope dq - outputs / 2 d log det, with dq = -x' dA x for x = A^-1 y.
        share = outputs / (2 * probes.shape[1])
        left = jnp.concatenate([-slope * self.weights, -share * solved], axis=1)
        right = jnp.concatenate([self.weights, probes], axis=1)
        network, noise = evidence_gradient(self.kernel, left, right)
        scale = eqx.filter_grad(lambda s: s.log_integral(self.size, self.quadratic))(
            self.process.scale
        )
        old = self.process
        return eqx.tree_at(
            lambda p: (p.network, p.scale, p.noise),
            old,
            (network, scale, noise.astype(old.noise.dtype)),
        )

    def moments(
        self, x: AnyArray, *, tolerance: float = 0.01, max_steps: int = 200
    ) -> LargeMoments:
        """Return location and variance of the function for v = 1, of each input by itself.

        Args:
            x: Inputs at which to predict.
            tolerance: Of the variances, relative; each solution goes on until it is met.
            max_steps: Products with the kernel at most, for each 64 inputs.

        Raises:
            ValueError: If `tolerance` is not positive.
        """
        tolerance = positive("tolerance")(tolerance)
        max_steps = whole("max_steps", least=1)(max_steps)
        x = jnp.asarray(x)
        parts = [
            self._moments(x[i : i + POINTS_AT_A_TIME], tolerance, max_steps)
            for i in range(0, len(x), POINTS_AT_A_TIME)
        ]
        return LargeMoments(*(jnp.concatenate(part) for part in zip(*parts)))

    def _moments(self, x: Array, tolerance: float, max_steps: int) -> LargeMoments:
        cross = self.kernel.cross(x)
        before = np.asarray(self.process.network.diagonal(x.astype(cross.dtype)).nngp)
        least = 100 * np.finfo(before.dtype).eps * before

        def finished(quadratic, error, _):
            return bool(np.all(error <= np.maximum(tolerance * (before - quadratic), least)))

        done = _solve(self.kernel, self.whiten, self.whiten(cross), finished, max_steps)
        variance = np.maximum(before - done.quadratic, 0)
        error = np.minimum(done.error, variance)
        # Of k'x by Cauchy's inequality in the norm of A, in which x is off by the root of
        # what the quadratic form lacks, and A^-1 k has the squared length `done.quadratic`.
        far = np.sqrt((done.quadratic + error) * self.quadratic_error)
        if is_single(self.kernel.dtype):
            resolved(
                jnp.asarray(variance, self.kernel.dtype),
                self.kernel.rounding,
                self.whiten(done.solution),
                self.weights,
                mean_inverse(self.process.scale, self.size, self.quadratic),
            )
        spread = (jnp.asarray(a) for a in (far, variance, error))
        return LargeMoments(cross.T @ self.weights, *spread)

    def latent_marginals(self, x: AnyArray, *, tolerance: float = 0.01) -> dist.Distribution:
        """Return the law of the function at each new input by itself, without noise.

        Returns:
            A distribution of batch shape `(points,)`, or `(points, outputs)` where `y` has
            an axis of outputs.
        """
        return self._marginals(x, 0.0, tolerance)

    def observation_marginals(
        self, x: AnyArray, *, tolerance: float = 0.01
    ) -> dist.Distribution:
        """Return the law of a new observation at each input by itself, noise included.

        Returns:
            As `latent_marginals`.
        """
        return self._marginals(x, float(self.process.noise), tolerance)

    def _marginals(self, x: AnyArray, noise: float, tolerance: float) -> dist.Distribution:
        loc, _, variance, _ = self.moments(x, tolerance=tolerance)
        shape = (len(loc), *self.y.shape[1:])
        deviation = jnp.broadcast_to(jnp.sqrt(variance + noise)[:, None], loc.shape)
        law = self.process.scale
        return law.marginals(
            self.size, self.quadratic, loc.reshape(shape), deviation.reshape(shape)
        )


@seeded
def condition_large(
    process: ScaleMixture,
    x: AnyArray,
    y: AnyArray,
    *,
    key: PRNGKey,
    tolerance: float = 0.01,
    rank: int | None = None,
    probes: int = 16,
    memory: float = 6.0,
    max_steps: int = 200,
) -> LargeConditioned:
    """Return a process given observations, for rows in the tens of thousands.

    By conjugate gradients, with one triangle of the kernel stored in tiles, or computed
    anew in each product. The preconditioner is a partial Cholesky factor; it also bounds
    the errors of the solution. The log determinant is estimated by stochastic Lanczos
    quadrature with random signs, less what is known exactly of its linear part.

    Args:
        process: With `noise` above 0; the less of it, the more steps.
        x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`. In float32 the
            kernel is computed and stored in float32, in half the time.
        y: Observations, shape `(rows,)`, or `(rows, outputs)` which share v.
        key: Random key, of pivots and probes.
        tolerance: Nats of the evidence that the solution may be wrong by.
        rank: Columns of the preconditioner; None is half the rows, 1024 at most.
        probes: Vectors of random signs, at least 2. The standard error of the log
            determinant falls with the root of their number.
        memory: GiB for the stored triangle: `4 rows^2` bytes in float64, half in float32.
        max_steps: Products with the kernel at most.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite or out of their ranges.

    References:
        Gardner, Pleiss, Bindel, Weinberger, Wilson (2018), GPyTorch, arXiv:1809.11165.
        Ubaru, Chen, Saad (2017), doi:10.1137/16M1104974. Chen, Epperly, Tropp, Webber
        (2023), arXiv:2207.06503.
    """
    part("process", ScaleMixture)(process)
    y = check_targets(x, y)
    _check_noise(process)
    tolerance, memory = positive("tolerance")(tolerance), number("memory", least=0)(memory)
    probes, max_steps = whole("probes", least=2)(probes), whole("max_steps", least=1)(max_steps)
    rank = whole("rank", least=1, most=len(y), optional=True)(rank)
    rank = max(1, min(MAX_RANK, len(y) // 2)) if rank is None else rank
    key_pivots, key_probes = jr.split(key)
    kernel = kernel_tiles(process.network, x, memory=memory)
    factor = random_pivots(kernel, rank, key=key_pivots)
    white = whitener(factor, process.noise.astype(factor.dtype))
    targets = y.reshape(len(y), -1).astype(factor.dtype)
    outputs = targets.shape[1]
    signs = jr.rademacher(key_probes, (len(y), probes), factor.dtype)
    law, size = process.scale, targets.size

    def cost(quadratic, error) -> float:
        total = jnp.asarray(quadratic[:outputs].sum())
        return float(abs(_slope(law, size, total))) * error[:outputs].sum()

    def finished(quadratic, error, steps):
        # A few steps at least, for the quadrature.
        return steps >= 8 and (error[:outputs].sum() == 0 or cost(quadratic, error) < tolerance)

    right = jnp.concatenate([white(targets), signs], axis=1)
    done = _solve(kernel, white, right, finished, max_steps)
    solved = white(done.solution)
    inverse = mean_inverse(law, size, jnp.asarray(done.quadratic[:outputs].sum()))
    lost = lost_nats(kernel.rounding, solved[:, :outputs], inverse)
    check_evidence(lost.astype(kernel.dtype))
    log_det = log_det_estimate(kernel, factor, white, done.lanczos[outputs:])
    said = _remarks(kernel, cost(done.quadratic, done.error), tolerance, log_det, outputs)
    return LargeConditioned(
        process,
        jnp.asarray(x),
        y,
        solved[:, :outputs],
        jnp.asarray(done.quadratic[:outputs].sum()),
        float(done.error[:outputs].sum()),
        jnp.asarray(outputs * log_det.value),
        outputs * log_det.error,
        done.steps,
        kernel,
        white,
        (solved[:, outputs:], white(signs)),
        said,
    )


def _solve(kernel: KernelTiles, white: Whitener, right, finished, max_steps) -> Solution:
    def multiply(vectors):
        inner = white(vectors)
        return white(kernel.product(inner) + white.noise * inner)

    return conjugate_gradients(multiply, right, finished, max_steps=max_steps)


def _slope(law: AbstractLaw, size: int, quadratic: Array) -> Array:
    return -mean_inverse(law, size, quadratic) / 2


def _check_noise(process: ScaleMixture) -> None:
    if not float(process.noise) > 0:
        raise ValueError(
            "`noise` of `process` must be above 0 to condition on many observations by "
            f"conjugate gradients; got {float(process.noise)}."
        )


def _remarks(kernel, cost, tolerance, log_det, outputs) -> tuple[str, ...]:
    said = [
        f"The log determinant is an estimate, standard error {outputs * log_det.error:.2g} "
        "(half of it in the evidence). Compare evidences with the same key."
    ]
    if not cost <= tolerance:
        said.append(
            f"The solution did not converge: it may cost {cost:.2g} nats of the evidence, "
            f"above the tolerance of {tolerance:.2g}. Raise `rank`, `max_steps` or `noise`."
        )
    if log_det.unfinished > max(log_det.error, tolerance):
        said.append(
            f"The last two steps changed the log determinant by {log_det.unfinished:.2g}: "
            "lower `tolerance` for more of them."
        )
    if kernel.tiles is None:
        said.append("The kernel was computed anew in each product: raise `memory` if you can.")
    elif kernel.tiles[0].dtype != kernel.diagonal.dtype:
        said.append("The kernel was stored in float32: `noise` below 1e-4 of it is rounding.")
    return tuple(said)
