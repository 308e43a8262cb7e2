"""Learning from tasks, step by step, through the loop of `whence.train`.

It is a procedure of its own and not a family of `BBVI`: nothing of a task is kept from one
step to the next, so there is no posterior of locals for the loop to hold, the update is of
the population and the network alone, and tasks may be endless.
"""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PyTree

from ...core._convert import part, positive, whole
from ...core._engine import AbstractProcedure, Info, Schedule
from ...core._results import RESULTS
from ...core._types import PRNGKey
from ._local import AbstractLocal, GGNLaplace
from ._meta import NIWMeta, Problem
from ._objective import task_objective
from ._tasks import Batch, batch_size, subset

_MAX_FAILURES = 20  # updates in a row without a finite gradient before it gives up


class Learned(eqx.Module):
    """The state of a training.

    Attributes:
        model: As it stands.
        optimizer: What the optimiser remembers.
    """

    model: Any
    optimizer: PyTree


class AbstractMetaTraining(AbstractProcedure):
    """Adam on the mean of a loss over batches of tasks; steps shrink along a cosine.

    Attributes:
        steps: Updates.
        batch: Tasks of each, where they are an array; `Episodes` bring their own number.
        learning_rate: Of Adam, at the start.
        clip: Largest norm of a gradient.
        points: Least and largest number of points used of each task, drawn at random for
            each visit (for labels, of each class); None for all. A model that will adapt to
            few points should learn from few.
    """

    steps: eqx.AbstractVar[int]
    batch: eqx.AbstractVar[int]
    learning_rate: eqx.AbstractVar[float]
    clip: eqx.AbstractVar[float]
    points: eqx.AbstractVar[tuple[int, int] | None]

    @abc.abstractmethod
    def losses(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Array, dict]:
        """Return the loss to lower, and what to record, by name.

        Args:
            model: With the arrays that are learned.
            batch: Tasks.
            key: Random key.
        """

    @abc.abstractmethod
    def check(self, model: Any) -> None:
        """Raise `ValueError` if the model is not for this procedure."""

    @property
    def schedule(self):
        return Schedule(1, 0, self.steps)

    def validate(self, target):
        if not isinstance(target, Problem):
            raise ValueError(
                "`problem` must be a model on tasks, as `meta.on(niw.Tasks(x, y))`; got "
                f"{type(target).__name__}."
            )
        self.check(target.model)
        batch_size(target.tasks, self.batch)
        if self.points is not None:
            low, high = self.points
            whole("points", least=1)(low)
            whole("points", least=low)(high)

    def _optimizer(self) -> Any:
        import optax  # imported here for the sake of the time that `import whence` takes

        rate = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        chain = optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate))
        return optax.apply_if_finite(chain, _MAX_FAILURES)

    def init(self, target, *, key):
        arrays = eqx.filter(target.model, eqx.is_inexact_array)
        return Learned(target.model, self._optimizer().init(arrays))

    def step(self, target, state, index, *, key):
        key_batch, key_points, key_loss = jr.split(key, 3)
        batch = target.tasks.batch(self.batch, key=key_batch)
        if self.points is not None:
            batch = _fewer(batch, self.points, key_points)
        arrays, rest = eqx.partition(state.model, eqx.is_inexact_array)

        def loss(arrays):
            return self.losses(eqx.combine(arrays, rest), batch, key=key_loss)

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(arrays)
        updates, optimizer = self._optimizer().update(gradient, state.optimizer, arrays)
        new = eqx.combine(eqx.apply_updates(arrays, updates), rest)
        return Learned(new, optimizer), Info(None, {"loss": value, **stats})

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        arrays = jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))
        return RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite_state)


class OneTimeIterates(AbstractMetaTraining):
    """Kim and Hospedales' scheme: each visit of a task finds its posterior and forgets it.

    The local posterior comes from a surrogate in closed form, through which the population is
    differentiated; the iterations that find the surrogate are not, so memory does not grow
    with them. With quadratic losses it ends at the maximum of the hierarchy's marginal
    likelihood (type II).

    Args:
        local: How surrogates are made.
        steps: Updates.
        batch: Tasks of each.
        learning_rate: Of Adam, at the start; it falls to zero.
        pairs: Of opposite draws of weights that average a task's loss.
        clip: Largest norm of a gradient.
        points: Least and largest number of points used of each task; None for all.

    References:
        Kim, Hospedales (2024), A hierarchical Bayesian model for deep few-shot meta learning,
        ICLR, arXiv:2306.09702.
    """

    local: AbstractLocal = eqx.field(
        default_factory=GGNLaplace, converter=part("local", AbstractLocal)
    )
    steps: int = eqx.field(default=5_000, converter=whole("steps", least=1))
    batch: int = eqx.field(default=25, converter=whole("batch", least=1))
    learning_rate: float = eqx.field(default=1e-3, converter=positive("learning_rate"))
    pairs: int = eqx.field(default=1, converter=whole("pairs", least=1))
    clip: float = eqx.field(default=10.0, converter=positive("clip"))
    points: tuple[int, int] | None = None

    @property
    def name(self):
        return "OneTimeIterates"

    def check(self, model):
        if not isinstance(model, NIWMeta):
            raise ValueError(f"`problem` must hold a `NIWMeta`; got {type(model).__name__}.")
        self.local.check(model.population.covariance)

    def losses(self, model, batch, *, key):
        def one(x, y, mask, key):
            return task_objective(model, self.local, x, y, mask, self.pairs, key)

        values, stats = jax.vmap(one)(*batch, jr.split(key, len(batch.x)))
        return jnp.mean(values), {name: jnp.mean(each) for name, each in stats.items()}


def _fewer(batch: Batch, points: tuple[int, int], key: PRNGKey) -> Batch:
    key_size, key_which = jr.split(key)
    number = len(batch.x)
    sizes = jr.randint(key_size, (number,), points[0], points[1] + 1)
    labels = jnp.issubdtype(batch.y.dtype, jnp.integer)
    some = lambda y, mask, size, key: subset(y, mask, size, by_class=labels, key=key)
    masks = jax.vmap(some)(batch.y, batch.mask, sizes, jr.split(key_which, number))
    return batch._replace(mask=masks)
