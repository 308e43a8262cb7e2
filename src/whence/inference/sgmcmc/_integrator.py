"""Discretised dynamics as words over a few letters, interpreted.

A word names the parts of an update in their order; each letter that occurs `n` times stands
for a part of length `h / n`. With position `q`, momentum `p` (of variance `T`, the
temperature), gradient `g` of the log density, diagonal preconditioner `G` and friction `f`:

| letter | update | |
| --- | --- | --- |
| `A` | `q += h sqrt(G) p` | drift |
| `B` | `p += h sqrt(G) g` | kick |
| `O` | `p = e^(-f h) p + sqrt(T (1 - e^(-2 f h))) noise` | friction, solved exactly |
| `o` | `p = (1 - f h) p + sqrt(2 f h T) noise` | friction, one Euler step |
| `D` | `f += h f0^2 (mean(p^2) - T)` | thermostat; `f0` is the friction it starts from |
| `E` | `q += h G g + sqrt(2 h G T) noise` | overdamped dynamics, one Euler step |

The gradient is evaluated once wherever the position has come to rest: kicks without a drift
between them, in one update or across two, share it and so share a batch of data.

References:
    Leimkuhler and Matthews (2013), "Rational construction of stochastic numerical methods for
    molecular sampling", doi:10.1093/amrx/abs010.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...core._types import Scalar

Vector = Float[Array, " dim"]

NAMED = {"SGLD": "E", "SGHMC": "AoB", "SGNHT": "oBAD"}


class Force(eqx.Module):
    """What was found at a position.

    Attributes:
        log_density: An estimate, in nats.
        gradient: An estimate.
    """

    log_density: Scalar
    gradient: Vector


class Motion(eqx.Module):
    """What moves.

    Attributes:
        position: `q`.
        momentum: `p`; empty for overdamped dynamics.
        thermostat: The friction in units of that it started from.
        force: At the position, if the word goes on with it; else None.
    """

    position: Vector
    momentum: Float[Array, " momenta"]
    thermostat: Scalar
    force: Force | None


class Terms(NamedTuple):
    """What an update takes besides the motion.

    Attributes:
        step_size: `h`.
        friction: `f0`, in units of one over that of the step size.
        temperature: `T`.
        diagonal: Of `G`, from what the preconditioner has learned; None for ones.
        noise_variance: Of the gradient, to be subtracted from the noise of friction, or None.
        drift: Added to `G g` in `E`, or None.
        adapts: 0 where a thermostat is to do nothing.
    """

    step_size: Scalar
    friction: Scalar
    temperature: Scalar
    diagonal: Callable[[PyTree], Vector | None]
    noise_variance: Callable[[PyTree], Vector | None] = lambda _: None
    drift: Callable[[PyTree], Vector | None] = lambda _: None
    adapts: Scalar | float = 1.0


def word_of(name: Any) -> str:
    """Return `integrator` as a word, or raise `ValueError`."""
    word = NAMED.get(name, name) if isinstance(name, str) else ""
    letters = set(word)
    damped = letters <= set("ABOoD") and {"A", "B"} <= letters and letters & set("Oo")
    if not (word == "E" or damped):
        raise ValueError(
            f"`integrator` must be one of {', '.join(NAMED)}, or a word over A, B, O, o and D "
            f"with A, B and a friction (O or o), such as 'BAOA'; got {name!r}."
        )
    return word


@cache
def evaluations(word: str) -> tuple[int, ...]:
    """Return before which letters of a word the gradient is evaluated."""
    settled, places = is_cached(word), []
    for place, letter in enumerate(word):
        ahead = [other for other in word[place:] if other in "ABE"]
        if letter != "A" and not settled and ahead and ahead[0] in "BE":
            places.append(place)
            settled = True
        settled = settled and letter not in "AE"
    return tuple(places)


@cache
def is_cached(word: str) -> bool:
    """Whether an update begins with the force that the last one ended with."""
    moves = [letter for letter in word if letter in "AB"]
    return bool(moves) and moves[0] == moves[-1] == "B"


@cache
def looks_at(word: str) -> str | None:
    """Return whether the force is known at the `"start"` or the `"end"` of an update."""
    moves = [letter for letter in word if letter in "ABE"]
    return "start" if moves[0] in "BE" else "end" if moves[-1] == "B" else None


def integrate(
    word: str,
    motion: Motion,
    learned: PyTree,
    terms: Terms,
    evaluate: Callable[[Vector, int, PyTree], tuple[Force, PyTree]],
    noise: Callable[[int], Vector],
) -> tuple[Motion, PyTree, Force, Scalar]:
    """Make one update.

    Args:
        word: From `word_of`.
        motion: Before it.
        learned: What `evaluate` learns from the gradients.
        terms: Step size and so on.
        evaluate: Returns the force at a position, for the evaluation of that number in this
            update, and the new `learned`.
        noise: Returns standard normal numbers for the letter with noise of that number.

    Returns:
        The motion after it, `learned`, the last force found, and the share of coordinates
        whose noise of friction would have been less than none and was set to none.
    """
    q, p, heat = motion.position, motion.momentum, motion.thermostat
    h, temperature, force = terms.step_size, terms.temperature, motion.force
    clamped, drawn, places = jnp.zeros((), q.dtype), 0, evaluations(word)
    for place, letter in enumerate(word):
        part = h / word.count(letter)
        if place in places:
            force, learned = evaluate(q, places.index(place), learned)
        diagonal = terms.diagonal(learned)
        root = 1.0 if diagonal is None else jnp.sqrt(diagonal)
        if letter == "A":
            q = q + part * root * p
        elif letter == "B":
            assert force is not None
            p = p + part * root * force.gradient
        elif letter == "D":
            heat = heat + terms.adapts * part * terms.friction * (jnp.mean(p**2) - temperature)
        elif letter == "E":
            assert force is not None
            scaled = h if diagonal is None else h * diagonal
            q = q + scaled * force.gradient + jnp.sqrt(2 * scaled * temperature) * noise(0)
            if (drift := terms.drift(learned)) is not None:
                q = q + h * drift
        else:
            kept, variance = _friction(letter, part * terms.friction, heat, temperature)
            lost = terms.noise_variance(learned)
            if lost is not None:
                share = word.count(letter)
                variance = (
                    variance - h**2 * (1.0 if diagonal is None else diagonal) * lost / share
                )
                clamped = clamped + jnp.mean((variance < 0).astype(q.dtype)) / share
            p = kept * p + jnp.sqrt(jnp.maximum(variance, 0)) * noise(drawn)
            drawn += 1
    assert force is not None
    moved = Motion(q, p, heat, force if is_cached(word) else None)
    return moved, learned, force, clamped


def _friction(letter: str, time: Scalar, heat: Scalar, temperature: Scalar):
    """Factor of the momentum and variance of the noise; `time` in units of one over `f0`.

    A thermostat changes the friction, to `heat * f0`, and not the noise.
    """
    if letter == "o":
        return 1 - heat * time, 2 * time * temperature
    damping = 2 * heat * time
    small = jnp.abs(damping) < jnp.sqrt(jnp.finfo(damping.dtype).eps)
    safe = jnp.where(small, 1, damping)
    mean = jnp.where(small, 1 - damping / 2, -jnp.expm1(-safe) / safe)
    return jnp.exp(-damping / 2), 2 * time * temperature * mean
