"""Pathfinder: Gaussians along the path of an optimiser, by blackjax, in our loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ...core._batches import in_batches
from ...core._cache import remembering
from ...core._convert import whole
from ...core._dtype import relaxed
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace, never
from ...core._flat import flat_view, position_shapes
from ...core._require import check_positions
from ...core._results import RESULTS
from ...core._target import AbstractTarget
from ...core._tree import unravel
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import VariationalFit
from ...diagnostics._weights import smoothed
from ..point._map import MAP, MAPState
from ..point._shape import LARGEST, own_curvatures, units_of
from ._laplace import log_mean_weight

NEAR = 10.0  # nats for each latent and ten more: where a path of Gaussians may begin
HIGHER = 1.0  # nats for each latent and ten more, by which a further climb counts
CLIMBS = 20  # at most
_CLIMB = MAP(starts=1, objective="unconstrained")


class PathfinderState(eqx.Module):
    """The Gaussian of one path.

    Attributes:
        elbo: Its evidence lower bound, in nats; minus infinity before the first step.
        fit: Its factors, as blackjax has them, in coordinates `(position - centre) / units`.
        centre: Where the path began.
        units: Of each coordinate there.
    """

    elbo: Scalar
    fit: PyTree
    centre: Float[Array, " dim"]
    units: Float[Array, " dim"]

    def draw(self, number: int, *, key: PRNGKey) -> tuple[Array, Array]:
        """Return flat positions from the Gaussian, and their log density under it. Traced."""
        from blackjax.vi.pathfinder import PathfinderState as Fit, sample

        with relaxed():
            drawn, log_prob = sample(key, Fit(*self.fit), number)
        flat = self.centre[None] + self.units[None] * jnp.asarray(drawn, self.units.dtype)
        return flat, jnp.asarray(log_prob, self.units.dtype) - jnp.sum(jnp.log(self.units))


class Pathfinder(AbstractEngine):
    """The best of the Gaussians that L-BFGS's estimates of curvature make along its path.

    The draws of several paths are pooled and weighted by smoothed importance ratios (PSIS);
    `resample` makes equally weighted ones. Those of one path have no weights. `diagnose`
    judges the ratios by k-hat. It costs some hundreds of gradients, and is a start for other
    engines more than an answer. Each path begins where L-BFGS comes within 10 nats for each
    latent of the mode, in units that its steps have found there.

    Attributes:
        paths: Paths, from independent starts.
        draws: Draws of each path.
        steps: Most steps of the optimiser on a path.
        elbo_draws: Draws by which the bound of each Gaussian on a path is estimated.

    References:
        Zhang, Carpenter, Gelman, Vehtari (2022), Pathfinder: parallel quasi-Newton
        variational inference, JMLR 23(306).
    """

    paths: int = eqx.field(default=4, converter=whole("paths", least=1))
    draws: int = eqx.field(default=1_000, converter=whole("draws", least=1))
    steps: int = eqx.field(default=100, converter=whole("steps", least=1))
    elbo_draws: int = eqx.field(default=25, converter=whole("elbo_draws", least=2))

    @property
    def name(self) -> str:
        return "Pathfinder"

    @property
    def schedule(self) -> Schedule:
        """One replica for each path, of one step."""
        return Schedule(self.paths, 0, 1)

    def validate(self, target: AbstractTarget) -> None:
        check_positions(target, "Pathfinder")

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> PathfinderState:
        like = jax.eval_shape(lambda: self.path(target, key=key))
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return eqx.tree_at(lambda s: s.elbo, empty, jnp.full_like(empty.elbo, -jnp.inf))

    def step(
        self, target: AbstractTarget, state: PathfinderState, index: Array, *, key: PRNGKey
    ) -> tuple[PathfinderState, Info]:
        new = self.path(target, key=key)
        return new, Info(None, {"elbo": new.elbo})

    def path(self, target: AbstractTarget, *, key: PRNGKey) -> PathfinderState:
        """Return the best Gaussian of one path. Traced."""
        # Imported here for the sake of the time that `import whence` takes.
        from blackjax.vi.pathfinder import approximate

        key_start, key_place, key_path = jr.split(key, 3)
        centre, units = _climbed(target, self.steps, key_start)
        form = flat_view(target)[1]
        # Of a coordinate that is at its mode already a path would not learn the width.
        place = jr.uniform(key_place, centre.shape, centre.dtype, -2, 2)
        with relaxed():
            fit, _ = approximate(
                key_path,
                lambda x: target.log_density(form(centre + units * x)),
                place,
                self.elbo_draws,
                maxiter=self.steps,
            )
        # The bound of another path must be in the same units.
        elbo = jnp.asarray(fit.elbo, centre.dtype) + jnp.sum(jnp.log(units))
        return PathfinderState(elbo, tuple(fit), centre, units)

    def done(self, state: PathfinderState) -> Bool[Array, ""]:
        return never()

    def result(self, state: PathfinderState) -> RESULTS:
        good = jnp.isfinite(state.elbo)
        return RESULTS.where(good, RESULTS.successful, RESULTS.nonfinite_start)

    def posterior(
        self, target: AbstractTarget, state: PathfinderState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        keys = jr.split(key, len(state.elbo))
        drawn = _draw(target, jax.tree.map(jnp.asarray, state), self.draws, keys)
        flat, log_density, log_weights = jax.tree.map(np.asarray, drawn)
        best = int(np.argmax(np.nan_to_num(np.asarray(state.elbo), nan=-np.inf)))
        record = VariationalFit(
            log_weights_is=log_weights,
            elbo_final=float(log_weights[best].mean()),
            elbo_final_error=float(log_weights[best].std() / np.sqrt(self.draws)),
        )
        evidence, error = log_mean_weight(log_weights)
        pooled = lambda x: x.reshape(1, -1, *x.shape[2:])
        return Sample(
            unravel(pooled(flat), position_shapes(target)),
            {"lp": pooled(log_density)},
            method="variational",
            log_weights=pooled(smoothed(log_weights)) if len(flat) > 1 else None,
            log_evidence=evidence,
            log_evidence_error=error,
            record=record,
        )


class _Rescaled(AbstractTarget):
    """A target in the coordinates `(flat position - centre) / units`."""

    target: AbstractTarget
    centre: Float[Array, " dim"]
    units: Float[Array, " dim"]

    def init(self, *, key: PRNGKey) -> Array:
        return jnp.zeros_like(self.centre)

    def log_density(self, position: Array) -> Scalar:
        form = flat_view(self.target)[1]
        return self.target.log_density(form(self.constrain(position)))

    def constrain(self, position: Array) -> Array:
        return self.centre + self.units * position


def _climbed(target: AbstractTarget, steps: int, key: PRNGKey) -> tuple[Array, Array]:
    """Return a point not far from a mode, and the unit of each coordinate there.

    In units of another size an optimiser takes the slope at a start for zero, and Gaussians as
    narrow as its first steps look good. Curvatures tell units; those of many coordinates are
    taken from the steps and the changes of the gradient. The optimiser then runs again in these
    units if there is more to climb, which what was steep had hidden, or if it is in a tail so
    heavy that the curvature is that of a valley. What it finds counts if that is much higher.
    """

    start = _CLIMB.init(target, key=key)
    latents = start.point.size + 10  # and ten more

    def far(state: MAPState):
        ended = _CLIMB.done(state) | (state.count >= steps)
        return ~ended & ((state.memory.inverses[-1] == 0) | (state.gain > NEAR * latents))

    def unfinished(carry):
        return carry[-1] & (carry[0] < CLIMBS)

    def climb(carry):
        count, point, units, best, _ = carry
        here = _Rescaled(target, point, units)
        step = lambda state: _CLIMB.step(here, state, state.count, key=key)[0]
        state = jax.lax.while_loop(far, step, _CLIMB.begin(jnp.zeros_like(point)))
        if point.size <= LARGEST:
            own = own_curvatures(here.log_density, state.point)
        else:
            moved = jnp.sum(jnp.abs(state.memory.steps), axis=0)
            changed = jnp.sum(jnp.abs(state.memory.changes), axis=0)
            own = -changed / jnp.where(moved > 0, moved, jnp.inf)
        known = units_of(own)
        new = here.constrain(state.point), units * known, state.loss
        lower = best[2] - state.loss > HIGHER * latents
        best = jax.tree.map(lambda a, b: jnp.where((count == 0) | lower, a, b), new, best)
        gain = jnp.sum((state.gradient * known) ** 2) / 2
        more = jnp.any(own > 0) | (gain > NEAR * latents)
        return count + 1, *new[:2], best, more

    begin = start.point, jnp.ones_like(start.point)
    carry = jnp.zeros((), jnp.int32), *begin, (*begin, start.loss), jnp.asarray(True)
    return jax.lax.while_loop(unfinished, climb, carry)[3][:2]


@remembering
def _draw(target, paths: PathfinderState, num_draws: int, keys):
    """Draws of each path's Gaussian, log densities and log importance ratios."""
    form = flat_view(target)[1]

    def one(pair):
        positions, log_prob = pair[0].draw(num_draws, key=pair[1])
        log_density = in_batches(lambda x: target.log_density(form(x)), positions, 100)
        return positions, log_density, log_density - log_prob

    return jax.lax.map(one, (paths, keys))
