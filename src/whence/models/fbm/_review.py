"""What an equation is, and whether the approximation of its noise is good for the times."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ...core._dtype import relaxed
from ...language._latent import UNDRAWN
from ...language._model import look_at_draw, sites
from .._seen import require_whole_events
from ._linear import initial, value, why_not_linear
from ._path import Plan, grid_of
from ._report import judge
from ._tables import REACH

JUDGED = (0.1, 0.3, 0.7, 0.9)  # H at which the approximation is judged before H is known
POOR = 0.1  # relative error of a variance that a fit with H unknown is warned of
COARSE = 10.0  # noise of a step of a path over that of an observation
TRIED = 5  # draws of the prior by which that is judged


def review(model: Any, times: Any) -> tuple[str, ...]:
    """Return what is poor, in words; refuse a bank that cannot resolve the times."""
    if isinstance(times, Tracer) or len(times) < 2:
        return ()
    times = np.asarray(times)
    span, noise = float(times[-1] - model._first(times)), model.noise
    horizon = noise.horizon or span
    if span > REACH * horizon:
        raise ValueError(
            f"`horizon` of the noise must be at least half of the {span:.6g} from the "
            f"start to the last time; got {horizon:.6g}, whose double is the "
            "end of its tables. Leave it out, or make it longer."
        )
    rates, _ = noise._plan(len(times))
    brownian, gaps = horizon / max(rates), np.diff(times)
    if brownian > np.median(gaps):
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
    latent = model.varies or noise.values.get("hurst") is UNDRAWN
    for hurst in JUDGED if latent else np.ravel(np.asarray(noise.hurst)):
        report = judge(noise, float(hurst), horizon, len(times))
        if report.misfit > (POOR if latent else 0.05 + 0.05 * (hurst < 0.2)):
            said.append(f"The noise is approximated poorly. {report}")
            break
    return (*said, *_coarse(model))


def _coarse(model: Any) -> tuple[str, ...]:
    """Return that steps of a path are too long for what an observation says of the state.

    Within a step the state is not resolved: its error counts once data are that precise. With
    unknown parameters it must be so of all of a few draws of the prior.
    """
    plan = model.plan
    if plan is None or plan.form != "path":
        return ()
    plain = dataclasses.replace(model, hidden={}, plan=None)
    grid = np.asarray(plan.grid, float)
    gap, span = np.diff(grid).max(), grid[-1] - grid[0]
    keys = jr.split(jr.key(0), 1 if all(s.fixed for s in sites(plain)) else TRIED)
    try:
        found = [_precision(plain.sample_prior(k), grid[0], gap, span, plan) for k in keys]
    except (ValueError, NotImplementedError, AttributeError, TypeError):
        return ()  # a prior without draws, or a law without moments that can be differentiated
    move, ratio, hurst = min(found, key=lambda each: each[1])
    if not ratio > COARSE:
        return ()
    steps = span / gap * (ratio / COARSE) ** (1 / hurst)
    return (
        f"The path is too coarse for the noise of an observation: in a step of {gap:.3g} the "
        f"state moves by {move:.3g}, {ratio:.3g} times what an observation leaves open. Take "
        f"`steps={min(steps, 1e9):.0f}` or more, or a larger noise in `observe`.",
    )


def _precision(draw: Any, start: float, gap: Any, span: float, plan: Plan) -> tuple:
    """Return how far a step moves the state, that over the noise of an observation, and H."""
    dtype = jnp.result_type(float)
    x, t = initial(draw, dtype)[0], jnp.asarray(start, dtype)
    hurst = jnp.broadcast_to(jnp.asarray(draw.hurst(t), dtype), x.shape)
    bank = draw.noise.bank(span, len(plan.at), hurst)
    lag = jnp.asarray(gap, dtype)
    move = jnp.abs(value(draw, "diffusion", t, x)) * jnp.sqrt(bank.covariance(lag, lag))
    with relaxed():
        slope = jax.jacfwd(lambda x: draw.observe(x).mean)(x).reshape(-1, len(x))
        known = slope**2 / jnp.reshape(jnp.asarray(draw.observe(x).variance), (-1, 1))
    ratio = np.asarray(move * jnp.sqrt(jnp.nansum(known, axis=0)))
    worst = int(np.argmax(ratio))
    return float(move[worst]), float(ratio[worst]), float(hurst[worst])


def look(model: Any, observed: Any = None) -> tuple[int, tuple[int, ...], str]:
    """Return components, shape of what is seen, and why there is no exact likelihood.

    Raise if a method of the model is not of the form it must have.
    """

    def see(draw):
        loc, _ = initial(draw, jnp.result_type(float))
        for name in ("drift", "diffusion"):
            value(draw, name, jnp.zeros((), loc.dtype), loc)
        with relaxed():
            law = draw.observe(loc)  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(law, dist.Distribution):
            raise ValueError(
                f"`observe` of {type(model).__name__} must return a numpyro distribution; got "
                f"{law!r}."
            )
        require_whole_events(f"`observe` of {type(model).__name__}", "y", law, observed)
        return len(loc), tuple(law.shape()), why_not_linear(draw, loc)

    return look_at_draw(dataclasses.replace(model, hidden={}, plan=None), see)


def planned(model: Any, y: Any, times: Any, observed: Any) -> Plan | None:
    """Return what a model knows of its data; None if their times are not known yet.

    Raise if the shape of the data, or an H that varies, does not fit.
    """
    components, shape, reason = look(model, observed)
    several, times = jnp.ndim(times) == 2, times[0] if jnp.ndim(times) == 2 else times
    check_shape(y, several, (len(times), *shape))
    if model.varies and model.noise.kind != "II":
        raise ValueError(
            f"`hurst` of {type(model).__name__} varies in time, for which `kind` of the noise "
            f"must be 'II', which begins at the start; got {model.noise.kind!r}."
        )
    if isinstance(times, Tracer) and not reason:
        return None
    exact, dtype = times.astype(float), jnp.result_type(times.dtype, jnp.result_type(float))
    grid, at = grid_of(np.asarray(exact), float(model._first(times)), model.steps)
    return Plan(
        "path" if reason or not model.exact else "exact",
        several,
        components,
        len(model.noise._plan(len(times))[0]),
        max(int(np.diff(at, prepend=0).max()), 1),
        jnp.asarray(grid, dtype),
        jnp.asarray(at),
    )


def check_shape(y: Any, several: bool, want: tuple[int, ...]) -> None:
    """Raise `ValueError` unless data have the shape of one series, or of each of several."""
    if jnp.shape(y)[several:] != want:
        raise ValueError(
            f"`y` must have shape {want}, one row for each of `times`"
            f"{' and one column for each number of `observe`' * (len(want) > 1)}; got "
            f"{jnp.shape(y)}. Several series are {('series', *want)}."
        )


def beyond(model: Any, times: Array, at: Array) -> Array:
    """Return whether any new time is beyond the law of the noise; refuse it if known."""
    start = jnp.asarray(model._first(times), times.dtype)
    horizon = model.noise.horizon or times[-1] - start
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
