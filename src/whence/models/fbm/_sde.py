"""Stochastic differential equations driven by fractional Brownian motion."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ...core._convert import flag, whole
from ...core._require import require_key
from ...core._types import PRNGKey
from ...language._latent import UNDRAWN, Latent
from ...language._local import with_rows
from ...language._model import Model, sites
from ..linear_gaussian import _kalman as kalman
from ._bank import Bank
from ._given import draw_given, given_rest, unconditional
from ._linear import initial, seen_through, system, why_not_linear
from ._noise import FractionalNoise
from ._path import (
    PATH,
    Plan,
    Steps,
    between,
    datum_term,
    draw_paths,
    emitted,
    path_of,
    start_size,
    steps_on,
)
from ._review import beyond, check_shape, look, planned, review
from ._sequence import FractionalSequence
from ._times import filled, increasing


def _path_latents(model: FractionalSDE) -> dict[str, Latent]:
    """Return the latents that the path is made of, once the model knows how long it is."""
    plan = model.plan
    if plan is None or plan.form == "exact":
        return {}
    d, k = plan.components, plan.nodes
    shapes = (start_size(model, d, k),), (len(plan.grid) - 1, d, k)
    one = lambda shape: Latent(dist.Normal(), shape, (), False, "prior", plan.several)
    return dict(zip(PATH, map(one, shapes)))


class FractionalSDE(Model):
    """`dX = drift(t, X) dt + diffusion(t, X) dB`, seen with noise at some times.

    Subclass it: latents are fields, `noise` is a `FractionalNoise`, and the equation and what
    is seen of it are methods. Each component of the state has a driver B of its own. Products
    are Stratonovich's, so that the rules of calculus hold for every H.

    With a drift that is affine in the state, a constant diffusion and normal observations of
    an affine function of the state, the path is integrated out exactly (Kalman's filter over
    the state and the processes that stand for the noise): the likelihood of data y at `times`
    is one number, and any engine draws the parameters, H among them. Else the path is a
    latent: `start_noise` and `step_noise`, standard normal numbers that it is made of. NUTS
    draws them as any others, and `ControlledPath` is a family of them for `BBVI`.

    The data of `whence.condition(model, y, times)` are `(time, ...)`, where dots stand for the
    shape of what `observe` gives, or `(series, time, ...)` for several series of the same
    times; times increase and need not be even; NaN in y is a missing number. Particle filters
    run on one series.

    Attributes:
        noise: B.
        start: Time at which `initial` holds and noise of kind II begins; by default the
            first of the times.
        parallel: Whether the filter is an associative scan, for accelerators; it is slower
            on a CPU.
        exact: Whether to integrate the path out where that can be done.
        steps: No step of a path is longer than the span of the times over `steps`.

    References:
        Daems, Opper, Crevecoeur and Birdal (2024), Variational inference for SDEs driven by
        fractional noise, arXiv:2310.12975.
        Kalman (1960), doi:10.1115/1.3662552.
    """

    noise: eqx.AbstractVar[FractionalNoise]
    start: float | None = eqx.field(default=None, static=True, kw_only=True)
    parallel: bool = eqx.field(default=False, static=True, kw_only=True)
    exact: bool = eqx.field(default=True, static=True, kw_only=True, converter=flag("exact"))
    steps: int = eqx.field(
        default=100, static=True, kw_only=True, converter=whole("steps", least=1)
    )
    plan: Plan | None = eqx.field(default=None, kw_only=True)  # known once conditioned
    hidden: dict[str, Any] = eqx.field(
        default_factory=dict, kw_only=True, metadata={"latents": _path_latents}
    )

    @abc.abstractmethod
    def drift(self, t: Any, x: Any) -> Any:
        """Return the rate of change of a state of shape `(component,)`, of the same shape."""

    @abc.abstractmethod
    def diffusion(self, t: Any, x: Any) -> Any:
        """Return the scale of the noise: one number, or one for each component."""

    @abc.abstractmethod
    def observe(self, x: Any) -> dist.Distribution:
        """Return the law of what is seen of a state; for an exact likelihood a `Normal`."""

    def hurst(self, t: Any) -> Any:
        """Return H at a time: write it where H varies, with noise of kind II.

        One number, or one for each component, between the ends of the tables: the noise is
        the moving kernel `sum_k w_k(H(t)) Y_k(t)`, whose change with H counts too. By default
        that of `noise`.
        """
        del t
        return self.noise.hurst

    @property
    def varies(self) -> bool:
        """Whether H is a function of time."""
        return type(self).hurst is not FractionalSDE.hurst

    def initial(self) -> dist.Distribution:
        """Return the law of the state at the start: numpyro's `Normal`, `(component,)`.

        By default one component, standard normal.
        """
        return dist.Normal(jnp.zeros(1), 1.0)

    # -- data -----------------------------------------------------------------------

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Leave out what is missing; refuse times and data that cannot be."""
        name = type(self).__name__
        if len(inputs) not in (1, 2):
            raise ValueError(
                f"{name} needs the times of `y`: `whence.condition(model, y, times)`; got "
                f"{len(inputs)} inputs."
            )
        if isinstance(y, Mapping):
            raise ValueError(f"`y` of {name} must be one array; got a dict of {sorted(y)}.")
        if any(isinstance(value, Tracer) for value in (y, *inputs)):
            return y, inputs
        times = increasing("times", inputs[0], self.start)
        shape, given = look(self)[1], np.shape(y)
        several = given[1:2] == times.shape and given[2:] == shape
        y, seen = filled(y, given[:2] if several else times.shape, *inputs[1:])
        if several:
            times = np.broadcast_to(times, given[:2])
        else:  # times of which nothing was observed are left out
            rows = seen.reshape(len(y), -1).any(axis=1)
            y, times, seen = y[rows], times[rows], seen[rows]
        if self.noise.horizon is None and np.max(times) == self._first(_one(times)):
            raise ValueError(
                "One time has no horizon: give `FractionalNoise(..., horizon=T)`, or more."
            )
        return y, (times,) if seen.all() else (times, seen)

    def for_data(self, y: Any, times: Any, observed: Any = None) -> FractionalSDE:
        """Return the model with a path as long as the times, if it is not integrated out."""
        one, noise = _one(times), self.noise
        if not isinstance(one, Tracer):
            noise = noise.for_times(np.asarray(one, float), float(self._first(one)))
        model = dataclasses.replace(self, noise=noise)
        plan = planned(model, y, times, observed)
        if plan is None or plan.form == "exact":
            return dataclasses.replace(model, plan=plan, hidden={})
        model = dataclasses.replace(model, plan=plan, hidden=dict.fromkeys(PATH, UNDRAWN))
        return with_rows(model, len(y)) if plan.several else model

    def review(self, y: Any, *inputs: Any) -> tuple[str, ...]:
        """Refuse a bank that cannot resolve the times; say where it is poor."""
        return review(self, _one(inputs[0]))

    def sequence(self, target: Any) -> FractionalSequence | None:
        """Return what engines with particles see: one series, with its state and bank."""
        if self.plan is None or self.plan.several:
            return None
        plain = dataclasses.replace(self, hidden={}, plan=None)
        parameters = dataclasses.replace(target, model=plain, sites=sites(plain))
        seen = target.inputs[1] if len(target.inputs) > 1 else None
        return FractionalSequence(parameters, self.plan, target.y, seen)

    # -- closed forms ---------------------------------------------------------------

    def _first(self, times: Any) -> Any:
        return times[0] if self.start is None else self.start

    def _origin(self, times: Array) -> tuple[Array, Bank]:
        """Return the start, and the bank for these times."""
        first = jnp.asarray(self._first(times), times.dtype)
        return first, self.noise.bank(times[-1] - first, len(times))

    def _observed(self, y: Any, times: Array, observed: Any) -> tuple[Array, Array]:
        """Return data and whether they were observed, `(..., time, channel)`; check shapes."""
        mean, _, vector = seen_through(self, initial(self, times.dtype)[0])
        check_shape(y, self._several, (len(times), *mean.shape[: int(vector)]))
        shape = (*jnp.shape(y)[: 1 + self._several], -1)
        y = jnp.asarray(y).astype(times.dtype).reshape(shape)
        if observed is None:
            return y, jnp.ones(y.shape, bool)
        return y, jnp.asarray(observed, bool).reshape(shape)

    def _linear(self, y: Any, times: Any, observed: Any) -> tuple[kalman.System, Array, Array]:
        """Return the system at the times, data there, and whether they were observed."""
        times = _floating(_one(times))
        start, bank = self._origin(times)
        y, seen = self._observed(y, times, observed)
        return system(self, bank, times, start), y, seen

    def _each(self, function: Any, *arguments: Any) -> Any:
        """Return a function of a series, or that of each of several series."""
        return (jax.vmap(function) if self._several else function)(*arguments)

    def log_likelihood(self, y: Any, times: Any, observed: Any = None) -> Any:
        """Return the log density of the data, in nats.

        Args:
            y: `(time, ...)`, or `(series, time, ...)`.
            times: `(time,)`, increasing; with several series the same for each.
            observed: Which numbers of `y` were observed, of its shape; by default all.

        Returns:
            With the path integrated out one number (of each series); else that of the data of
            each time given the state there (with several series, of each series).

        Raises:
            ValueError: If shapes do not fit.
        """
        if self._has_path:
            states = self.states
            if states.shape[:-1] != jnp.shape(y)[: states.ndim - 1]:
                raise ValueError(
                    f"`y` must be of all {states.shape[-2]} times of the path; got shape "
                    f"{jnp.shape(y)}: rows of one series are no batch of data."
                )
            each = jax.vmap(lambda x, y, seen: datum_term(self, x, y, seen))
            terms = self._each(each, states, y, observed)
            return terms if terms.ndim == 1 else jnp.sum(terms, axis=1)
        linear, y, seen = self._linear(y, times, observed)
        run = kalman.log_evidence_in_parallel if self.parallel else kalman.log_evidence
        return self._each(lambda y, seen: run(linear, y, seen), y, seen)

    def smooth(self, y: Any, times: Any, at: Any, observed: Any = None) -> dist.Normal:
        """Return the law of the state at any times given the data, each by itself.

        Args:
            y: As for `log_likelihood`.
            times: As for `log_likelihood`.
            at: `(point,)`, from the start to twice the horizon after it, in any order.
            observed: As for `log_likelihood`.

        Returns:
            A distribution of batch shape `(point, component)`, a series first if several.
        """
        linear, y, seen, back = self._joined(y, times, at, observed)
        d = len(initial(self, y.dtype)[0])

        def one(y, seen):
            found = kalman.smooth(linear, y, seen, d)
            variance = jnp.diagonal(found.covariance, axis1=1, axis2=2)[back]
            return found.mean[back], jnp.sqrt(jnp.maximum(variance, 0.0))

        return dist.Normal(*self._each(one, y, seen))

    def _joined(self, y, times, at, observed=None):
        """Return the system at all times, old and new, data there, and where the new are."""
        times = _floating(_one(times))
        at = jnp.asarray(at).astype(times.dtype)
        start, bank = self._origin(times)
        y, seen = self._observed(y, times, observed)
        wrong = beyond(self, times, at)
        every = jnp.concatenate([times, at])
        order = jnp.argsort(every, stable=True)
        pad = jnp.zeros((*y.shape[:-2], len(at), y.shape[-1]), y.dtype)
        y = jnp.concatenate([y, pad], axis=-2)[..., order, :]
        seen = jnp.concatenate([seen, jnp.zeros(pad.shape, bool)], axis=-2)[..., order, :]
        linear = system(self, bank, every[order], start)
        # Beyond the law that was matched there are no draws: NaN, not a wrong number.
        offset = jnp.where(wrong, jnp.nan, linear.offset)
        linear = dataclasses.replace(linear, offset=offset)
        return linear, y, seen, jnp.argsort(order)[len(times) :]

    def predict_given(self, y: Any, inputs: tuple, new_inputs: tuple, *, key: PRNGKey) -> Any:
        at = jnp.asarray(_one(new_inputs[0]))
        keys = jr.split(key, len(y)) if self._several else key
        if self._has_path:
            return self._given_path(at, new_inputs is inputs, keys)
        linear, y, seen, back = self._joined(y, inputs[0], at, *inputs[1:])
        one = lambda y, seen, key: draw_given(linear, y, seen, jr.key_data(key))[back]
        drawn = self._each(one, y, seen, keys)
        vector = seen_through(self, initial(self, y.dtype)[0])[2]
        return drawn if vector else drawn[..., 0]

    def check_inputs(self, inputs: tuple, new_inputs: tuple) -> None:
        """Refuse new times beyond the law of the noise."""
        times, at = _floating(_one(inputs[0])), np.asarray(new_inputs[0])
        if at.ndim != 1 or not np.all(np.isfinite(at)):
            raise ValueError(f"New times must be a vector of finite numbers; got {at!r}.")
        beyond(self, times, jnp.asarray(at).astype(times.dtype))

    def log_density_given_rest(self, y: Any, times: Any, observed: Any = None) -> Any:
        """Return the log density of each number given all others, in nats; 0 if not observed.

        None if the path is a latent.
        """
        if self._has_path:
            return None
        linear, data, seen = self._linear(y, times, observed)
        found = self._each(lambda y, seen: given_rest(linear, y, seen), data, seen)
        return found.reshape(jnp.shape(y))

    # -- paths ------------------------------------------------------------------------

    @property
    def _has_path(self) -> bool:
        return self.plan is not None and self.plan.form == "path"

    @property
    def _several(self) -> bool:
        return self.plan is not None and self.plan.several

    def basis(self) -> tuple[Bank, Steps]:
        """Return the bank of a conditioned model, and the steps along its grid."""
        assert self.plan is not None
        grid = self.plan.grid
        bank = self.noise.bank(grid[-1] - grid[0], len(self.plan.at))
        return bank, steps_on(self, bank, grid)

    def path(self) -> tuple[Array, Array]:
        """Return states `(point, component)` and bank `(point, driver, node)` on the grid.

        Of a draw from the posterior of a path; with several series their axis is first.

        Raises:
            ValueError: If the path is integrated out, or the model was not conditioned.
        """
        if not self._has_path:
            raise ValueError(
                f"This {type(self).__name__} has no path: it is integrated out (`smooth` gives "
                "its law), or the model was not conditioned on data yet."
            )
        bank, steps = self.basis()
        one = lambda first, white: path_of(self, bank, steps, first, white)
        return self._each(one, *(self.hidden[name] for name in PATH))

    @property
    def states(self) -> Array:
        """States at the times of the data, `(time, component)`; a series first if several."""
        x, _ = self.path()
        assert self.plan is not None
        return x[..., self.plan.at, :]

    def _given_path(self, at: Array, old: bool, keys: Any) -> Array:
        """Return data drawn given this path, at the old times or at new ones."""
        assert self.plan is not None
        if old:
            return self._each(lambda x, k: emitted(self, x, k), self.states, keys)
        grid, (bank, _) = self.plan.grid, self.basis()
        at = at.astype(grid.dtype)
        wrong = beyond(self, grid, at)

        def one(first, rest, white, key):
            key_path, key_data = jr.split(key)
            x = between(self, bank, grid, (first, rest), white, at, key_path)
            return emitted(self, jnp.where(wrong, jnp.nan, x), key_data)

        return self._each(one, *self.path(), self.hidden["step_noise"], keys)

    def simulate(self, times: Any, *, key: PRNGKey, paths: Any = 1, steps: Any = 200) -> Array:
        """Draw paths of the equation; it need not be linear.

        The processes that stand for the noise are stepped exactly. The equation is solved
        by Heun's rule, on `X - sigma B` where the diffusion is constant: an error that falls
        as steps get shorter. Differentiable in the parameters, H among them: the gradient is
        that of the steps taken.

        Args:
            times: Increasing; the first is the start, unless `start` says.
            key: A typed key.
            paths: Number of paths.
            steps: Even steps from the start to the last time; there are further ones to each
                of the times.

        Returns:
            States, `(path, time, component)`.

        Raises:
            ValueError: If times do not increase, or drift or diffusion have a wrong shape.
        """
        require_key(key)
        paths, steps = whole("paths", least=1)(paths), whole("steps", least=1)(steps)
        if not isinstance(times, Tracer):
            times = increasing("times", times, self.start)
            if self.noise.horizon is None and len(times) < 2 and self.start is None:
                raise ValueError("`times` must be more than the start; got one time.")
        return _simulated(self, _floating(times), key, paths, steps)

    def predict(self, times: Any, observed: Any = None, *, key: PRNGKey) -> Any:
        """Draw data from this draw, not given any.

        Args:
            times: Increasing.
            observed: Not used; for the form of the data.
            key: A typed key.
        """
        del observed
        path = self.hidden.get("start_noise")
        several = jnp.ndim(times) == 2 or (path is not None and path.ndim == 2)
        rows = jnp.shape(times)[0] if path is None else len(path)
        times = _floating(_one(times))
        fresh = lambda key: self._fresh(times, key)
        fresh, keys = (jax.vmap(fresh), jr.split(key, rows)) if several else (fresh, key)
        if not self._has_path or (self.plan and self.plan.at.shape != times.shape):
            return fresh(keys)
        assert self.plan is not None
        own = jnp.all(times == self.plan.grid[self.plan.at])
        given = lambda keys: self._given_path(times, True, keys)
        return jax.lax.cond(own, given, fresh, keys)

    def _fresh(self, times: Array, key: PRNGKey) -> Array:
        """Return data of a path drawn anew."""
        loc, _ = initial(self, times.dtype)
        start, bank = self._origin(times)
        key_path, key_noise = jr.split(key)
        if why_not_linear(self, loc):
            path = draw_paths(self, bank, times, start, key_path, 1, 200)[0]
            return emitted(self, path, key_noise)
        _, drawn = unconditional(system(self, bank, times, start), key)
        return drawn if seen_through(self, loc)[2] else drawn[:, 0]


def _one(times: Any) -> Any:
    """Return the times of one series."""
    return times[0] if jnp.ndim(times) == 2 else times


def _floating(times: Any) -> Array:
    times = jnp.asarray(times)
    return times.astype(jnp.result_type(times.dtype, jnp.result_type(float)))


@eqx.filter_jit
def _simulated(model: FractionalSDE, times: Array, key: PRNGKey, paths: int, steps: int):
    start, bank = model._origin(times)
    return draw_paths(model, bank, times, start, key, paths, steps)
