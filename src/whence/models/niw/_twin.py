"""The function-space twin: a network's Gaussian process for each task, its numbers learned.

Tasks share a description of an infinitely wide network, a law of its scale and the noise;
each has a function of its own. The evidence of a task is in closed form, so that what the
tasks share is learned by the sum of them, which also identifies both parameters of the law
of the scale: on one data set they are not.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, PyTree

from ...core._convert import part, positive, whole
from ...core._types import Scalar
from ..nngp import AbstractLayer, ScaleMixture
from ._local import stop
from ._meta import Problem
from ._tasks import AbstractTasks
from ._train import AbstractMetaTraining


class Twin(eqx.Module):
    """`y_i ~ N(0, v_i (K + noise I))` for each task i, with K of a wide network.

    Every number of the description that is above zero is learned: variances of layers,
    parameters of the law of v, noise. Zeros stay.

    Args:
        network: Description of an infinitely wide network.
        scale: Law of v.
        noise: Variance of the noise as a multiple of v, above 0.
    """

    logs: PyTree
    fixed: PyTree

    def __init__(self, network: AbstractLayer, scale: Any, noise: Any = 0.01):
        part("network", AbstractLayer)(network)
        process = ScaleMixture(network, scale, positive("noise")(noise))
        learned = jax.tree.map(lambda a: eqx.is_inexact_array(a) and bool(a > 0), process)
        values, self.fixed = eqx.partition(process, learned)
        self.logs = jax.tree.map(jnp.log, values)

    @property
    def process(self) -> ScaleMixture:
        """What the tasks share; `process.condition(x, y)` is a task's posterior."""
        return eqx.combine(jax.tree.map(jnp.exp, self.logs), stop(self.fixed))

    def log_evidence(self, x: Array, y: Array, mask: Array) -> Scalar:
        """Return the log density of one task's data, `(point,)`; masked points do not count."""
        process = self.process
        both = mask[:, None] & mask[None]
        eye = jnp.eye(len(x))
        noisy = jnp.where(both, process.network.nngp(x), 0) + process.noise * eye
        tril = jnp.linalg.cholesky(jnp.where(both, noisy, eye))
        white = solve_triangular(tril, jnp.where(mask, y, 0), lower=True)
        number = jnp.sum(mask)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(tril)))
        # Laws want to know the number of points when they are traced.
        each = [partial(process.scale.log_integral, k + 1) for k in range(len(x))]
        integral = jax.lax.switch(number - 1, each, jnp.sum(white**2))
        return integral - (number * jnp.log(2 * jnp.pi) + log_det) / 2

    def on(self, tasks: Any) -> Problem:
        """Return what `whence.train` works on.

        Args:
            tasks: `Tasks` or `Episodes` with one number y for each point.

        Raises:
            ValueError: If y has another shape.
        """
        part("tasks", AbstractTasks)(tasks)
        shape = tasks.example().y.shape
        if len(shape) != 2:
            raise ValueError(f"`y` must have shape (task, point); got {shape}.")
        return Problem(self, tasks)


class SummedEvidence(AbstractMetaTraining):
    """Learn a `Twin` by the sum of the tasks' log evidences.

    Settings are those of `AbstractMetaTraining`; the learning rate is one of logarithms.
    """

    steps: int = eqx.field(default=500, converter=whole("steps", least=1))
    learning_rate: float = eqx.field(default=0.05, converter=positive("learning_rate"))

    def check(self, model, tasks):
        part("problem", Twin)(model)

    def losses(self, model, batch, *, key):
        return -jnp.mean(jax.vmap(model.log_evidence)(*batch)), {}
