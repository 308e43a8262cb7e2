"""What the loop runs: a configuration with two pure functions.

A procedure is a frozen `equinox.Module`. The loop calls `init` once and then `step` for
`index = 0, 1, ...` inside one compiled program, once for every replica, and stacks what
`step` returns in `Info`. An engine is a procedure whose end is a sample: the loop hands
everything to its `posterior`. Training a network is a procedure without that end.
Everything between two steps (progress, stopping, storing, threads, devices) belongs to the
loop, never to a procedure.
"""

import abc
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..diagnostics._diagnose import check_method
from ..diagnostics._records import AbstractRecord
from ._results import RESULTS
from ._target import AbstractTarget
from ._types import AnyArray, Position, PRNGKey


class Schedule(NamedTuple):
    """How the loop is to run an engine.

    Attributes:
        replicas: Independent runs of the same program (chains); the loop owns them.
            An engine that couples its chains or particles runs as one replica.
        warmup: Steps at the start that are recorded as warm-up and are not draws.
        steps: Steps in all, warm-up included; what the loop makes unless told otherwise.
        extendable: Whether every step after warm-up is a draw and more of them may follow:
            then runs can be extended, and end by a rule (`whence.Until`).
        pauses: Steps, in increasing order, before which the loop calls
            `AbstractPausingEngine.pause`.
        ensemble: For an engine that couples chains or particles within one replica: the axis
            of `whence.mesh` they may be divided along, and how many there are.
        rows_per_step: Rows of data that a step sees by minibatches, all its updates together;
            0 if it sees all rows, so that data cannot come from a stream.
        homogeneous: Whether, without warm-up, every step is the same Markov transition; not
            if the first one searches for a step size.
        sites: Processes each of which has data rows that never leave it; 0 if all have the
            same. The program runs once in each, along the axis `"data"` of the mesh.
    """

    replicas: int
    warmup: int
    steps: int
    extendable: bool = False
    pauses: tuple[int, ...] = ()
    ensemble: tuple[Literal["chain", "particle"], int] | None = None
    homogeneous: bool = True
    rows_per_step: int = 0
    sites: int = 0


class Info(eqx.Module):
    """What is recorded of one step: the draw and statistics, which the next step does not need.

    Attributes:
        position: The draw, a point in unconstrained space in any pytree form that the
            engine's own `posterior` understands; None if the step makes no draw.
        stats: Scalars (or small arrays) by name; for MCMC the names of ArviZ's
            `sample_stats` (`lp`, `diverging`, `energy`, `n_steps`, ...).
    """

    position: PyTree
    stats: dict[str, AnyArray]


class Trace(NamedTuple):
    """The stacked `Info` of a run, as NumPy arrays with axes `(replica, step, ...)`.

    Attributes:
        warmup: Steps before `Schedule.warmup`; None if there were none.
        sampling: Steps after it; None if there were none.
    """

    warmup: Info | None
    sampling: Info | None


class Sample(eqx.Module):
    """What an engine hands back: draws in unconstrained space, and how they were made.

    Attributes:
        positions: Positions (as `Target.init` makes them) batched over `(chain, draw)`;
            weighted particles use `chain = 1`.
        stats: Arrays of shape `(chain, draw)`, by ArviZ's names.
        method: What the draws are: those of Markov chains, `"mcmc"`, or of chains without a
            Metropolis step, `"unadjusted"`; independent ones, of a fitted family,
            `"variational"`, or of the posterior itself, `"exact"`; weighted particles,
            `"smc"`; or a maximum, `"point"`. It decides how they are judged.
        log_weights: Normalised log weights, `(chain, draw)`; None if all are equal.
        log_evidence: Estimate of the log normalising constant, in nats, or None.
        log_evidence_error: Its standard error, in nats, or None.
        warmup_positions: As `positions`, for warm-up; None if not kept.
        warmup_stats: As `stats`, for warm-up.
        record: What else there is to tell (a fitted family, a path of temperatures), or None;
            it is judged by `diagnose` and stored with the draws.
    """

    positions: Position
    stats: dict[str, AnyArray]
    method: str = eqx.field(static=True, kw_only=True)
    log_weights: AnyArray | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    warmup_positions: Position | None = None
    warmup_stats: dict[str, AnyArray] | None = None
    record: AbstractRecord | None = None

    def __check_init__(self):
        check_method(self.method, is_weighted=False)


class AbstractProcedure(eqx.Module):
    """An iterative algorithm: a frozen configuration and its pure functions.

    `init`, `step`, `done` and `result` are traced: no side effects, no host callbacks, and
    a state of strongly typed arrays of fixed shape; what else a state holds (functions of a
    network) must stay as it is. `name` and `schedule` are plain Python.

    What it works on is a pytree: for an engine a target; for training, data and whatever
    the procedure asks for. Arrays in it are data, all else is part of the program.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its name for people and manifests, for example `"NUTS"`."""

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """How many replicas and steps the loop makes."""

    @abc.abstractmethod
    def validate(self, target: Any) -> None:
        """Raise `ValueError` if this cannot run on `target`; before any compilation."""

    @abc.abstractmethod
    def init(self, target: Any, *, key: PRNGKey) -> PyTree:
        """Return the state of one replica before its first step."""

    @abc.abstractmethod
    def step(
        self, target: Any, state: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Info]:
        """Make step number `index` and return the new state with what to record.

        Args:
            target: What it works on.
            state: As returned by `init` or the last `step`.
            index: Number of this step, an int32 scalar counted from 0. It is the same for
                all replicas, so a branch on it stays a branch under `vmap`.
            key: Belongs to this replica and this step alone.
        """

    @abc.abstractmethod
    def done(self, state: PyTree) -> Bool[Array, ""]:
        """Whether this replica has finished before `schedule.steps`."""

    @abc.abstractmethod
    def result(self, state: PyTree) -> RESULTS:
        """Return `RESULTS.successful`, or what went wrong with this replica."""


class AbstractEngine(AbstractProcedure):
    """An inference algorithm: a procedure on a target that ends in a sample."""

    @abc.abstractmethod
    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        """Turn what a run recorded into draws, on the host.

        With `Until`, and for a posterior that is read from a store, it is called several
        times, for the draws so far.

        Args:
            target: The target density.
            state: Final states with a leading `replica` axis.
            trace: What the steps recorded.
            key: For engines that draw at the end (a fitted family, for example).
        """


@runtime_checkable
class Explains(Protocol):
    """A procedure that can say more of a run in which no replica succeeded."""

    def explain(self, target: Any, state: PyTree) -> str:
        """Return a sentence.

        Args:
            target: What was worked on.
            state: Final states of all replicas, leading axis first.
        """
        ...


class AbstractPausingProcedure(AbstractProcedure):
    """A procedure that computes between steps, in NumPy on the host.

    What is done a few times a run and costs the compiler much (factorisations, decisions
    of warm-up) belongs there: it need not be compiled at all.
    """

    @abc.abstractmethod
    def pause(self, state: PyTree, index: int) -> PyTree:
        """Return the state with which step `index`, one of `schedule.pauses`, is made.

        Args:
            state: Of one replica, after step `index - 1`.
            index: Number of the step to come.

        Returns:
            `state`, or another of the same structure, shapes and types. It must depend on
            `state` and `index` alone: a run that is resumed here calls this once more.
        """


class AbstractPausingEngine(AbstractEngine, AbstractPausingProcedure):
    """An engine that computes between steps; see `AbstractPausingProcedure`."""


def split_state(state: PyTree) -> tuple[PyTree, PyTree]:
    """Return the arrays of a state, and the rest of it (functions of a network, say)."""
    return eqx.partition(state, eqx.is_array_like)


def pause_each(procedure: AbstractPausingProcedure, states: PyTree, index: int) -> PyTree:
    """Return what `pause` makes of each of several states."""
    arrays, rest = split_state(states)
    number = len(jax.tree.leaves(arrays)[0])
    one = lambda i: eqx.combine(jax.tree.map(lambda x: x[i], arrays), rest)
    each = [procedure.pause(one(i), index) for i in range(number)]
    stacked = [split_state(state)[0] for state in each]
    return eqx.combine(jax.tree.map(lambda *leaves: np.stack(leaves), *stacked), rest)


class AbstractOnlineEngine(AbstractEngine):
    """An engine that keeps running while data arrive, and gives a draw at any time.

    `step` may be given another target than the last time, with more rows of data
    (`whence.core.GrowingTarget`): the state must hold nothing that the data decide.
    """

    @abc.abstractmethod
    def validate_online(self, target: AbstractTarget) -> None:
        """Raise `ValueError` if this engine cannot follow `target` while its data grow."""

    @abc.abstractmethod
    def draw(self, target: AbstractTarget, state: PyTree, *, key: PRNGKey) -> Position:
        """Return one draw as of this state; traced, like `step`.

        Args:
            target: The target density.
            state: Of one replica, as returned by `step`.
            key: For the draw; an engine whose state is one draw does not use it.
        """


def never() -> Bool[Array, ""]:
    """`done` for an engine that runs all its steps."""
    return jnp.asarray(False)
