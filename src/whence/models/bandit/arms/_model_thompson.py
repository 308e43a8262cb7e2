"""Thompson sampling with any model of the rewards, and an engine that follows it."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ....core._advance import advance
from ....core._convert import number, whole
from ....core._engine import AbstractEngine, AbstractOnlineEngine
from ....core._growing import GrowingTarget
from ....core._key import seeded
from ....core._results import RESULTS, InferenceError
from ....core._types import PRNGKey
from ....language._condition import ModelTarget, condition
from ....language._model import Model
from .._checks import Numbers, known, pulled, require_finite
from .._policy import AbstractPolicy, Arm

Batched = Int[Array, "*batch"]


class ModelState(eqx.Module):
    """The rewards so far, and where the engine stands.

    Every leaf begins with the axes of the batch.

    Attributes:
        engine: State of the engine.
        steps: Steps that it has made.
        arms: Arms that were pulled, in order, shape `(*batch, capacity)`.
        rewards: What they gave; entries from `filled` on are placeholders.
        filled: Number of rewards.
        left_out: Rewards that compiled code left out: not finite, or beyond the capacity.
        key: Raw data of the key for the next steps.
    """

    engine: PyTree
    steps: Batched
    arms: Int[Array, "*batch capacity"]
    rewards: Float[Array, "*batch capacity"]
    filled: Batched
    left_out: Batched
    key: UInt32[Array, "*batch word"]


class ModelTS(AbstractPolicy):
    """Thompson sampling with a `whence.Model` of the rewards.

    The model's `likelihood(self, arm)` takes the arms pulled, shape `(data,)`, and returns
    the distribution of their rewards. After each reward the engine makes some steps on the
    posterior of all rewards so far, going on from where it was; for a decision it is asked
    for one draw, of which `mean_rewards` tells what each arm is worth.

    How good the draws are is the engine's part. `whence.DataTemperedSMC` follows the
    posterior closely. `whence.SGLD` and `whence.BBVI` follow it as fast as their steps allow:
    give them enough (`steps_per_reward`, `warmup`), and `BBVI` an `optimizer`. The state of
    `SGLD` is one draw, which stays the same until the next reward, so that `act_many` chooses
    one arm for all. Every step computes the likelihood of `capacity` rows.

    In compiled code a reward that is not finite or finds no room is left out and counted
    (`ModelState.left_out`), and a failure of the engine is seen from its `result` only;
    outside, both raise.

    Attributes:
        target: The posterior with room for `capacity` rewards.

    Args:
        model: Its `likelihood(self, arm)` gives the distribution of rewards.
        engine: `whence.DataTemperedSMC`, `whence.SGLD` or `whence.BBVI`.
        mean_rewards: Given a draw (a model with values), the mean rewards, shape `(arm,)`.
        arms: Number of arms.
        capacity: Most rewards.
        steps_per_reward: Steps of the engine after each reward.
        warmup: Steps of the engine on the prior, before the first reward.
        placeholder: A reward that the likelihood accepts, to fill the room with.
        seed: Of the engine's random numbers.

    Raises:
        ValueError: If the engine cannot be asked for draws at any time, the likelihood
            is no product over rewards, or a shape or number is wrong.

    References:
        Thompson (1933), doi:10.1093/biomet/25.3-4.285.
        Chopin (2002), doi:10.1093/biomet/89.3.539, for the particles.
        Riquelme, Tucker and Snoek (2018), "Deep Bayesian bandits showdown", ICLR, for what
        approximate posteriors do to Thompson sampling.
    """

    State: ClassVar[type] = ModelState
    raises_late: ClassVar[bool] = True

    target: ModelTarget
    engine: AbstractOnlineEngine
    mean_rewards: Callable[[Any], Array]
    arms: int = eqx.field(static=True)
    steps_per_reward: int = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        engine: AbstractEngine,
        *,
        mean_rewards: Callable[[Any], Array],
        arms: int,
        capacity: int,
        steps_per_reward: int = 1,
        warmup: int = 100,
        placeholder: float | int = 0.0,
        seed: int = 0,
    ):
        arms, capacity = whole("arms", least=1)(arms), whole("capacity", least=1)(capacity)
        steps_per_reward = whole("steps_per_reward", least=1)(steps_per_reward)
        warmup, seed = whole("warmup", least=0)(warmup), whole("seed", least=0)(seed)
        placeholder = number("placeholder")(placeholder)
        if not isinstance(engine, AbstractOnlineEngine):
            raise ValueError(
                "`engine` must be one that can be asked for draws while data come in, such as "
                f"DataTemperedSMC, SGLD or BBVI; got {type(engine).__name__}."
            )
        rewards = np.full(capacity, placeholder)
        pulled = (np.arange(capacity) % arms).astype(np.int32)
        self.target = condition(model, rewards, pulled, name="reward")
        if self.target.num_data != capacity:
            raise ValueError(
                "`model` must have a likelihood that is a product over rewards, with one entry "
                f"for each of the {capacity} arms it is given."
            )
        self.engine, self.mean_rewards, self.arms = engine, mean_rewards, arms
        self.steps_per_reward, self.warmup, self.seed = steps_per_reward, warmup, seed
        position = jax.eval_shape(lambda: self.target.init(key=jr.key(0)))
        worth = jax.eval_shape(lambda x: mean_rewards(self.target.constrain(x)), position)
        if getattr(worth, "shape", None) != (arms,):
            raise ValueError(
                f"`mean_rewards` must return an array of shape ({arms},); got {worth}."
            )
        full = GrowingTarget(self.target, jnp.asarray(capacity, jnp.int32))
        engine.validate_online(full)

    @property
    def capacity(self) -> int:
        """Most rewards."""
        return self.target.y.shape[0]

    def init(self, batch: tuple[int, ...] = ()) -> ModelState:
        return _init(self, batch)

    @seeded
    def act(self, state: ModelState, *, key: PRNGKey) -> Arm:
        """Return the arm with the highest mean reward in one posterior draw."""
        return jnp.argmax(self.sample(state, key=key), axis=-1)

    @seeded
    def sample(self, state: ModelState, *, key: PRNGKey) -> Float[Array, "*batch arm"]:
        """Draw the mean rewards of all arms."""
        return _sample(self, state, key)

    def update(self, state: ModelState, arm: Numbers, reward: Numbers) -> ModelState:
        """Return the state after a reward: the engine has made its steps.

        Args:
            state: From `init` or `update`.
            arm: The arm that was pulled, shape `(*batch,)`.
            reward: What it gave, shape `(*batch,)`.

        Raises:
            ValueError: As of any policy, or if there is no room for another reward.
            InferenceError: If the engine failed.
        """
        require_finite("reward", reward)
        dtype = state.rewards.dtype
        arm, reward = pulled(arm, reward, self.arms, state.filled.shape, dtype)
        arm = arm.astype(jnp.int32)
        filled = known(state.filled)
        if filled is not None and (filled >= self.capacity).any():
            raise ValueError(
                f"`capacity` must be at least the number of rewards; this is number "
                f"{filled.max() + 1}, and the capacity is {self.capacity}."
            )
        state = _update(self, state, arm, reward)
        self._require_success(state)
        return state

    def growing(self, state: ModelState) -> GrowingTarget:
        """Return the posterior of the rewards so far, for one problem."""
        target = eqx.tree_at(
            lambda t: (t.y, t.inputs), self.target, (state.rewards, (state.arms,))
        )
        return GrowingTarget(target, state.filled)

    def _require_success(self, state: ModelState) -> None:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
            return
        failed = lambda engine: self.engine.result(engine) != RESULTS.successful
        bad = np.argwhere(np.asarray(_over_batch(failed, state)(state.engine)))
        if len(bad):
            first = jax.tree.map(lambda leaf: leaf[tuple(bad[0])], state.engine)
            raise InferenceError(f"{self.engine.name}: {RESULTS[self.engine.result(first)]}")


def _over_batch(function: Callable, state: ModelState) -> Callable:
    for _ in state.filled.shape:
        function = jax.vmap(function)
    return function


def _go_on(policy: ModelTS, state: ModelState, steps: int) -> ModelState:
    """Let the engine make some steps."""
    if not steps:
        return state
    target, key = policy.growing(state), jr.wrap_key_data(state.key)
    engine, _ = advance(policy.engine, target, state.engine, state.steps, steps, key=key)
    return eqx.tree_at(lambda s: (s.engine, s.steps), state, (engine, state.steps + steps))


@eqx.filter_jit
def _init(policy: ModelTS, batch: tuple[int, ...]) -> ModelState:
    zero = jnp.zeros((), jnp.int32)

    def start(key):
        key_init, key_steps = jr.split(key)
        target = GrowingTarget(policy.target, zero)
        state = ModelState(
            engine=policy.engine.init(target, key=key_init),
            steps=zero,
            arms=policy.target.inputs[0],
            rewards=policy.target.y,
            filled=zero,
            left_out=zero,
            key=jr.key_data(key_steps),
        )
        return _go_on(policy, state, policy.warmup)

    key = jr.key(policy.seed)
    for _ in batch:
        start = jax.vmap(start)
    return start(jr.split(key, batch) if batch else key)


@eqx.filter_jit
def _update(policy: ModelTS, state: ModelState, arm: Array, reward: Array) -> ModelState:
    def one(state, arm, reward):
        def take(state):
            place = lambda s: (s.arms, s.rewards, s.filled)
            arms = state.arms.at[state.filled].set(arm)
            rewards = state.rewards.at[state.filled].set(reward)
            state = eqx.tree_at(place, state, (arms, rewards, state.filled + 1))
            return _go_on(policy, state, policy.steps_per_reward)

        def leave(state):
            return eqx.tree_at(lambda s: s.left_out, state, state.left_out + 1)

        usable = jnp.isfinite(reward) & (state.filled < policy.capacity)
        return jax.lax.cond(usable, take, leave, state)

    return _over_batch(one, state)(state, arm, reward)


@eqx.filter_jit
def _sample(policy: ModelTS, state: ModelState, key: PRNGKey) -> Array:
    def one(state, key):
        target = policy.growing(state)
        position = policy.engine.draw(target, state.engine, key=key)
        return policy.mean_rewards(target.constrain(position))

    batch = state.filled.shape
    return _over_batch(one, state)(state, jr.split(key, batch) if batch else key)
