"""Ensembles of wide networks trained by gradient descent, from random starts.

Not posteriors: the scale v keeps the law it was drawn from, however the data come out, and
what training does to a network is not what Bayes' rule does to a law.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from ....core._convert import number, part
from ....core._types import AnyArray
from ..laws._closed_form import InverseGamma, Jeffreys, PointMass
from ..laws._normal_mixture import NormalMixture
from ..laws._numerical import FromDistribution
from ._cholesky import cholesky, whitened_covariance
from ._scale_mixture import ScaleMixture, check_targets, repeated


class Trained(eqx.Module):
    """Networks of a `ScaleMixture` after gradient flow on observations, at infinite width.

    Each network of the ensemble draws its scale v and its weights, and is then trained to fit
    `y` by gradient flow on half the mean squared error, `sum (f(x) - y)^2 / (2 rows outputs)`,
    time being the integral of the learning rate. The predictions of the ensemble are

    - `last_layer(x)`: only the readout trained, to the end: `N(m, v C)` with m and C those
      of Gaussian process regression without noise.
    - `all_layers(x)`: all layers trained, to the end. The tangent kernel is v times that of
      the description, and v cancels from the location.
    - `all_layers(x, time=t)`: stopped at time t. Networks of larger v learn faster, so their
      location moves with v: a mixture of normal laws of different locations.

    v is of the law in `process.scale`, not of its posterior: these are no posteriors. That
    finite networks come to this with their width is proved for the parameterisation of
    `process.network.network(...)`, the neural tangent one, in which v multiplies the output
    as a constant. If training also scales by it (a readout with weights of variance v and no
    factor), the tangent kernel is another, and v no longer factors out.

    Args:
        process: Networks and law of their scale; its noise must be 0.
        x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
        y: Targets, shape `(rows,)`, or `(rows, outputs)` which share v.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, `process.noise` is not
            0, or the law of the scale is improper.

    References:
        Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein, Pennington (2019), Wide neural
        networks of any depth evolve as linear models under gradient descent,
        arXiv:1902.06720, equations 14 to 16.
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408.
    """

    process: ScaleMixture
    x: Array
    y: Float[Array, "rows outputs"]
    single: bool = eqx.field(static=True)

    def __init__(self, process: ScaleMixture, x: AnyArray, y: AnyArray):
        part("process", ScaleMixture)(process)
        y = check_targets(jnp.asarray(x), y)
        if not isinstance(process.noise, Tracer) and float(process.noise) != 0:
            raise ValueError(
                "Training knows no noise: `noise` of the process must be 0; got "
                f"{float(process.noise)}."
            )
        if isinstance(process.scale, Jeffreys):
            raise ValueError("`Jeffreys()` is improper: no network can be drawn with it.")
        self.process, self.x = process, jnp.asarray(x)
        self.y, self.single = y.reshape(len(y), -1), y.ndim == 1

    def last_layer(self, x: AnyArray) -> dist.Distribution:
        """Return the law of the function after its readout was trained to the end.

        Returns:
            A distribution of shape `(points,)`; with several outputs `(outputs * points,)`,
            the points of the first output first.

        Raises:
            ValueError: If the kernel of the rows is singular.
        """
        network = self.process.network
        own = network.nngp(self.x)
        read = self._read(own, network.nngp(x, self.x))
        return self._end(x, read, own)

    def all_layers(self, x: AnyArray, *, time: float | int | None = None) -> dist.Distribution:
        """Return the law of the function after all layers were trained.

        Args:
            x: Inputs at which to predict.
            time: When training stopped, at least 0; None is to the end.

        Returns:
            As `last_layer`; for a time, a `NormalMixture`.

        Raises:
            ValueError: If the tangent kernel of the rows is singular, or `time` negative.
        """
        kernels, across = self.process.network.kernel(self.x), self.process.network.kernel
        tangent = across(x, self.x).ntk
        if time is None:
            return self._end(x, self._read(kernels.ntk, tangent), kernels.nngp)
        return self._at(x, kernels.nngp, kernels.ntk, tangent, number("time", least=0)(time))

    def _read(self, kernel: Array, across: Array) -> Array:
        """Return `across kernel^-1`."""
        tril, _ = cholesky(kernel)
        return cho_solve((tril, True), across.T).T

    def _end(self, x: AnyArray, read: Array, own: Array) -> dist.Distribution:
        """Return `N(read y, v (K** + read K read' - read K_x* - its transpose))`, mixed."""
        covariance, before = self._started(x)
        cross = read @ self.process.network.nngp(self.x, x)
        moved = read @ own @ read.T - cross - cross.T
        tril = whitened_covariance(covariance + moved, jnp.zeros(()), before)
        zero = jnp.zeros((), tril.dtype)
        loc = read @ self.y.astype(tril.dtype)
        return self.process.scale.mixture(
            0, zero, loc.T.reshape(-1), repeated(tril, self.y.shape[1])
        )

    def _started(self, x: AnyArray) -> tuple[Array, Array]:
        network = self.process.network
        return network.nngp(x), network.diagonal(x).nngp

    def _at(self, x: AnyArray, own: Array, tangent: Array, across: Array, time: float | int):
        values, vectors = jnp.linalg.eigh(tangent)
        values = jnp.maximum(values, 0)
        rotated, y = across @ vectors, vectors.T @ self.y.astype(values.dtype)
        kernel = vectors.T @ own @ vectors
        covariance, before = self._started(x)
        cross = vectors.T @ self.process.network.nngp(self.x, x)
        log_scales, log_weights = _scale_nodes(self.process.scale)

        def node(log_scale):
            # (1 - exp(-a l)) / l, which is a where l is 0.
            rate = jnp.exp(log_scale) * time / self.y.size
            small = rate * values < 1e-12
            safe = jnp.where(small, 1, values)
            learnt = jnp.where(small, rate, -jnp.expm1(-rate * safe) / safe)
            read = rotated * learnt
            moved = read @ kernel @ read.T - read @ cross - (read @ cross).T
            tril = whitened_covariance(covariance + moved, jnp.zeros(()), before)
            return (read @ y).T.reshape(-1), repeated(tril, self.y.shape[1])

        locs, trils = jax.lax.map(node, log_scales)
        return NormalMixture(
            locs, trils, log_scales[:, None], log_weights[:, None], self.process.scale.tail()
        )


def _scale_nodes(law: Any) -> tuple[Array, Array]:
    """Return log v and the log weights of nodes for the law of v."""
    if isinstance(law, PointMass):
        return jnp.log(law.value)[None], jnp.zeros((1,))
    if isinstance(law, InverseGamma):
        law = FromDistribution(law.posterior(0, jnp.zeros(())), law.tail())
    nodes = law.nodes(0, jnp.zeros(()))
    return nodes.log_scales, nodes.log_weights
