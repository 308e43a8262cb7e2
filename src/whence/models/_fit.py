"""Training by gradients: procedures for `whence.train`, and the short way to run one."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..core import (
    RESULTS,
    AbstractProcedure,
    Info,
    Minibatches,
    PRNGKey,
    Scalar,
    Schedule,
    advance,
    never,
    positive,
    whole,
)
from ..core._cache import remembering
from ..core._results import InferenceError

CHUNKS = 50  # in which a short run is made, each with an entry in what it records


class AbstractFit(eqx.Module):
    """A loss of parameters, to be minimised on minibatches of rows."""

    @property
    @abc.abstractmethod
    def num_data(self) -> int:
        """Rows of data."""

    @abc.abstractmethod
    def start(self, *, key: PRNGKey) -> PyTree:
        """Return parameters to start from: a pytree of floating-point arrays alone."""

    @abc.abstractmethod
    def loss(self, params: PyTree, rows: Array | None, *, key: PRNGKey) -> Scalar:
        """Return the loss, the mean over rows.

        Args:
            params: As from `start`.
            rows: Numbers of the rows; None for all.
            key: A typed key.
        """


def descend(rule: Any, loss: Callable[..., Any], params: PyTree, state: PyTree, *args: Any):
    """Make one step of a rule of optax, down `loss(params, *args)` and what it has to record.

    Returns:
        Parameters and state of the rule after it; the loss before it, with what it recorded.
    """
    found, slope = eqx.filter_value_and_grad(loss, has_aux=True)(params, *args)
    # A loss that is none may have a slope, as the logarithm of a negative number has.
    slope = jax.tree.map(lambda g: jnp.where(jnp.isfinite(found[0]), g, jnp.nan), slope)
    update, state = rule.update(slope, state, eqx.filter(params, eqx.is_inexact_array))
    return (eqx.apply_updates(params, update), state), found


def minimised(
    loss: Callable[..., Scalar], start: PyTree, steps: int, rate: float, *over: Any
) -> Any:
    """Return what Adam makes of parameters; its steps shrink to zero along a cosine.

    Args:
        loss: Of parameters and an entry of each of `over`.
        start: Parameters: a pytree of floating-point arrays alone.
        steps: How many.
        rate: The largest step.
        *over: What steps differ by, such as keys; leading axis `step`.
    """
    rule = optax.adam(optax.cosine_decay_schedule(rate, steps))
    noted = lambda params, *at: (loss(params, *at), None)
    step = lambda carry, at: (descend(rule, noted, *carry, *at)[0], None)
    return jax.lax.scan(step, (start, rule.init(start)), over, length=steps)[0][0]


class AbstractTraining(AbstractProcedure):
    """So many steps, which fail once a number of the state is not finite."""

    steps: eqx.AbstractVar[int]

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.steps)

    def done(self, state: PyTree) -> Array:
        return never()

    def result(self, state: PyTree) -> RESULTS:
        arrays = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))
        return RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite_state)


class FitState(eqx.Module):
    """State of `Adam`.

    Attributes:
        params: Parameters.
        rule: State of the optimiser.
        epoch: The running epoch.
    """

    params: PyTree
    rule: PyTree
    epoch: Array


class Adam(AbstractTraining):
    """Gradient descent by Adam on minibatches.

    Attributes:
        steps: How many.
        learning_rate: Of Adam; it falls to a tenth along a cosine.
        batch_size: Rows per step; None for all.

    References:
        Kingma and Ba (2015), Adam: a method for stochastic optimization, arXiv:1412.6980.
    """

    steps: int = eqx.field(default=2_000, converter=whole("steps", least=1))
    learning_rate: float = eqx.field(default=1e-3, converter=positive("learning_rate"))
    batch_size: int | None = eqx.field(
        default=64, converter=whole("batch_size", least=1, optional=True)
    )

    def _rule(self) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps, 0.1))

    def _batches(self, target: AbstractFit) -> Minibatches:
        size = None if self.batch_size is None else min(self.batch_size, target.num_data)
        return Minibatches(target.num_data, size)

    def validate(self, target: Any) -> None:
        if not isinstance(target, AbstractFit):
            raise ValueError(f"`problem` must be a fit of this family; got {type(target)}.")

    def init(self, target: AbstractFit, *, key: PRNGKey) -> FitState:
        params = target.start(key=key)
        return FitState(params, self._rule().init(params), self._batches(target).init())

    def step(
        self, target: AbstractFit, state: FitState, index: Array, *, key: PRNGKey
    ) -> tuple[FitState, Info]:
        rows, epoch = self._batches(target).next(state.epoch, index, key=key)
        key = jax.random.fold_in(key, 1)
        loss = lambda params: (target.loss(params, rows, key=key), None)
        after, (value, _) = descend(self._rule(), loss, state.params, state.rule)
        return FitState(*after, epoch), Info(None, {"loss": value})


@remembering
def _begin(problem, procedure, key):
    return procedure.init(problem, key=key)


@remembering
def _go_on(problem, procedure, state, index, steps, key):
    state, info = advance(procedure, problem, state, index, steps, key=key)
    return state, info.stats, procedure.result(state) == RESULTS.successful


def run(
    problem: Any, procedure: AbstractProcedure, *, key: PRNGKey
) -> tuple[Any, dict[str, np.ndarray]]:
    """Run a procedure to its end, in this process.

    `whence.train(problem, procedure, key=key)` does the same with progress, a store to
    resume from and devices.

    Args:
        problem: What it works on.
        procedure: What to run.
        key: A typed key.

    Returns:
        The final state, and what some of the steps recorded, `(some,)` by name.

    Raises:
        ValueError: If the procedure cannot run on the problem.
        InferenceError: If numbers were not finite.
    """
    procedure.validate(problem)
    key_begin, key_run = jax.random.split(key)
    state = _begin(problem, procedure, key_begin)
    total = procedure.schedule.steps
    # Chunks of one length are one program; a rest would be another.
    even = [n for n in range(CHUNKS, 2 * CHUNKS) if total % n == 0]
    length = -(-total // min(even, default=CHUNKS))
    noted: list[dict[str, Any]] = []
    good: Any = True
    for begin in range(0, total, length):
        steps = min(length, total - begin)
        state, stats, good = _go_on(problem, procedure, state, np.int32(begin), steps, key_run)
        noted.append(stats)
        if not good:
            raise InferenceError(
                f"{procedure.name} stopped before step {begin + steps}: the loss was not "
                "finite. Use a smaller learning rate, or check the data."
            )
    return state, {name: np.stack([s[name] for s in noted]) for name in noted[0]}
