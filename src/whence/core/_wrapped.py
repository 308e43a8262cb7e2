"""Engines made of another engine, which they pass calls on to."""

import abc

from jaxtyping import Array, Bool, PyTree

from ._engine import AbstractEngine, AbstractPausingEngine, Schedule
from ._results import RESULTS
from ._target import AbstractTarget
from ._types import PRNGKey


class AbstractWrappedEngine(AbstractPausingEngine):
    """An engine that passes calls on to another.

    A final class defines `engine`, and `step` and `posterior`, where it adds what it adds.
    """

    @property
    @abc.abstractmethod
    def engine(self) -> AbstractEngine:
        """The engine that does the work."""

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def schedule(self) -> Schedule:
        return self.engine.schedule

    def validate(self, target: AbstractTarget) -> None:
        self.engine.validate(target)

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> PyTree:
        return self.engine.init(target, key=key)

    def pause(self, state: PyTree, index: int) -> PyTree:
        """Pause as the engine does; called only if its schedule has pauses."""
        assert isinstance(self.engine, AbstractPausingEngine)
        return self.engine.pause(state, index)

    def done(self, state: PyTree) -> Bool[Array, ""]:
        return self.engine.done(state)

    def result(self, state: PyTree) -> RESULTS:
        return self.engine.result(state)
