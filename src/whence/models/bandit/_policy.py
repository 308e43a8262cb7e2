"""What a policy is, decisions in batches, and states in files."""

import abc
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ...core._convert import part, whole
from ...core._key import seeded
from ...core._tree import named_leaves
from ...core._types import PRNGKey
from ...storage._atomic import as_path, place, replace_file
from ...storage._npz import packed, unpacked
from ._checks import Numbers, known

Arm = Int[Array, "*batch"]
_TYPE = "(type)"  # no path of a leaf
_CHECKED = (
    "init",
    "act",
    "update",
    "values",
    "index",
    "optimistic_variance",
    "sample",
    "growing",
)


class _Method:
    """A method that binds to a pytree which `jax.jit` can hash, by its identity."""

    def __init__(self, function: Callable):
        self.function = _checked(function) if function.__name__ != "init" else function
        self.__doc__ = function.__doc__
        self.__isabstractmethod__ = getattr(function, "__isabstractmethod__", False)

    def __get__(self, instance: Any, owner: type | None = None) -> Callable:
        return self.function if instance is None else Partial(self.function, instance)


def _checked(method: Callable) -> Callable:
    """Return a method of a policy that refuses states which are not of its kind or size.

    States have fields of the same names with other meanings.
    """

    @functools.wraps(method)
    def checked(policy, state, *args, **kwargs):
        name, want = type(policy).__name__, getattr(policy, "State", object)
        if not isinstance(state, want):
            raise ValueError(
                f"`state` must come from `init` or `update` of this {name}, and be of type "
                f"{want.__name__}; got one of type {type(state).__name__}, as other policies "
                "have."
            )
        arms = getattr(state, "arms", None)  # beliefs and statistics know their number
        if isinstance(arms, int) and arms != policy.arms:
            raise ValueError(
                f"`state` must be for the {policy.arms} arms of this {name}; it is for {arms}."
            )
        return method(policy, state, *args, **kwargs)

    return checked


class AbstractLearner(eqx.Module):
    """A configuration that never changes; what is learned is in a state, a pytree of arrays.

    `act` and `update` can be compiled (`jax.jit(policy.update)`), vectorised and used in
    `jax.lax.scan`. Values are checked where they are known, that is, outside of these.

    A state holds all that was believed and learned, the prior (or `ridge`) it began with
    included. So policies with one type of states can go on from each other's, as `TopTwoTS`
    from where `VarTS` stands: they choose by the same posterior. States of other types are
    refused.
    """

    # Of the states that `init` and `update` return; without it any state is taken.
    State: ClassVar[type]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Equinox hashes a bound method by the leaves of its module, and arrays have no hash.
        for name in _CHECKED:
            if name in cls.__dict__ and not isinstance(cls.__dict__[name], _Method):
                setattr(cls, name, _Method(getattr(cls, name)))

    @abc.abstractmethod
    def init(self, batch: tuple[int, ...] = ()) -> Any:
        """Return the state before the first round.

        Args:
            batch: Shape of a batch of independent problems.
        """


class AbstractPolicy(AbstractLearner):
    """A rule that chooses an arm given the rewards so far: pure functions on a state.

    Arrays of the state have axis 0 for the arms, the axes of a batch of problems after it.
    """

    arms: eqx.AbstractVar[int]
    # Whether `update` runs compiled code of its own and raises by what comes out of it.
    raises_late: ClassVar[bool] = False

    @abc.abstractmethod
    def act(self, state: Any, *, key: PRNGKey) -> Arm:
        """Return the index of the arm to pull, shape `(*batch,)`.

        Args:
            state: From `init` or `update`.
            key: For the choice; policies that leave nothing to chance do not use it.
        """

    @abc.abstractmethod
    def update(self, state: Any, arm: Numbers, reward: Numbers) -> Any:
        """Return the state after a reward.

        Args:
            state: From `init` or `update`.
            arm: The arm that was pulled, shape `(*batch,)`.
            reward: What it gave, shape `(*batch,)`.

        Raises:
            ValueError: If the arm does not exist or the reward is impossible.
        """


def highest(values: Float[Array, "arm *batch"]) -> Arm:
    """Return the index of the highest value, the first one if there are several."""
    # Without the barrier XLA computes the values inside of the search, one after the other
    # and not in vector registers: on a CPU that takes as long as all else in a round.
    return jnp.argmax(jax.lax.optimization_barrier(values), axis=0)


@seeded
def act_many(
    policy: AbstractPolicy, state: Any, num: int, *, key: PRNGKey
) -> Int[Array, "num *batch"]:
    """Choose arms for several decisions that must be made before the next reward.

    Each is made as if it were the only one, with its own key. A policy that draws from a
    belief spreads them over the arms that may be best; one that leaves nothing to chance
    chooses the same arm `num` times.

    Args:
        policy: The policy.
        state: Its state.
        num: Number of decisions.
        key: Split once per decision.

    Returns:
        Indices of arms, shape `(num, *batch)`.

    Raises:
        ValueError: If `num` is not a positive integer.
    """
    part("policy", AbstractPolicy)(policy)
    num = whole("num", least=1)(num)
    return jax.vmap(lambda k: policy.act(state, key=k))(jr.split(key, num))


def update_many(policy: AbstractPolicy, state: Any, arms: Numbers, rewards: Numbers) -> Any:
    """Return the state after several rewards, in the order given, by one compiled loop.

    Args:
        policy: The policy.
        state: Its state.
        arms: The arms that were pulled, shape `(num, *batch)`.
        rewards: What they gave, shape `(num, *batch)`.

    Raises:
        ValueError: If there are not as many rewards as arms, an arm does not exist, or a
            reward is impossible.
    """
    part("policy", AbstractPolicy)(policy)
    known(arms, "arms")
    known(rewards, "rewards")
    arms, rewards = jnp.asarray(arms), jnp.asarray(rewards)
    if arms.ndim < 1 or arms.shape != rewards.shape:
        raise ValueError(
            f"`arms` and `rewards` must have one shape (num, ...); got {arms.shape} and "
            f"{rewards.shape}."
        )
    if policy.raises_late:
        for arm, reward in zip(arms, rewards, strict=True):
            state = policy.update(state, arm, reward)
        return state
    # Compiled code cannot refuse a reward: as many problems with one reward each can.
    policy.update(policy.init(arms.shape), arms, rewards)
    return _update_many(policy, state, arms, rewards)


@eqx.filter_jit
def _update_many(policy: AbstractPolicy, state: Any, arms: Array, rewards: Array) -> Any:
    step = lambda state, round: (policy.update(state, *round), None)
    return jax.lax.scan(step, jax.tree.map(jnp.asarray, state), (arms, rewards))[0]


def save_state(state: Any, path: str | Path) -> None:
    """Write a policy's state, or a belief, to an npz file, without pickle, whole or not at all.

    The file knows the type of the state.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {n: np.asarray(leaf) for n, leaf in named_leaves(state).items()}
    arrays[_TYPE] = np.asarray(type(state).__name__)
    replace_file(place(path), packed(arrays))


def load_state[State](path: str | Path, like: State) -> State:
    """Read what `save_state` wrote.

    Args:
        path: The file.
        like: A state of the same policy, for example `policy.init()`.

    Returns:
        The state, equal to the saved one bit for bit.

    Raises:
        ValueError: If the file is damaged, or holds something else than a state like `like`.
        OSError: If it cannot be read.
    """
    stored = unpacked(as_path(path))
    kind, wanted = str(stored.pop(_TYPE, "")), type(like).__name__
    if kind != wanted:
        raise ValueError(
            f"`like` must be a state like the one in {path}, of type {kind or 'unknown'}; got "
            f"one of type {wanted}."
        )
    want = named_leaves(like)
    for name in sorted(set(want) | set(stored)):
        got = stored.get(name)
        leaf = want.get(name)
        described = [
            "nothing" if x is None else f"{x.dtype} of shape {x.shape}" for x in (leaf, got)
        ]
        if described[0] != described[1]:
            raise ValueError(
                f"`like` must be a state like the one in {path}: `{name}` is {described[0]}, "
                f"in the file {described[1]}."
            )
    leaves = [jnp.asarray(stored[name]) for name in want]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
