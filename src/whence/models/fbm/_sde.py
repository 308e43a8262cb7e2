"""Stochastic differential equations driven by fractional Brownian motion."""

from __future__ import annotations

import abc
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

from ...core._convert import whole
from ...core._require import require_key
from ...core._types import PRNGKey, Scalar
from ...language._latent import UNDRAWN
from ...language._model import Model
from ..linear_gaussian import _kalman as kalman
from ._bank import Bank
from ._linear import initial, seen_through, system, why_not_linear
from ._noise import REACH, FractionalNoise
from ._paths import draw_paths
from ._times import increasing, without_missing
from ._transition import semidefinite_factor

JUDGED = (0.1, 0.3, 0.7, 0.9)  # H at which the approximation is judged before H is known
POOR = 0.1  # relative error of a variance that a fit with H unknown is warned of


class FractionalSDE(Model):
    """`dX = drift(t, X) dt + diffusion(t, X) dB`, seen with noise at some times.

    Subclass it: latents are fields, `noise` is a `FractionalNoise`, and the equation and what
    is seen of it are methods. Each component of the state has a driver B of its own. Products
    are Stratonovich's, so that the rules of calculus hold for every H.

    With a drift that is affine in the state, a constant diffusion and normal observations of
    an affine function of the state, the path is integrated out exactly (Kalman's filter over
    the state and the processes that stand for the noise): the likelihood of data y at `times`
    is one number, and any engine draws the parameters, H among them. The data of
    `whence.condition(model, y, times)` are `(time,)`, or `(time, channel)` if `observe`
    gives a vector; times increase and need not be even; NaN in y is a missing number.

    Attributes:
        noise: B.
        start: Time at which `initial` holds and noise of kind II begins; by default the
            first of the times.
        parallel: Whether the filter is an associative scan, for accelerators; it is slower
            on a CPU.

    References:
        Daems, Opper, Crevecoeur and Birdal (2024), Variational inference for SDEs driven by
        fractional noise, arXiv:2310.12975.
        Kalman (1960), doi:10.1115/1.3662552.
    """

    noise: eqx.AbstractVar[FractionalNoise]
    start: float | None = eqx.field(default=None, static=True, kw_only=True)
    parallel: bool = eqx.field(default=False, static=True, kw_only=True)

    @abc.abstractmethod
    def drift(self, t: Any, x: Any) -> Any:
        """Return the rate of change of a state of shape `(component,)`, of the same shape."""

    @abc.abstractmethod
    def diffusion(self, t: Any, x: Any) -> Any:
        """Return the scale of the noise: one number, or one for each component."""

    @abc.abstractmethod
    def observe(self, x: Any) -> dist.Distribution:
        """Return the law of what is seen of a state: numpyro's `Normal`, one or a vector."""

    def initial(self) -> dist.Distribution:
        """Return the law of the state at the start: numpyro's `Normal`, `(component,)`.

        By default one component, standard normal.
        """
        return dist.Normal(jnp.zeros(1), 1.0)

    # -- data -----------------------------------------------------------------------

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Leave out what is missing; refuse times and data that cannot be.

        Args:
            y: What `condition` got.
            *inputs: Times, and what is observed where `y` has columns.
        """
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
        y, times, observed = without_missing(y, times, *inputs[1:])
        if self.noise.horizon is None and times[-1] == self._first(times):
            raise ValueError(
                "One time has no horizon: give `FractionalNoise(..., horizon=T)`, or more."
            )
        return y, (times,) if observed is None else (times, observed)

    def review(self, y: Any, *inputs: Any) -> tuple[str, ...]:
        """Refuse a bank that cannot resolve the times; say where it is poor.

        Args:
            y: Observed data.
            *inputs: Their times.
        """
        times = np.asarray(inputs[0])
        if isinstance(inputs[0], Tracer) or len(times) < 2:
            return ()
        span, noise = float(times[-1] - self._first(times)), self.noise
        horizon = noise.horizon or span
        if span > REACH * horizon:
            raise ValueError(
                f"`horizon` of the noise must be at least half of the {span:.6g} from the "
                f"start to the last time; got {horizon:.6g}, whose double is the "
                "end of its tables. Leave it out, or make it longer."
            )
        rates, _ = noise._plan(len(times))
        brownian, gaps = horizon / max(max(rates), 1e-9), np.diff(times)
        if max(rates) > 0 and brownian > np.median(gaps):
            raise ValueError(
                f"The noise is too coarse for these times: below lag {brownian:.3g} it is "
                f"Brownian, and half of the times are closer than {np.median(gaps):.3g}. "
                f"Widen `span` of the noise to {2 * horizon / np.median(gaps):.3g} or more, "
                "or leave it out."
            )
        said = []
        close = int(np.sum(gaps < brownian))
        if close:
            said.append(
                f"{close} of {len(gaps)} gaps are shorter than {brownian:.3g}, the lag below "
                "which the approximate noise is Brownian whatever H: `FractionalNoise(..., "
                f"span=({min(r for r in rates if r):.3g}, {2 * horizon / gaps.min():.3g}))` "
                "resolves them."
            )
        latent = noise.prior is not None and noise.values["hurst"] is UNDRAWN
        values = JUDGED if latent else np.ravel(np.asarray(noise.hurst))
        for hurst in values:
            fixed = FractionalNoise(
                float(hurst),
                noise.kind,
                nodes=noise.nodes,
                span=noise.span,
                zero=noise.zero,
                weights=noise.weights,
                normalize=noise.normalize,
            )
            report = fixed.error_report(horizon, len(times))
            if report.misfit > (POOR if latent else 0.05 + 0.05 * (hurst < 0.2)):
                said.append(f"The noise is approximated poorly. {report}")
                break
        return tuple(said)

    # -- closed forms ---------------------------------------------------------------

    def _first(self, times: Any) -> Any:
        return times[0] if self.start is None else self.start

    def _origin(self, times: Array) -> tuple[Array, Bank]:
        """Return the start, and the bank for these times."""
        first = jnp.asarray(self._first(times), times.dtype)
        return first, self.noise.bank(times[-1] - first, len(times))

    def _beyond(self, times: Array, at: Array) -> Array:
        """Return whether any of these times is beyond the law of the noise; refuse if known."""
        start = jnp.asarray(self._first(times), times.dtype)
        horizon = self.noise.horizon or times[-1] - start
        slack = 4 * jnp.finfo(times.dtype).eps * jnp.max(jnp.abs(times))
        wrong = jnp.any((at < start - slack) | (at > start + REACH * horizon + slack))
        if not isinstance(wrong, Tracer) and wrong:
            raise ValueError(
                f"New times must be from the start, {float(start):.6g}, to {REACH:g} horizons "
                f"after it, {float(start + REACH * horizon):.6g}: beyond the tables of the "
                f"noise. Got {float(jnp.min(at)):.6g} to {float(jnp.max(at)):.6g}. "
                f"`FractionalNoise(..., horizon=T)` reaches as far as you say."
            )
        return wrong

    def _observed(self, y: Any, times: Array, observed: Any) -> tuple[Array, Array]:
        """Return data and whether they were observed, `(time, channel)`; check the shapes."""
        loc, _ = initial(self, times.dtype)
        mean, _, vector = seen_through(self, loc)
        want = (len(times), *mean.shape[: int(vector)])
        if jnp.shape(y) != want:
            raise ValueError(
                f"`y` must have shape {want}, one row for each of `times`"
                f"{' and one column for each number of `observe`' * vector}; got "
                f"{jnp.shape(y)}."
            )
        y = jnp.asarray(y).astype(times.dtype).reshape(len(times), -1)
        if observed is None:
            return y, jnp.ones(y.shape, bool)
        return y, jnp.asarray(observed, bool).reshape(y.shape)

    def log_likelihood(self, y: Any, times: Any, observed: Any = None) -> Scalar:
        """Return the log density of the data with the path integrated out, in nats.

        Args:
            y: `(time,)`, or `(time, channel)`.
            times: `(time,)`, increasing.
            observed: Which numbers of `y` were observed, of its shape; by default all.

        Raises:
            ValueError: If the model is not linear and Gaussian, or shapes do not fit.
        """
        times = _floating(times)
        start, bank = self._origin(times)
        y, seen = self._observed(y, times, observed)
        linear = system(self, bank, times, start)
        run = kalman.log_evidence_in_parallel if self.parallel else kalman.log_evidence
        return run(linear, y, seen)

    def smooth(self, y: Any, times: Any, at: Any, observed: Any = None) -> dist.Normal:
        """Return the law of the state at any times given the data, each by itself.

        Args:
            y: As for `log_likelihood`.
            times: As for `log_likelihood`.
            at: `(point,)`, from the start to twice the horizon after it, in any order.
            observed: As for `log_likelihood`.

        Returns:
            A distribution of batch shape `(point, component)`.
        """
        linear, y, seen, back = self._joined(y, times, at, observed)
        d = len(initial(self, y.dtype)[0])
        found = kalman.smooth(linear, y, seen, d)
        variance = jnp.diagonal(found.covariance, axis1=1, axis2=2)[back]
        return dist.Normal(found.mean[back], jnp.sqrt(jnp.maximum(variance, 0.0)))

    def _joined(self, y, times, at, observed=None):
        """Return the system at all times, old and new, data there, and where the new are."""
        times = _floating(times)
        at = jnp.asarray(at).astype(times.dtype)
        start, bank = self._origin(times)
        y, seen = self._observed(y, times, observed)
        wrong = self._beyond(times, at)
        every = jnp.concatenate([times, at])
        order = jnp.argsort(every, stable=True)
        pad = jnp.zeros((len(at), y.shape[1]), y.dtype)
        y = jnp.concatenate([y, pad])[order]
        seen = jnp.concatenate([seen, jnp.zeros(pad.shape, bool)])[order]
        linear = system(self, bank, every[order], start)
        # Beyond the law that was matched there are no draws: NaN, not a wrong number.
        linear = eqx.tree_at(
            lambda s: s.offset, linear, jnp.where(wrong, jnp.nan, linear.offset)
        )
        return linear, y, seen, jnp.argsort(order)[len(times) :]

    def predict_given(self, y: Any, inputs: tuple, new_inputs: tuple, *, key: PRNGKey) -> Any:
        at = jnp.asarray(new_inputs[0])
        linear, y, seen, back = self._joined(y, inputs[0], at, *inputs[1:])
        vector = seen_through(self, initial(self, y.dtype)[0])[2]
        drawn = _draw_given(linear, y, seen, jr.key_data(key))[back]
        return drawn if vector else drawn[:, 0]

    def check_inputs(self, inputs: tuple, new_inputs: tuple) -> None:
        """Refuse new times beyond the law of the noise.

        Args:
            inputs: Those of the data.
            new_inputs: Those of a prediction.
        """
        times, at = np.asarray(inputs[0]), np.asarray(new_inputs[0])
        if at.ndim != 1 or not np.all(np.isfinite(at)):
            raise ValueError(f"New times must be a vector of finite numbers; got {at!r}.")
        times = _floating(times)
        self._beyond(times, jnp.asarray(at).astype(times.dtype))

    def log_density_given_rest(self, y: Any, times: Any, observed: Any = None) -> Array:
        """Return the log density of each number given all others, in nats; 0 if not observed.

        Args:
            y: As for `log_likelihood`.
            times: As for `log_likelihood`.
            observed: As for `log_likelihood`.
        """
        times, shape = _floating(times), jnp.shape(y)
        start, bank = self._origin(times)
        y, seen = self._observed(y, times, observed)
        return _rest(system(self, bank, times, start), y, seen).reshape(shape)

    # -- paths ------------------------------------------------------------------------

    def simulate(self, times: Any, *, key: PRNGKey, paths: Any = 1, steps: Any = 200) -> Array:
        """Draw paths of the equation; it need not be linear.

        The processes that stand for the noise are stepped exactly. The equation is solved
        with an error that falls as steps get shorter: Runge-Kutta on `X - sigma B` where the
        diffusion is constant, else Heun's rule (Stratonovich). Differentiable in the
        parameters, H among them: the gradient is that of the steps taken.

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
        times = _floating(times)
        loc, _ = initial(self, times.dtype)
        start, bank = self._origin(times)
        key_path, key_noise = jr.split(key)
        if why_not_linear(self, loc):
            path = draw_paths(self, bank, times, start, key_path, 1, 200)[0]
            mean, scale = jax.vmap(lambda x: seen_through(self, x)[:2])(path)
            drawn = mean + scale * jr.normal(key_noise, mean.shape, times.dtype)
        else:
            _, drawn = _unconditional(system(self, bank, times, start), key)
        return drawn if seen_through(self, loc)[2] else drawn[:, 0]


def _floating(times: Any) -> Array:
    times = jnp.asarray(times)
    return times.astype(jnp.result_type(times.dtype, jnp.result_type(float)))


@eqx.filter_jit
def _simulated(model: FractionalSDE, times: Array, key: PRNGKey, paths: int, steps: int):
    start, bank = model._origin(times)
    return draw_paths(model, bank, times, start, key, paths, steps)


def _unconditional(linear: kalman.System, key: PRNGKey) -> tuple[Array, Array]:
    """Draw state and data of a linear system, `(time, state)` and `(time, channel)`."""
    key_start, key_steps, key_noise = jr.split(key, 3)
    dtype, size, count = linear.mean.dtype, len(linear.mean), len(linear.steps.shift)
    draw = lambda key, *shape: jr.normal(key, shape, dtype)
    state = linear.mean + semidefinite_factor(linear.covariance) @ draw(key_start, size)
    factors = semidefinite_factor(linear.steps.covariance)
    noise = jnp.einsum("tij,tj->ti", factors, draw(key_steps, count, size))

    def step(state, inputs):
        move, noise = inputs
        state = move.move(state) + noise
        return state, state

    _, states = jax.lax.scan(step, state, (linear.steps, noise))
    error = jnp.sqrt(linear.variance)[None] * draw(key_noise, count, len(linear.variance))
    return states, states @ linear.sight.T + linear.offset[None] + error


@jax.custom_batching.sequential_vmap
def _draw_given(linear, y, seen, key_data) -> Array:
    """Draw new data at all times given those that are seen; one draw at a time in memory.

    A path and data are drawn without any condition; the path is then moved by what the
    smoother makes of the difference between the observed data and the drawn ones.

    References:
        Durbin and Koopman (2002), doi:10.1093/biomet/89.3.603.
    """
    key, key_noise = jr.split(jr.wrap_key_data(key_data))
    states, drawn = _unconditional(linear, key)
    still = eqx.tree_at(
        lambda s: (s.mean, s.steps.shift, s.offset),
        linear,
        replace_fn=jnp.zeros_like,
    )
    size = len(linear.mean)
    moved = states + kalman.smooth(still, y - drawn, seen, size).mean
    error = jnp.sqrt(linear.variance)[None] * jr.normal(key_noise, y.shape, y.dtype)
    return moved @ linear.sight.T + linear.offset[None] + error


@jax.custom_batching.sequential_vmap
def _rest(linear, y, seen) -> Array:
    return kalman.smooth(linear, y, seen, 1).rest
