"""Particles that a kernel moves: Stein variational gradient descent, and coin sampling."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._batches import in_batches
from ...core._begin import is_told
from ...core._cache import remembering
from ...core._convert import one_of, whole
from ...core._data import BATCHING, Epoch, Minibatches, log_density_estimate, minibatches
from ...core._dtype import relaxed
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view, position_shapes
from ...core._require import check_positions
from ...core._results import RESULTS
from ...core._rows import check_rows
from ...core._start import find_start
from ...core._target import AbstractTarget
from ...core._tree import unravel
from ...core._types import PRNGKey
from ...diagnostics._data import Draws
from ...diagnostics._records import AbstractRecord, Judged
from ...diagnostics._report import Finding
from ._pathfinder import Pathfinder, PathfinderState

_PATHFINDER = Pathfinder()  # around whose Gaussians particles begin
NEGLIGIBLE = 10.0  # nats by which the bound of one is below the best, so that it is left out
SCALING = 100  # draws of one of them by which its width is known
MAX_FAILURES = 20  # updates in a row that are not finite, before it gives up
KERNELS = ("rbf", "linear")
GAP = 2.0  # standard deviations within groups of particles; between modes far apart
NARROW = 0.8  # of the target's variance
ON_ONE_SIDE = 0.5  # `drift`; of a hundred draws from the target it is a tenth
Particles = Float[Array, "particle dim"]


class SteinParticles(AbstractRecord):
    """What moved particles, and how wide they are.

    Attributes:
        shift: Root mean square of the particles' direction by step, `(step,)`.
        inflation: `E[(E x - x) d log p / dx]` over particles, by coordinate: 1 for draws from
            `p`, of a normal `p` their variance over that of `p`.
        drift: Size of the mean of `d log p / dx` over its standard deviation, by coordinate:
            0 for draws from `p`, large where all particles are on one side of it.
        outside: Particles where the density, or its gradient, is not finite.
    """

    shift: Any
    inflation: Any
    drift: Any = None
    outside: int = 0

    def judge(self, draws: Draws, method: str) -> Judged:
        quarter = max(len(self.shift) // 4, 1)
        before, after = self.shift[-2 * quarter : -quarter], self.shift[-quarter:]
        fall = float(np.mean(after) / np.mean(before)) if len(before) else 1.0
        narrow, wide = float(np.min(self.inflation)), float(np.max(self.inflation))
        numbers = {"shift": float(np.mean(after)), "inflation": narrow}
        moving = f"The particles' direction is {fall:.3g} of what it was a quarter before"
        settled = Finding("shift", "ok", f"{moving}: they have settled", fall)
        if fall < 0.5:
            settled = Finding(
                "shift",
                "warning",
                f"{moving}: they are still settling",
                fall,
                remedy="Take more `steps`.",
            )
        if self.outside:
            return [_outside(self.outside, draws), settled], numbers
        if self._away():
            return [_on_one_side(self.drift, draws), settled, *_apart(draws)], numbers
        message = "By the gradient at the particles, variances are {:.3g} of the target's"
        spread = Finding("spread", "ok", message.format(narrow), narrow)
        if narrow < NARROW:
            remedy = "Take more `particles`, or `kernel='linear'` for exact Gaussian moments."
            spread = Finding(
                "spread", "warning", message.format(narrow), narrow, NARROW, remedy=remedy
            )
        elif not wide <= 1 / NARROW:
            remedy = "The particles have not come together yet: take more `steps`."
            spread = Finding(
                "spread", "warning", message.format(wide), wide, 1 / NARROW, remedy=remedy
            )
        return [settled, spread, *_apart(draws)], numbers

    def trouble(self) -> list[str]:
        lost = self.outside or self._away()
        return ["particles away from where the posterior is"] if lost else []

    def _away(self) -> bool:
        return self.drift is not None and not np.max(self.drift) <= ON_ONE_SIDE


def _outside(count: int, draws: Draws) -> Finding:
    """Say that particles are where nothing can be computed."""
    message = (
        f"The particles are not where the posterior is: {count} of {draws.num_draws} are where "
        "the density or its gradient is not finite"
    )
    remedy = (
        "Where the density ends, declare the support of the latent (as `dist.HalfNormal` "
        "does), or take NUTS, which stays inside; where it overflows, use float64."
    )
    return Finding("outside", "error", message, float(count), 0.0, remedy=remedy)


def _is_finite(values: Array, gradients: Array) -> Array:
    """Return of each particle whether its density and gradient are known."""
    return jnp.isfinite(values) & jnp.all(jnp.isfinite(gradients), axis=1)


def _on_one_side(drift: np.ndarray, draws: Draws) -> Finding:
    """Say that particles are where no draws would be: the density rises one way for all."""
    worst, names = int(np.argmax(np.nan_to_num(drift, nan=np.inf))), draws.coordinates()
    message = (
        f"The particles are not where the posterior is: along {names[worst]} the density rises "
        f"the same way for all of them (mean of the gradient {drift[worst]:.3g} times its "
        "standard deviation)"
    )
    remedy = (
        "Start near a mode (`start=` of `infer`, with a posterior by `Pathfinder`), bring "
        "latents to size 1 by their units, or take more `steps`."
    )
    return Finding(
        "drift",
        "error",
        message,
        float(drift[worst]),
        ON_ONE_SIDE,
        remedy=remedy,
        where=(names[worst],),
    )


def _apart(draws: Draws) -> list[Finding]:
    """Find groups of particles with a gap between them that none crosses.

    Of a normal, no gap within the middle 80% of a hundred particles comes near to `GAP`.
    """
    widest, where = 0.0, ""
    for name, shape, values in draws.elements():
        x = np.sort(values.reshape(-1, values.shape[2]).astype(np.float64), axis=0)
        number, edge = len(x), max(len(x) // 10, 2)
        if number <= 2 * edge or not x.shape[1]:
            continue
        gaps = np.diff(x, axis=0)[edge - 1 : number - edge]
        size, every = np.argmax(gaps, axis=0) + edge, np.arange(x.shape[1])  # of the lower
        x = x - x.mean(axis=0)
        sums, squares = np.cumsum(x, axis=0), np.cumsum(x**2, axis=0)
        low = sums[size - 1, every]
        means = low**2 / size + (sums[-1] - low) ** 2 / (number - size)
        within = np.sqrt(np.maximum(squares[-1] - means, 0.0) / number)
        gap = np.max(gaps, axis=0) / np.where(within > 0, within, np.inf)
        if gap.max() > widest:
            widest, where = float(gap.max()), draws.name(name, shape, int(gap.argmax()))
    if widest < GAP:
        return []
    message = (
        f"Particles are in groups apart: {where} has a gap of {widest:.2g} standard deviations "
        "within them. None crosses it, so that how many are in each goes by the starts, not by "
        "the posterior"
    )
    remedy = "Use an engine that weighs modes, as `TemperedSMC` does."
    return [Finding("apart", "warning", message, widest, GAP, remedy=remedy, where=(where,))]


class SVGDState(eqx.Module):
    """What the next step needs.

    Attributes:
        particles: Flat positions.
        centre: Where the particles began, on average.
        units: Standard deviations of the Gaussians of which they were drawn, or their own where
            a user said where to begin; the kernel and the optimiser know particles as
            `(position - centre) / units`.
        optimizer: State of the optimiser.
        epoch: Running epoch of the minibatches.
        started: Whether all particles had a finite start.
        failures: Updates that were not finite, in a row.
    """

    particles: Particles
    centre: Float[Array, " dim"]
    units: Float[Array, " dim"]
    optimizer: PyTree
    epoch: Epoch
    started: Bool[Array, ""]
    failures: Int[Array, ""]


class SVGD(AbstractEngine):
    """Particles that follow the gradient of the log density, and keep apart by a kernel.

    Particles begin as draws of `Pathfinder`'s Gaussians, or where `start=` of `infer` says,
    and move in units of the standard deviations there. With `update="coin"` each
    coordinate bets on its own direction: there is no learning rate. Particles are few and
    dependent: they are no independent draws, and with the `"rbf"` kernel too narrow where there
    are fewer than some hundreds; `diagnose` measures by how much.

    Attributes:
        particles: How many.
        steps: Updates.
        update: `"coin"`, or an optax transform, such as `optax.adam(0.05)`.
        kernel: `"rbf"`, whose width is by the median distance, or `"linear"`, `x y + 1`, with
            which mean and covariance of a Gaussian target are exact.
        batch_size: Rows of data per update; None for all.
        batching: `"reshuffle"` (without replacement) or `"iid"`.

    References:
        Liu, Wang (2016), Stein variational gradient descent, arXiv:1608.04471.
        Sharrock, Nemeth (2023), Coin sampling: gradient-based Bayesian inference without
        learning rates, arXiv:2301.11294 [update: coin].
        Liu, Wang (2018), Stein variational gradient descent as moment matching,
        arXiv:1810.11693 [kernel: linear].
    """

    particles: int = eqx.field(default=100, converter=whole("particles", least=2))
    steps: int = eqx.field(default=1_000, converter=whole("steps", least=1))
    update: Any = "coin"
    kernel: str = eqx.field(default="rbf", converter=one_of("kernel", KERNELS))
    batch_size: int | None = eqx.field(
        default=None, converter=whole("batch_size", least=1, optional=True)
    )
    batching: str = eqx.field(default="reshuffle", converter=one_of("batching", BATCHING))

    def __check_init__(self):
        own = hasattr(self.update, "init") and hasattr(self.update, "update")
        if not own and not (isinstance(self.update, str) and self.update == "coin"):
            raise ValueError(
                f"`update` must be 'coin' or an optax transform; got {self.update!r}."
            )

    @property
    def name(self) -> str:
        return "SVGD"

    @property
    def schedule(self) -> Schedule:
        """All particles are one replica."""
        return Schedule(1, 0, self.steps, ensemble=("particle", self.particles))

    def validate(self, target: AbstractTarget) -> None:
        check_positions(target, "SVGD")
        self._batches(target)
        check_rows(target, self.batch_size)

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> SVGDState:
        key_start, key_paths = jr.split(key)
        if is_told():
            draw = lambda member, key: flat_init(target, key=key, member=member)
        else:
            paths, deviations = _around(target, key_paths)
            of = lambda member: jax.tree.map(lambda x: x[member % _PATHFINDER.paths], paths)
            draw = lambda member, key: of(member).draw(1, key=key)[0][0]

        def attempt(member, key):
            point = draw(member, key)
            value, slope = jax.value_and_grad(self._density(target, None))(point)
            return point, jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))

        like = flat_view(target)[0]
        one = lambda pair: find_start(partial(attempt, pair[0]), like, key=pair[1])
        members = jnp.arange(self.particles, dtype=jnp.int32)
        particles, found = jax.lax.map(one, (members, jr.split(key_start, self.particles)))
        centre = jnp.mean(particles, axis=0)
        units = jnp.std(particles, axis=0) if is_told() else deviations
        units = jnp.where(units > 0, units, 1)
        with relaxed():
            optimizer = self._optimizer.init((particles - centre[None]) / units[None])
        epoch = self._batches(target).init()
        failures = jnp.zeros((), jnp.int32)
        return SVGDState(particles, centre, units, optimizer, epoch, jnp.all(found), failures)

    def step(
        self, target: AbstractTarget, state: SVGDState, index: Array, *, key: PRNGKey
    ) -> tuple[SVGDState, Info]:
        rows, epoch = self._batches(target).next(state.epoch, index, key=key)
        slope = jax.value_and_grad(self._density(target, rows))
        values, gradients = jax.vmap(slope)(state.particles)
        scaled = (state.particles - state.centre[None]) / state.units[None]
        # A particle that was thrown out of the support is drawn back to the centre.
        known = _is_finite(values, gradients)[:, None]
        slopes = jnp.where(known | ~jnp.any(known), gradients * state.units[None], -scaled)
        direction = stein_direction(scaled, slopes, self.kernel)
        with relaxed():
            moves, optimizer = self._optimizer.update(-direction, state.optimizer, scaled)
        finite = jnp.all(jnp.isfinite(direction)) & jnp.all(jnp.isfinite(moves))
        moves = moves.astype(state.particles.dtype)
        new = (state.particles + state.units[None] * moves, optimizer)
        particles, optimizer = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), new, (state.particles, state.optimizer)
        )
        failures = jnp.where(finite, 0, state.failures + 1)
        stats: dict[str, Any] = {"shift": jnp.sqrt(jnp.mean(direction**2))}
        new = eqx.tree_at(
            lambda s: (s.particles, s.optimizer, s.epoch, s.failures),
            state,
            (particles, optimizer, epoch, failures),
        )
        return new, Info(None, stats)

    def done(self, state: SVGDState) -> Bool[Array, ""]:
        return ~state.started | (state.failures >= MAX_FAILURES)

    def result(self, state: SVGDState) -> RESULTS:
        lost = state.failures >= MAX_FAILURES
        result = RESULTS.where(lost, RESULTS.nonfinite_state, RESULTS.successful)
        return RESULTS.where(state.started, result, RESULTS.nonfinite_start)

    def posterior(
        self, target: AbstractTarget, state: SVGDState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended before its first step; no particle has moved.")
        particles = jnp.asarray(state.particles[0])
        found = _at(target, particles)
        outside = int(np.sum(~np.asarray(_is_finite(*found))))
        log_density, gradients = map(np.asarray, found)
        points = np.asarray(particles, np.float64)
        inflation = np.mean((points.mean(0) - points) * gradients, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):  # all gradients may be the same
            drift = np.abs(gradients.mean(0, np.float64)) / gradients.std(0, np.float64)
        drift = np.where(np.any(gradients, axis=0), drift, 0.0)
        shift = np.asarray(trace.sampling.stats["shift"])[0]
        record = SteinParticles(shift, inflation, drift, outside)
        positions = unravel(np.asarray(particles)[None], position_shapes(target))
        stats: dict[str, Any] = {"lp": log_density[None]}
        return Sample(positions, stats, method="variational", record=record)

    @property
    def _optimizer(self) -> Any:
        if not isinstance(self.update, str):
            return self.update
        from optax.contrib import cocob

        return cocob(1.0, alpha=0.0, eps=1e-10)

    def _density(self, target: AbstractTarget, rows: Any) -> Any:
        form = flat_view(target)[1]
        return lambda x: log_density_estimate(target, form(x), rows)

    def _batches(self, target: AbstractTarget) -> Minibatches:
        return minibatches(target, self.batch_size, self.batching)


def stein_direction(particles: Particles, gradients: Particles, kernel: str) -> Particles:
    """Return each particle's direction, the steepest in the kernel's space of functions."""
    number = len(particles)
    if kernel == "linear":
        return (particles @ particles.T + 1) @ gradients / number + particles
    differences = particles[:, None] - particles[None]
    squares = jnp.sum(differences**2, axis=-1)
    pairs = jnp.sqrt(squares[jnp.tril_indices(number, -1)])
    width = jnp.median(pairs) ** 2 / jnp.log(jnp.asarray(number, particles.dtype))
    values = jnp.exp(-squares / width)
    apart = jnp.sum(values, axis=1)[:, None] * particles - values @ particles
    return (values @ gradients + (2 / width) * apart) / number


def _around(target: AbstractTarget, key: PRNGKey) -> tuple[PathfinderState, Array]:
    """Return Gaussians near modes, and the standard deviation of each coordinate there."""

    def one(key):
        path = _PATHFINDER.path(target, key=key)
        return path, jnp.std(path.draw(SCALING, key=key)[0], axis=0)

    paths, deviations = jax.lax.map(one, jr.split(key, _PATHFINDER.paths))
    # One that went nowhere, or to a mode without weight, is replaced by the best.
    finite = jnp.all(jnp.isfinite(deviations), axis=1)
    elbo = jnp.where(finite, jnp.nan_to_num(paths.elbo, nan=-jnp.inf), -jnp.inf)
    best = jnp.argmax(elbo)
    near = elbo >= elbo[best] - NEGLIGIBLE
    chosen = jnp.where(near, jnp.arange(_PATHFINDER.paths, dtype=best.dtype), best)
    paths, deviations = jax.tree.map(lambda x: x[chosen], (paths, deviations))
    return paths, jnp.median(deviations, axis=0)


@remembering
def _at(target, particles):
    """Log densities and gradients at particles."""
    form = flat_view(target)[1]
    one = jax.value_and_grad(lambda x: target.log_density(form(x)))
    return in_batches(one, particles, 100)
