"""Prior selection by a distributional sliced Wasserstein distance: the procedure."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array

from ....core import Info, PRNGKey, number, one_of, part, positive, whole
from ..._fit import AbstractTraining, descend
from ..distance._distributional import PENALTY, Slicer, loss, objective
from ..distance._sliced import ascend, directions, powers
from ._problem import PriorProblem

METRICS = ("distributional", "sliced")
MONITORED = 256  # rows of data, and directions, of what is monitored
NETWORKS = 8  # of which images are made then, each of a quarter of these rows


class SelectionState(eqx.Module):
    """Arrays of the prior and the slicer with their optimisers, and what was best so far.

    `monitor` are the smallest SW2 of all looks, and SW2 and max-SW2 of the last.
    """

    params: Any
    rule: Any
    slicer: Any
    slicer_rule: Any
    best: Any
    monitor: Array


class DSWD(AbstractTraining):
    """Move a prior so that what the autoencoder makes of data, weights at random, is like them.

    Each step draws a batch of data and some networks from the prior, makes `inner_steps` of
    the slicer with directions drawn once, and then one step of the prior on the distance along
    the directions of the slicer, which is held (Danskin's theorem).

    What it minimises is no measure of progress, since the slicer moves as well. Every
    `look_every` steps it looks at the whole set, or 256 rows of it, with the same directions
    and networks each time: SW2, and max-SW2 by ascent from the best of these directions.

    Attributes:
        steps: Of the prior.
        metric: `"distributional"`; or `"sliced"`, with uniform directions and no slicer.
        draws: Networks per step.
        batch_size: Rows per step.
        projections: Directions.
        penalty: On directions that are alike, in the units of the data; 0 seeks the max-sliced
            distance.
        inner_steps: Of the slicer in each step.
        hidden: Width of a hidden layer of the slicer; 0 for a linear one.
        warmup: First steps in which only the slicer moves.
        learning_rate: Of Adam for the prior.
        slicer_rate: Of Adam for the slicer.
        look_every: Steps between looks.

    References:
        Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), arXiv:2106.06245.
        Nguyen, Ho, Pham and Bui (2021), arXiv:2002.07367.
    """

    steps: int = eqx.field(default=400, converter=whole("steps", least=1))
    metric: str = eqx.field(default="distributional", converter=one_of("metric", METRICS))
    draws: int = eqx.field(default=8, converter=whole("draws", least=1))
    batch_size: int = eqx.field(default=32, converter=whole("batch_size", least=2))
    projections: int = eqx.field(default=200, converter=whole("projections", least=2))
    penalty: float = eqx.field(default=PENALTY, converter=number("penalty", least=0))
    inner_steps: int = eqx.field(default=5, converter=whole("inner_steps", least=1))
    hidden: int = eqx.field(default=0, converter=whole("hidden", least=0))
    warmup: int = eqx.field(default=30, converter=whole("warmup", least=0))
    learning_rate: float = eqx.field(default=1e-3, converter=positive("learning_rate"))
    slicer_rate: float = eqx.field(default=5e-4, converter=positive("slicer_rate"))
    look_every: int = eqx.field(default=20, converter=whole("look_every", least=1))

    def validate(self, target: Any) -> None:
        part("problem", PriorProblem)(target)

    def _rules(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        return optax.adam(self.learning_rate), optax.adam(self.slicer_rate)

    def init(self, target: PriorProblem, *, key: PRNGKey) -> SelectionState:
        params, dtype = target.prior.params, target.flat.dtype
        slicer: Any = Slicer.make(target.flat.shape[1], self.hidden, dtype, key=key)
        rules = [r.init(v) for r, v in zip(self._rules(), (params, slicer), strict=True)]
        monitor = jnp.full((3,), jnp.finfo(dtype).max)
        return SelectionState(params, rules[0], slicer, rules[1], params, monitor)

    def step(
        self, target: PriorProblem, state: SelectionState, index: Array, *, key: PRNGKey
    ) -> tuple[SelectionState, Info]:
        key_rows, key_draws, key_along = jr.split(key, 3)
        size = min(self.batch_size, len(target.x))
        rows = jr.choice(key_rows, len(target.x), (size,), replace=False)
        x, data = target.x[rows], target.flat[rows]
        dim, dtype = data.shape[1], data.dtype
        along = directions(self.projections, dim, dtype, key=key_along)
        rule, slicer_rule = self._rules()
        power_along = lambda made: lambda t: powers(made, data, t)
        made = lambda params: target.made(params, x, self.draws, key=key_draws)
        slicer, slicer_state = state.slicer, state.slicer_rule
        if self.metric != "sliced":
            now = power_along(made(state.params))
            seek = lambda slicer: (loss(now, slicer(along), self.penalty), None)
            inner = lambda _, carry: descend(slicer_rule, seek, *carry)[0]
            begin = slicer, slicer_state
            slicer, slicer_state = jax.lax.fori_loop(0, self.inner_steps, inner, begin)
            along = slicer(along)

        apart = lambda params: objective(power_along(made(params)), along)
        new, (distance, alike) = descend(rule, apart, state.params, state.rule)
        params, moved = jax.tree.map(
            lambda a, b: jnp.where(index >= self.warmup, a, b), new, (state.params, state.rule)
        )
        looks = (index % self.look_every == 0) | (index == self.steps - 1)
        see, stay = lambda _: self._look(target, params), lambda _: state.monitor[1:]
        seen = jax.lax.cond(looks, see, stay, None)
        better = looks & (seen[0] < state.monitor[0])
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, state.best)
        monitor = jnp.concatenate([jnp.minimum(state.monitor[:1], seen[:1]), seen])
        stats = {"distance": distance, "concentration": alike}
        return (
            SelectionState(params, moved, slicer, slicer_state, best, monitor),
            Info(None, stats | {"sw2": seen[0], "max_sw2": seen[1]}),
        )

    def _look(self, target: PriorProblem, params: Any) -> Array:
        """Return SW2 and max-SW2 of the prior, with random numbers that are always the same."""
        key_draws, key_along = jr.split(jr.key(0))
        data, x = target.flat[:MONITORED], target.x[: MONITORED // 4]
        made = target.made(params, x, NETWORKS, key=key_draws)
        along = directions(MONITORED, data.shape[1], data.dtype, key=key_along)
        each = powers(made, data, along)
        top, _ = ascend(lambda t: powers(made, data, t), along, 2, 20)
        return jnp.sqrt(jnp.stack([each.mean(), jnp.maximum(top, each.max())]))
