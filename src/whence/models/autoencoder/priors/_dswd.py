"""Prior selection by a distributional sliced Wasserstein distance: the procedure."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array

from ....core import (
    RESULTS,
    AbstractProcedure,
    Info,
    PRNGKey,
    Schedule,
    never,
    number,
    one_of,
    positive,
    whole,
)
from ..distance._distributional import (
    PENALTY,
    blank_slicer,
    improve,
    objective,
    slicer_arrays,
)
from ..distance._sliced import ascend, directions, powers, root
from ._abstract_prior import AbstractPrior
from ._problem import PriorProblem

METRICS = ("distributional", "sliced", "max")
MONITORED = 256  # rows of data, and directions, of what is monitored
NETWORKS = 8  # of which images are made then, each of a quarter of these rows


class SelectionState(eqx.Module):
    """State of `DSWD`.

    Attributes:
        params: Arrays of the prior.
        rule: State of their optimiser.
        slicer: Arrays of the slicer.
        slicer_rule: State of its optimiser.
        best: Arrays of the prior when SW2 was least of those looked at.
        monitor: Smallest SW2, and SW2 and max-SW2 of the last look.
        finite: Whether all was finite so far.
    """

    params: Any
    rule: Any
    slicer: Any
    slicer_rule: Any
    best: Any
    monitor: Array
    finite: Array


class DSWD(AbstractProcedure):
    """Move a prior so that what the autoencoder makes of data, weights at random, is like them.

    Each step draws a batch of data and some networks from the prior, makes `inner_steps` of
    the slicer with directions drawn once, and then one step of the prior on the distance along
    the directions of the slicer, which is held (Danskin's theorem).

    What it minimises is no measure of progress, since the slicer moves as well. Every
    `look_every` steps it looks at the whole set, or 256 rows of it, with the same directions
    and networks each time: SW2, and max-SW2 by ascent from the best of these directions.

    Attributes:
        steps: Of the prior.
        metric: `"distributional"`; `"sliced"`, with uniform directions and no slicer; or
            `"max"`, the distributional one without a penalty.
        draws: Networks per step.
        batch_size: Rows per step.
        projections: Directions.
        penalty: On directions that are alike, in the units of the data.
        inner_steps: Of the slicer in each step.
        hidden: Width of a hidden layer of the slicer; 0 for a linear one.
        warmup: First steps in which only the slicer moves.
        learning_rate: Of Adam for the prior.
        slicer_rate: Of Adam for the slicer.
        look_every: Steps between looks.

    References:
        Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), Model selection for
        Bayesian autoencoders, NeurIPS, arXiv:2106.06245.
        Nguyen, Ho, Pham and Bui (2021), Distributional sliced-Wasserstein and applications to
        generative modeling, ICLR, arXiv:2002.07367.
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

    @property
    def name(self) -> str:
        return "DSWD"

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.steps)

    def validate(self, target: Any) -> None:
        if not isinstance(target, PriorProblem):
            raise ValueError(
                "`problem` must be what `autoencoder.prior_problem(model, x)` returns; got "
                f"{type(target)}."
            )
        if not jax.tree.leaves(eqx.filter(target.prior, eqx.is_inexact_array)):
            raise ValueError("`prior` must have something to select; it has no arrays.")

    def _split(self, target: PriorProblem) -> tuple[Any, Any]:
        return eqx.partition(target.prior, eqx.is_inexact_array)

    def init(self, target: PriorProblem, *, key: PRNGKey) -> SelectionState:
        params, _ = self._split(target)
        slicer = slicer_arrays(target.flat.shape[1], self.hidden, target.flat.dtype, key=key)
        monitor = jnp.full((3,), jnp.inf, target.flat.dtype)
        return SelectionState(
            params,
            optax.adam(self.learning_rate).init(params),
            slicer,
            optax.adam(self.slicer_rate).init(slicer),
            params,
            monitor,
            jnp.asarray(True),
        )

    def step(
        self, target: PriorProblem, state: SelectionState, index: Array, *, key: PRNGKey
    ) -> tuple[SelectionState, Info]:
        key_rows, key_draws, key_along = jr.split(key, 3)
        size = min(self.batch_size, len(target.x))
        rows = jr.choice(key_rows, len(target.x), (size,), replace=False)
        x, data = target.x[rows], target.flat[rows]
        rest = self._split(target)[1]
        dim, dtype = data.shape[1], data.dtype
        along = directions(self.projections, dim, dtype, key=key_along)

        def images(params):
            prior = eqx.combine(params, rest)
            drawn = target.images(prior, x, self.draws, key=key_draws)
            return drawn.reshape(-1, dim).astype(dtype)

        slicer, slicer_rule = state.slicer, state.slicer_rule
        concentration = jnp.zeros((), dtype)
        if self.metric != "sliced":
            blank = blank_slicer(dim, self.hidden)
            fixed = images(state.params)
            power_along = lambda t: powers(fixed, data, t)
            slicer, slicer_rule = improve(
                power_along,
                slicer,
                blank,
                slicer_rule,
                lambda i: along,
                rule=optax.adam(self.slicer_rate),
                steps=self.inner_steps,
                penalty=self.penalty if self.metric == "distributional" else 0.0,
                p=2.0,
            )
            made = eqx.combine(slicer, blank)
            concentration = objective(power_along, made, along, 2.0).concentration
            along = made(along)

        def loss(params):
            return root(powers(images(params), data, along).mean(), 2.0)

        distance, slope = jax.value_and_grad(loss)(state.params)
        update, rule = optax.adam(self.learning_rate).update(slope, state.rule)
        moved = optax.apply_updates(state.params, update)
        moves = index >= self.warmup
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, old)
        params, rule = keep(moved, state.params), keep(rule, state.rule)
        looks = (index % self.look_every == 0) | (index == self.steps - 1)
        see = lambda _: self._look(target, eqx.combine(params, rest))
        seen = jax.lax.cond(looks, see, lambda _: state.monitor[1:], None)
        better = looks & (seen[0] < state.monitor[0])
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, state.best)
        monitor = jnp.concatenate([jnp.minimum(state.monitor[:1], seen[:1]), seen])
        finite = state.finite & jnp.isfinite(distance)
        new = SelectionState(params, rule, slicer, slicer_rule, best, monitor, finite)
        stats = {"distance": distance, "concentration": concentration}
        return new, Info(None, stats | {"sw2": seen[0], "max_sw2": seen[1]})

    def _look(self, target: PriorProblem, prior: AbstractPrior) -> Array:
        """Return SW2 and max-SW2 of the prior, with random numbers that are always the same."""
        key_draws, key_along = jr.split(jr.key(0))
        data, x = target.flat[:MONITORED], target.x[: MONITORED // 4]
        drawn = target.images(prior, x, NETWORKS, key=key_draws)
        made = drawn.reshape(-1, data.shape[1]).astype(data.dtype)
        along = directions(MONITORED, data.shape[1], data.dtype, key=key_along)
        each = powers(made, data, along)
        top, _ = ascend(lambda t: powers(made, data, t), along, 2, 20)
        return jnp.sqrt(jnp.stack([each.mean(), jnp.maximum(top, each.max())]))

    def done(self, state: SelectionState) -> Array:
        return never()

    def result(self, state: SelectionState) -> RESULTS:
        return RESULTS.where(state.finite, RESULTS.successful, RESULTS.nonfinite_state)
