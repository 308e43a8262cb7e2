"""How long a fit goes on, and how the size of its steps falls.

A fit searches with steps of one size until its family has come to rest. Then the steps fall
to zero, as the square of the time that is left, and it ends. It is at rest when the mean
parameters of successive rounds of updates either stay where they are or go to and fro: while
there is a way to go, two moves in a row point the same way, and when all is noise they point
opposite ways (their correlation is -1/2). It is the place that is watched and not the ELBO,
whose estimates by minibatches may be off by thousands of nats; and the measure is the spread
of the family, whatever the units.

References:
    Pflug (1990), "Non-asymptotic confidence bounds for stochastic approximation algorithms
    with constant step size", Monatshefte fuer Mathematik 110, pages 297-314: the sign of the
    product of successive moves. Here these are moves of means over rounds, because those of
    single updates are correlated by the optimiser's momentum.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._family import AbstractFamily

ROUND = 100  # updates, whose mean parameters are compared
ROUNDS_AT_REST = 2  # in a row: a turn on the way there looks like rest for one round
STILL = 0.02  # standard deviations; a move by less is none
PROBES = 16  # draws that measure a move


class Pace(eqx.Module):
    """How far a fit has come.

    Attributes:
        falls_at: The update from which on steps fall; at first the latest possible.
        ends_at: The update at which they are zero.
        sums: Sums of the parameters over the running round.
        means: Mean parameters of the last round, and of the one before.
        rounds: Rounds at rest, in a row.
    """

    falls_at: Int[Array, ""]
    ends_at: Int[Array, ""]
    sums: PyTree
    means: tuple[PyTree, PyTree]
    rounds: Int[Array, ""]

    def factor(self, counter: Int[Array, " update"]) -> Float[Array, " update"]:
        """Return the factor on the size of each update; 1 during the search."""
        left = (self.ends_at - counter) / (self.ends_at - self.falls_at)
        return jnp.clip(left, 0, 1) ** 2


def start_pace(params: PyTree, steps: int, fall: int) -> Pace:
    """Return the pace at update 0."""
    number = lambda n: jnp.asarray(n, jnp.int32)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Pace(number(steps - fall), number(steps), zeros, (params, params), number(0))


def advance(
    pace: Pace,
    family: AbstractFamily,
    params: PyTree,
    index: Int[Array, ""],
    block: int,
    like: Float[Array, " dim"],
) -> Pace:
    """Return the pace after a block of updates.

    Args:
        pace: Before it.
        family: The family.
        params: Its parameters after the last update.
        index: Number of the block, from 0.
        block: Updates in a block.
        like: A flat position, for its size and type.
    """
    number = -(-ROUND // block)  # blocks in a round
    sums = jax.tree.map(jnp.add, pace.sums, params)
    pace = eqx.tree_at(lambda p: p.sums, pace, sums)
    compare = lambda: _compare(pace, family, (index + 1, number, block), like)
    return jax.lax.cond((index + 1) % number == 0, compare, lambda: pace)


def _compare(pace: Pace, family: AbstractFamily, count: tuple[Array, int, int], like) -> Pace:
    blocks, number, block = count
    mean = jax.tree.map(lambda x: x / number, pace.sums)
    last, before = pace.means
    rests = _at_rest(family, (before, last, mean), like) & (blocks > 2 * number)
    rounds = jnp.where(rests, pace.rounds + 1, 0)
    saved = jnp.maximum(pace.falls_at - blocks * block, 0)
    saved = jnp.where(rounds >= ROUNDS_AT_REST, saved, 0)
    zeros = jax.tree.map(jnp.zeros_like, mean)
    return Pace(pace.falls_at - saved, pace.ends_at - saved, zeros, (mean, last), rounds)


def _at_rest(
    family: AbstractFamily, path: tuple[PyTree, PyTree, PyTree], like
) -> Bool[Array, ""]:
    """Whether the same draws of noise have come to rest, at mean parameters of three rounds."""
    noise = family.noise(like, PROBES, key=jr.key(0))
    first, second, third = (
        jax.vmap(lambda n, p=params: family.transform(p, n))(noise) for params in path
    )
    spread = jnp.std(third, axis=0)
    unit = jnp.where(spread > 0, spread, 1)  # a point has none, and is in units of the position
    before, after = (second - first) / unit[None], (third - second) / unit[None]
    still = jnp.all(jnp.mean(after**2, axis=0) < STILL**2)
    return still | (jnp.sum(before * after) <= 0)
