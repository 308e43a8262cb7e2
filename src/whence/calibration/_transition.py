"""An engine as one transition from where we say, on data that we say."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..core._advance import advance
from ..core._cache import compiled
from ..core._engine import AbstractEngine, Trace
from ..core._results import RESULTS
from ..core._target import AbstractDataTarget, AbstractDescribedTarget, SamplesPrior
from ..core._types import Position
from ._generative import Functions, Shapes, draw_data, quantities


class StartAt(AbstractDataTarget):
    """A target whose initial position is given."""

    target: AbstractDescribedTarget  # everything else
    position: Position  # where engines start

    def init(self, *, key):
        """Return the position given."""
        del key
        return self.position

    def log_density(self, position):
        return self.target.log_density(position)

    def constrain(self, position):
        return self.target.constrain(position)

    @property
    def num_data(self):
        return self.target.num_data

    def log_prior(self, position):
        return self.target.log_prior(position)

    def log_likelihood(self, position, rows=None):
        return self.target.log_likelihood(position, rows)


def check_transition(target: AbstractDescribedTarget, engine: AbstractEngine) -> None:
    """Raise `ValueError` unless each step of the engine is the same Markov transition."""
    if not isinstance(target, SamplesPrior):
        raise ValueError(
            "`target` must offer `sample_prior_position`, a draw from the prior in "
            f"unconstrained space; got {type(target).__name__}."
        )
    if engine.schedule.warmup > 0:
        raise ValueError(
            f"`engine` must not adapt, because a transition that changes has no distribution "
            f"to leave invariant; got {engine.schedule.warmup} steps of warm-up. Fix its "
            "parameters: `whence.NUTS(warmup=0, step_size=0.3)`."
        )
    if not engine.schedule.homogeneous:
        raise ValueError(
            "`engine` must have a fixed `step_size`: one that is searched for at the start "
            "depends on where the chain is. For example `whence.NUTS(warmup=0, step_size=0.3)`."
        )

    def step(key):
        state = engine.init(target, key=key)
        return engine.step(target, state, jnp.zeros((), jnp.int32), key=key)[1]

    if jax.eval_shape(step, jr.key(0)).position is None:
        raise ValueError(
            f"`engine` must be a Markov chain, a position at every step; {engine.name} is "
            "not. Use `whence.sbc` for it."
        )


def begin(
    target: AbstractDescribedTarget, shapes: Shapes, functions: Functions, keys: Array
) -> tuple[Any, Any, Any]:
    """Draw positions from the prior and data given them."""
    arguments = (target, shapes, functions, keys)
    return compiled(_begin, *arguments).call(*arguments)


def redraw(
    target: AbstractDescribedTarget,
    shapes: Shapes,
    functions: Functions,
    positions: Position,
    keys: Array,
) -> tuple[Any, Any]:
    """Draw new data at every position; return data and quantities."""
    arguments = (target, shapes, functions, positions, keys)
    return compiled(_redraw, *arguments).call(*arguments)


def move(
    target: AbstractDescribedTarget,
    engine: AbstractEngine,
    steps: int,
    positions: Position,
    data: dict[str, Array],
    keys: Array,
) -> tuple[Position, np.ndarray]:
    """Make some steps of the engine from every position, each on its own data."""
    arguments = (target, engine, steps, positions, data, keys)
    state, info, fine = compiled(_move, *arguments).call(*arguments)
    last = jax.tree.map(lambda x: np.asarray(x)[:, None], info)
    sample = engine.posterior(target, state, Trace(None, last), key=keys[0])
    leaves = jax.tree.leaves(sample.positions)
    if any(np.shape(leaf)[:2] != (len(keys), 1) for leaf in leaves):
        raise ValueError(
            f"`engine` must make one chain for itself; {engine.name} moves several together. "
            "Use `whence.sbc` for it."
        )
    return jax.tree.map(lambda x: np.asarray(x)[:, 0], sample.positions), np.asarray(fine)


def _begin(target, shapes, functions, keys):
    def one(key):
        prior_key, data_key = jr.split(key)
        position = target.sample_prior_position(key=prior_key)
        data, found = _data_at(target, shapes, functions, position, data_key)
        return position, data, found

    return jax.lax.map(one, keys)


def _redraw(target, shapes, functions, positions, keys):
    one = lambda position, key: _data_at(target, shapes, functions, position, key)
    return jax.lax.map(lambda pair: one(*pair), (positions, keys))


def _data_at(target, shapes, functions, position, key):
    draw = target.constrain(position)
    data = draw_data(target, draw, shapes, key)
    found = quantities(target.with_data(data), draw, data, functions)
    means = {f"mean({name})": value.mean(dtype=float) for name, value in data.items()}
    return data, {**found, **means}


def _move(target, engine, steps, positions, data, keys):
    def one(arguments):
        position, data, key = arguments
        start = StartAt(target.with_data(data), position)
        init_key, step_key = jr.split(key)
        state = engine.init(start, key=init_key)
        state, info = advance(engine, start, state, 0, steps, key=step_key)
        return state, info, engine.result(state) == RESULTS.successful

    # One after the other on CPU: mapped trajectories would all wait for the longest.
    together = None if jax.default_backend() == "cpu" else len(keys)
    return jax.lax.map(one, (positions, data, keys), batch_size=together)
