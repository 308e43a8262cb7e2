"""Learning from tasks, step by step, through the loop of `whence.train`.

It is a procedure of its own and not a family of `BBVI`: nothing of a task is kept from one
step to the next, so there is no posterior of locals for the loop to hold, the update is of
the population and the network alone, and tasks may be endless.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, PyTree

from ...core._convert import part, positive, whole
from ...core._engine import Info
from ...core._types import PRNGKey
from .._fit import AbstractTraining, descend
from ._local import AbstractLocal, GGNLaplace
from ._meta import NIWMeta, Problem
from ._objective import task_objective
from ._tasks import Batch, check_numbers, some_points

_MAX_FAILURES = 20  # updates in a row without a finite gradient before it gives up


class Learned(eqx.Module):
    """The state of a training: the model as it stands, and what the optimiser remembers."""

    model: Any
    optimizer: PyTree


class AbstractMetaTraining(AbstractTraining):
    """Adam on the mean of a loss over batches of tasks; steps shrink along a cosine.

    Args:
        steps: Updates.
        batch: Tasks of each, where they are an array; by default 25, or all if there are fewer.
            `Episodes` bring their own number.
        learning_rate: Of Adam, at the start; it falls to zero.
        clip: Largest norm of a gradient.
        points: Least and largest number of points used of each task, drawn at random for
            each visit (for labels, of each class); None for all. A model that will adapt to
            few points should learn from few.
    """

    steps: int = eqx.field(default=5_000, converter=whole("steps", least=1))
    batch: int | None = eqx.field(
        default=None, converter=whole("batch", least=1, optional=True)
    )
    learning_rate: float = eqx.field(default=1e-3, converter=positive("learning_rate"))
    clip: float = eqx.field(default=10.0, converter=positive("clip"))
    points: Any = None

    @abc.abstractmethod
    def losses(self, model: Any, batch: Batch, *, key: PRNGKey) -> tuple[Array, dict]:
        """Return the loss that a batch has under a model, and what to record, by name."""

    @abc.abstractmethod
    def check(self, model: Any, tasks: Any) -> None:
        """Raise `ValueError` if the model or the tasks are not for this procedure."""

    def validate(self, target):
        if not isinstance(target, Problem):
            raise ValueError(
                "`problem` must be a model on tasks, as `meta.on(niw.Tasks(x, y))`; got "
                f"{type(target).__name__}."
            )
        check_numbers(target.tasks, self.batch, "points", self.points)
        self.check(target.model, target.tasks)

    def _optimizer(self) -> Any:
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
            batch = batch._replace(mask=some_points(batch, self.points, key_points))

        loss = lambda model: self.losses(model, batch, key=key_loss)
        after, (value, stats) = descend(self._optimizer(), loss, state.model, state.optimizer)
        return Learned(*after), Info(None, {"loss": value, **stats})


class OneTimeIterates(AbstractMetaTraining):
    """Kim and Hospedales' scheme: each visit of a task finds its posterior and forgets it.

    The local posterior comes from a surrogate in closed form, through which the population is
    differentiated; the iterations that find the surrogate are not, so memory does not grow
    with them. With quadratic losses it ends at the maximum of the hierarchy's marginal
    likelihood (type II).

    Args:
        local: How surrogates are made.
        pairs: Of opposite draws of weights that average a task's loss.
        support: Least and largest number of points (for labels, of each class) that a task's
            posterior is found from, at random for each visit; the loss is minus the log
            predictive density of its other points. None is the bound of the evidence of all
            points. The evidence says most of the law of the weights; predictions of labels
            come out better if they are what is learned.

    The others are those of `AbstractMetaTraining`.

    References:
        Kim, Hospedales (2024), A hierarchical Bayesian model for deep few-shot meta learning,
        ICLR, arXiv:2306.09702.
    """

    local: AbstractLocal = eqx.field(
        default_factory=GGNLaplace, converter=part("local", AbstractLocal)
    )
    pairs: int = eqx.field(default=1, converter=whole("pairs", least=1))
    support: Any = None

    def check(self, model, tasks):
        if not isinstance(model, NIWMeta):
            raise ValueError(f"`problem` must hold a `NIWMeta`; got {type(model).__name__}.")
        check_numbers(tasks, self.batch, "support", self.support)

    def losses(self, model, batch, *, key):
        key_support, key_tasks = jr.split(key)
        support = self.support and some_points(batch, self.support, key_support)
        most = self.support and self.support[1] * getattr(model.likelihood, "classes", 1)

        def one(task, support, key):
            return task_objective(model, self.local, task, support, self.pairs, key, most)

        keys = jr.split(key_tasks, len(batch.x))
        values, stats = jax.vmap(one)(batch, support, keys)
        return jnp.mean(values), {name: jnp.mean(each) for name, each in stats.items()}
