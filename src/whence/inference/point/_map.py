"""The maximum of a posterior density or of a likelihood, from many starts."""

import dataclasses
from functools import partial
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...core._batches import in_batches
from ...core._cache import remembering
from ...core._convert import one_of, positive, whole
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view, position_shapes
from ...core._results import RESULTS, InferenceError
from ...core._start import find_start
from ...core._target import AbstractDescribedTarget, AbstractTarget
from ...core._tree import named_leaves, unravel
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import Optimum
from ._lbfgs import Memory, search
from ._objective import Objective, check_objective, evaluate
from ._shape import CLOSE, LARGEST, Shape, improved, promised, shape_at

MAX_IDLE = 50  # steps in a row that find nothing better: only rounding lets values go up
MAX_WALLS = 5  # line searches in a row that end where nothing is finite any more


class MAPState(eqx.Module):
    """What the next step needs. Losses are minus the objective, in nats."""

    point: Float[Array, " dim"]  # the position, flat
    loss: Scalar  # there; infinite before the first step
    gradient: Float[Array, " dim"]  # of the loss
    direction: Float[Array, " dim"]  # where the next step goes
    memory: Memory  # of the quasi-Newton method
    gain: Scalar  # what the next step promises, in nats: `gradient' H^-1 gradient / 2`
    fresh: Bool[Array, ""]  # whether the direction is that of steepest descent
    walls: Int[Array, ""]  # line searches in a row that ended where nothing is finite any more
    stuck: Bool[Array, ""]  # whether no step along any direction known was of use
    converged: Bool[Array, ""]  # whether the gain is below the tolerance
    best: Scalar  # least loss so far
    idle: Int[Array, ""]  # steps in a row that did not lower it
    count: Int[Array, ""]  # steps made


class MAP(AbstractEngine):
    """The point of highest posterior density, or of highest likelihood, from many starts.

    One point and no draws: it carries no uncertainty, and `Posterior.diagnose` says so,
    with how many starts agreed on it and whether it is a maximum at all. `stats` hold
    `objective` and `lp`. `extra` holds, best start first, `points` (all starts' ends, flat
    positions), `objectives`, `gains`, `converged` and `steps`; and, up to 500 latents,
    `curvatures`, `axes`, `slopes` and `declines` of the objective around the best one.

    - `objective="posterior"`: the density of the values that the model speaks of, without
      the Jacobian of the way to unconstrained space. It depends on the parameterisation: the
      highest density of a standard deviation is elsewhere than that of its logarithm. It
      does not depend on `noncentered`, nor on bijections.
    - `objective="likelihood"`: the likelihood alone, priors ignored but for their supports.
      It depends on no parameterisation. Where the latents are the hyper-parameters of a
      model whose likelihood is an evidence, this is type-II maximum likelihood.
    - `objective="unconstrained"`: the density that engines sample, of positions. With
      `draws` a Gaussian with its curvature is drawn from: the Laplace approximation.

    Each start is a run of L-BFGS in unconstrained coordinates. It has converged when the
    next step promises less than `tolerance` and no entry of the gradient is above its square
    root, or when it promises less than rounding, of the objective or of the point. One that
    rises until nothing is finite any more is dropped, with a message; so is one that needs more
    than `steps`. Up to 500 latents, Newton's method goes on from there where it still gains, as
    where latents have units of very different size.

    Attributes:
        starts: Independent starts; the best one counts.
        steps: Most steps of one start.
        objective: `"posterior"`, `"likelihood"` or `"unconstrained"`.
        tolerance: In nats.
        memory: Steps that the quasi-Newton method remembers.
        draws: Draws from the Laplace approximation; 0 for the point alone.

    References:
        Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization,
        doi:10.1007/BF01589116.
        Lewis, Overton (2013), Nonsmooth optimization via quasi-Newton methods,
        doi:10.1007/s10107-012-0514-2.
    """

    starts: int = eqx.field(default=8, converter=whole("starts", least=1))
    steps: int = eqx.field(default=5_000, converter=whole("steps", least=1))
    objective: str = eqx.field(
        default="posterior", converter=one_of("objective", get_args(Objective))
    )
    tolerance: float = eqx.field(default=1e-12, converter=positive("tolerance"))
    memory: int = eqx.field(default=10, converter=whole("memory", least=1))
    draws: int = eqx.field(default=0, converter=whole("draws", least=0))

    def __check_init__(self):
        if self.draws and self.objective != "unconstrained":
            raise ValueError(
                "`draws` are of a Gaussian in unconstrained space, around the maximum there: "
                f"they need `objective='unconstrained'`; got {self.objective!r}."
            )

    @property
    def name(self) -> str:
        return "MAP"

    @property
    def schedule(self) -> Schedule:
        """One replica for each start, one step for each of L-BFGS."""
        return Schedule(self.starts, 0, self.steps)

    def validate(self, target: AbstractTarget) -> None:
        check_objective(self.objective, target)
        size = flat_view(target)[0].size
        if size == 0:
            raise ValueError("`target` must have at least one latent variable; it has none.")
        if self.draws and size > LARGEST:
            raise ValueError(
                f"`draws` need the Hessian, which is made for up to {LARGEST} latents; got "
                f"{size}."
            )

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> MAPState:
        def attempt(key):
            point = flat_init(target, key=key)
            return point, jnp.isfinite(self._loss(target, point))

        return self.begin(find_start(attempt, flat_view(target)[0], key=key)[0])

    def begin(self, point: Float[Array, " dim"]) -> MAPState:
        """Return the state of a search that begins at a point. Traced."""
        zero, no = jnp.zeros_like(point), jnp.asarray(False)
        count, infinite = jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, point.dtype)
        memory = Memory.empty(self.memory, point)
        return MAPState(
            point,
            infinite,
            zero,
            zero,
            memory,
            infinite,
            ~no,
            count,
            no,
            no,
            infinite,
            count,
            count,
        )

    def step(
        self, target: AbstractTarget, state: MAPState, index: Array, *, key: PRNGKey
    ) -> tuple[MAPState, Info]:
        function = jax.value_and_grad(partial(self._loss, target))
        found = search(function, state.point, state.loss, state.gradient, state.direction)
        point = state.point + found.length * state.direction
        first, moved = state.count == 0, found.length > 0
        memory = state.memory.with_step(point - state.point, found.gradient - state.gradient)
        # After a line search in vain the memory is no good: try without it, then give up.
        empty = Memory.empty(self.memory, point)
        direction = memory.direction(found.gradient)
        gain = -(direction @ found.gradient) / 2
        fresh = first | ~moved | ~(gain > 0)
        memory = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), empty, memory)
        direction = jnp.where(fresh, empty.direction(found.gradient), direction)
        gain = jnp.where(fresh, -(direction @ found.gradient) / 2, gain)
        stuck = ~moved & (state.fresh | first)
        largest = jnp.max(jnp.abs(found.gradient))
        converged = (gain <= self.tolerance) & (largest <= self.tolerance**0.5)
        # At a sharp maximum the gradient's own rounding is above the tolerance.
        rounding = jnp.finfo(point.dtype).eps * (1 + jnp.abs(found.value))
        converged |= gain <= rounding / 10
        # Steepest descent promises nothing: its length has not the unit of the point.
        converged &= (memory.inverses[-1] > 0) | (largest == 0)
        idle = jnp.where(found.value < state.best, 0, state.idle + 1).astype(jnp.int32)
        # Sums of large terms are rounded more coarsely than their value says.
        stuck |= idle >= MAX_IDLE
        converged |= stuck & moved & (gain <= CLOSE)
        new = MAPState(
            point,
            found.value,
            found.gradient,
            direction,
            memory,
            gain,
            fresh,
            jnp.where(found.at_wall, state.walls + 1, 0).astype(jnp.int32),
            stuck,
            (moved & converged) | (stuck & ~first & (state.gain <= 1e3 * rounding)),
            jnp.minimum(state.best, found.value),
            idle,
            state.count + 1,
        )
        stats: dict[str, Any] = {"objective": -new.loss, "gain": new.gain}
        return new, Info(None, stats | {"evaluations": found.evaluations})

    def done(self, state: MAPState) -> Bool[Array, ""]:
        """Whether nothing is left to gain, or no way to gain it."""
        return state.converged | state.stuck | (state.walls >= MAX_WALLS)

    def result(self, state: MAPState) -> RESULTS:
        ended = self.done(state) | (state.count < self.steps)
        where = RESULTS.where
        result = where(ended, RESULTS.successful, RESULTS.still_rising)
        result = where(state.walls >= MAX_WALLS, RESULTS.unbounded, result)
        hopeless = state.stuck & ~jnp.isfinite(state.loss)
        return where(hopeless, RESULTS.nonfinite_start, result)

    def explain(self, target: AbstractTarget, state: MAPState) -> str:
        """Say which latent had gone farthest where no start found a maximum."""
        losses = np.nan_to_num(np.asarray(state.loss), nan=np.inf)
        position = flat_view(target)[1](jnp.asarray(state.point[int(np.argmin(losses))]))
        size = {n: np.max(np.abs(x), initial=0.0) for n, x in named_leaves(position).items()}
        farthest = max(size, key=lambda name: size[name])
        value = named_leaves(position)[farthest]
        if isinstance(target, AbstractDescribedTarget):
            value = target.variables(target.constrain(position)).get(farthest, value)
        shown = np.array2string(np.asarray(value), precision=3, threshold=8)
        return f"The best start had taken `{farthest}` to {shown}."

    def posterior(
        self, target: AbstractTarget, state: MAPState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended before its first step; there is no point.")
        losses, points = np.asarray(state.loss), np.asarray(state.point)
        order, shape = np.argsort(losses, kind="stable"), None
        if points.shape[1] <= LARGEST:
            shape = _shape(target, self.objective, jnp.asarray(points[order[0]]))
            at_rest = np.asarray(state.count)[order[0]] < self.steps
            if at_rest and promised(shape) > CLOSE:
                points, losses = jax.tree.map(
                    np.asarray, _improved(target, self.objective, jnp.asarray(points))
                )
                order = np.argsort(losses, kind="stable")
                shape = _shape(target, self.objective, jnp.asarray(points[order[0]]))
        point = jnp.asarray(points[order[0]])
        found = Optimum(
            objectives=-losses[order],
            converged=np.asarray(state.converged)[order],
            points=points[order],
            gains=np.asarray(state.gain)[order],
            steps=np.asarray(state.count)[order],
            **{} if shape is None else {n: np.asarray(v) for n, v in vars(shape).items()},
        )
        if self.draws:
            assert shape is not None
            return self._laplace(target, point, shape, found, key)
        log_density = _log_density(target, point)
        stats = {
            "lp": np.asarray(log_density)[None, None],
            "objective": found.objectives[:1][None],
        }
        positions = unravel(np.asarray(point)[None, None], position_shapes(target))
        return Sample(positions, stats, method="point", record=found)

    def _laplace(self, target, point, shape, found: Optimum, key) -> Sample:
        if not shape.curvatures[0] > 0:
            raise InferenceError(
                "The Hessian at the best point is not negative definite (its largest "
                f"eigenvalue is {-float(shape.curvatures[0]):.3g}): there is no Gaussian "
                "with its curvature. Use `draws=0` and read `diagnose`, or another engine."
            )
        drawn = _draw_laplace(target, point, shape, self.draws, key)
        positions, log_density, log_weights = jax.tree.map(lambda x: np.asarray(x)[None], drawn)
        found = dataclasses.replace(found, log_weights_is=log_weights)
        stats = {"lp": log_density}
        return Sample(positions, stats, method="variational", record=found)

    def _loss(self, target: AbstractTarget, point: Float[Array, " dim"]) -> Scalar:
        return -evaluate(self.objective, target, flat_view(target)[1](point))


@remembering
def _log_density(target, point):
    return target.log_density(flat_view(target)[1](point))


@remembering
def _shape(target, objective: str, point) -> Shape:
    form = flat_view(target)[1]
    return shape_at(lambda x: evaluate(objective, target, form(x)), point)


@remembering
def _improved(target, objective: str, points):
    form = flat_view(target)[1]
    function = lambda x: evaluate(objective, target, form(x))

    def one(point):
        point = improved(function, point)
        return point, -function(point)

    return jax.lax.map(one, points)


@remembering
def _draw_laplace(target, point, shape: Shape, num_draws: int, key):
    """Positions, log densities and log importance ratios of the Gaussian approximation."""
    form = flat_view(target)[1]
    deviations = 1 / jnp.sqrt(shape.curvatures)
    log_volume = jnp.linalg.slogdet(shape.axes)[1] + jnp.sum(jnp.log(deviations))

    def one(noise):
        position = form(point + shape.axes @ (deviations * noise))
        log_density = target.log_density(position)
        normal = jax.scipy.stats.norm.logpdf(noise).sum() - log_volume
        return position, log_density, log_density - normal

    noise = jr.normal(key, (num_draws, point.size), point.dtype)
    return in_batches(one, noise, 100)
