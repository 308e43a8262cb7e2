"""Finding the best arm: which to pull for it, how sure one is by now, and when to stop."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ....core._convert import fraction, number, part, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import one_hot
from .._policy import Arm
from ._belief import AbstractBelief
from ._belief_policy import AbstractBeliefPolicy


class TopTwoTS(AbstractBeliefPolicy):
    """Top-two Thompson sampling: finds out soon which arm is best, at a price in reward.

    Draws from the belief until two draws have different best arms; pulls the first with
    probability `beta`, otherwise the second. Thompson sampling alone pulls the arm that is
    probably best nearly always, and so hardly learns any more whether it is.

    If one arm is best in nearly every draw, the second would be long in coming. After
    `redraws` draws it is the arm that came closest to beating the first in one of them.
    That differs from the published rule only where the first is best with a probability of
    the order of `1 - 1 / redraws` or above.

    Attributes:
        prior: Belief before the first reward, for example `NormalGamma`.
        beta: Share of the pulls that goes to the best arm in the long run; 1/2 needs at
            most twice the rewards that the best share for the problem at hand would.
        redraws: Most draws for the second arm.

    References:
        Russo (2020), "Simple Bayesian algorithms for best-arm identification",
        doi:10.1287/opre.2019.1911.
    """

    State: ClassVar[type] = AbstractBelief

    prior: AbstractBelief = eqx.field(converter=part("prior", AbstractBelief))
    beta: float = eqx.field(default=0.5, converter=fraction("beta"))
    redraws: int = eqx.field(default=100, converter=whole("redraws", least=1))

    def __check_init__(self):
        if self.prior.arms < 2:
            raise ValueError(f"`prior` must have at least 2 arms; got {self.prior.arms}.")

    @seeded
    def act(self, state: AbstractBelief, *, key: PRNGKey) -> Arm:
        """Return the best arm of one draw, or of one that has another."""
        key_first, key_coin, key_second = jr.split(key, 3)
        first = jnp.argmax(state.sample(key=key_first), axis=0)
        stay = jr.uniform(key_coin, first.shape) < self.beta
        return _challenge(self.redraws, state, first, stay, key_second)


# Compiled on its own, as a loop that is called anew for every decision must not be.
@eqx.filter_jit
def _challenge(redraws, state, first, stay, key) -> Arm:
    """Return `first` where it stays, elsewhere the best arm of a draw that differs."""
    hit = one_hot(first, state.arms)

    def unfinished(carry):
        draw, _, done, _ = carry
        return (draw < redraws) & ~jnp.all(done)

    def redraw(carry):
        draw, arm, done, closest = carry
        values = state.sample(key=jr.fold_in(key, draw))
        others = jnp.where(hit, -jnp.inf, values)
        lead = jnp.max(others, 0) - jnp.sum(jnp.where(hit, values, 0), 0)
        better = ~done & ((lead > closest) | (lead > 0))
        arm = jnp.where(better, jnp.argmax(others, 0), arm)
        return draw + 1, arm, done | (lead > 0), jnp.where(better, lead, closest)

    never = jnp.full(first.shape, -jnp.inf, state.mean.dtype)
    start = (jnp.asarray(0), first, stay, never)
    return jax.lax.while_loop(unfinished, redraw, start)[1]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a belief says about ending a trial now. Arrays have the shape of the batch.

    Attributes:
        arm: The arm that is most probably the best.
        probability: The probability that it is.
        standard_error: Monte Carlo error of that.
        loss: Expected reward lost, per pull, by settling on that arm although another may
            be better, in units of the reward.
        stop: Whether `probability` has reached the level asked for.
    """

    arm: Any
    probability: Any
    standard_error: Any
    loss: Any
    stop: Any


@seeded
def probability_best(
    state: AbstractBelief, *, key: PRNGKey, draws: int = 4_000
) -> Float[Array, "arm *batch"]:
    """Return the posterior probability of each arm that it has the highest mean reward.

    Args:
        state: A belief; the state of any policy that keeps one.
        key: For the draws.
        draws: Draws of all means; the Monte Carlo error is at most `1 / (2 sqrt(draws))`.

    Raises:
        ValueError: If `draws` is not a positive integer.
    """
    part("state", AbstractBelief)(state)
    draws = whole("draws", least=1)(draws)
    return _shares(state.sample((draws,), key=key))


@seeded
def decide(
    state: AbstractBelief, *, key: PRNGKey, level: float = 0.95, draws: int = 4_000
) -> Decision:
    """Say which arm is most probably the best, and whether that is sure enough to stop.

    Checking after every reward and stopping at `level` is sound in the Bayesian sense: of
    the trials stopped with a probability of 0.95, under a true prior, 5% chose wrongly. It
    does not bound the probability of error in the worst case.

    Args:
        state: A belief; the state of any policy that keeps one.
        key: For the draws.
        level: Probability at which to stop.
        draws: Draws of all means.

    Raises:
        ValueError: If `level` is not between 0 and 1, or `draws` not a positive integer.
    """
    part("state", AbstractBelief)(state)
    level = number("level", least=0, most=1)(level)
    draws = whole("draws", least=1)(draws)
    values = state.sample((draws,), key=key)
    shares = _shares(values)
    arm = jnp.argmax(shares, axis=0)
    probability = np.asarray(jnp.max(shares, axis=0))
    mine = jnp.take_along_axis(values, arm[None, None], 1)[:, 0]
    loss = jnp.mean(jnp.max(values, 1) - mine, 0)
    error = np.sqrt(probability * (1 - probability) / draws)
    parts = (np.asarray(x) for x in (arm, probability, error, loss, probability >= level))
    return Decision(*(x if x.ndim else x.item() for x in parts))


def _shares(values: Array) -> Float[Array, "arm *batch"]:
    best = jnp.argmax(values, axis=1)
    arms = jnp.arange(values.shape[1]).reshape((-1,) + (1,) * (best.ndim - 1))
    return jnp.mean(best[:, None] == arms, axis=0, dtype=values.dtype)
