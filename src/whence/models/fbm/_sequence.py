"""The equation as a sequence of hidden states, for particle filters."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from ...language._condition import ModelTarget
from .._sequence import AbstractModelSequence
from ._path import PATH, Plan, advance, datum_term, start_size, started


class FractionalSequence(AbstractModelSequence):
    """One series, time after time: a vector of state, bank, and the noise of the way there."""

    parameters: ModelTarget
    plan: Plan
    y: Any  # `(time, ...)`
    observed: Any  # which numbers of it count; None for all

    @property
    def num_times(self) -> int:
        return len(self.y)

    def log_density(self, position):
        if self.plan.form == "path":
            raise NotImplementedError("The path of this model cannot be integrated out.")
        return self.parameters.log_density(position)

    def datum(self, time):
        return jax.tree.map(lambda v: v[time], (self.y, self.observed))

    def as_datum(self, y, inputs=None):
        raise ValueError(
            "A fractional equation is on a grid to the last of its times: it takes no datum "
            "more. Condition it on the longer series."
        )

    def with_data(self, data):
        y, observed = data
        return FractionalSequence(self.parameters, self.plan, y, observed)

    def initial(self, draw, *, key):
        key, key_start = jr.split(key)
        bank, _ = self._on(draw).basis()
        first = start_size(draw, self.plan.components, self.plan.nodes)
        white = jr.normal(key_start, (first,), self.plan.grid.dtype)
        x, y = started(draw, bank, white)
        return self._move(draw, x, y, white, 0, self.plan.at[0], key)

    def transition(self, draw, state, time, datum, *, key):
        at = self.plan.at
        x, y, first, _ = self._parts(state)
        return self._move(draw, x, y, first, at[time - 1], at[time], key)

    def log_transition(self, draw, state, new, time, datum):
        raise NotImplementedError(
            "From one time to the next the state has no density: `smoother='ancestors'`."
        )

    def log_potential(self, draw, state, time, datum):
        return datum_term(draw, state[: self.plan.components], *datum)

    def join(self, position, path):
        if self.plan.form != "path":
            return position
        _, _, first, white = jax.vmap(self._parts)(path)
        begin = jnp.concatenate([jnp.zeros_like(self.plan.at[:1]), self.plan.at[:-1]])
        places = begin[:, None] + jnp.arange(self.plan.longest, dtype=begin.dtype)[None, :]
        # What a gap does not need of its block falls off the end of the grid.
        steps = len(self.plan.grid) - 1
        places = jnp.where(places < self.plan.at[:, None], places, steps)
        noise = jnp.zeros((steps, *white.shape[2:]), white.dtype)
        noise = noise.at[places].set(white, mode="drop")
        return position | dict(zip(PATH, (first[0], noise)))

    def without_path(self, position):
        return {name: v for name, v in position.items() if name not in PATH}

    def _on(self, draw):
        return eqx.tree_at(lambda m: m.plan, draw, self.plan, is_leaf=lambda v: v is None)

    def _parts(self, state):
        """Return state, bank, noise of the start, and that of the last gap."""
        d, k = self.plan.components, self.plan.nodes
        x, y, first, white = jnp.split(
            state, [d, d + d * k, len(state) - self.plan.longest * d * k]
        )
        return x, y.reshape(d, k), first, white.reshape(-1, d, k)

    def _move(self, draw, x, y, first, begin, end, key):
        """Return the vector at a point of the grid, of what it was at one before."""
        _, steps = self._on(draw).basis()
        white = jr.normal(key, (self.plan.longest, *y.shape), y.dtype)
        last = len(self.plan.grid) - 2

        def one(state, inputs):
            i, white = inputs
            step = jax.tree.map(lambda v: v[jnp.minimum(i, last)], steps)
            new = advance(draw, step, state[0], state[1], white @ step.factor.T)
            return jax.tree.map(lambda a, b: jnp.where(i < end, a, b), new, state), None

        numbers = begin + jnp.arange(self.plan.longest, dtype=jnp.int32)
        (x, y), _ = jax.lax.scan(one, (x, y), (numbers, white))
        return jnp.concatenate([x, y.ravel(), first, white.ravel()])
