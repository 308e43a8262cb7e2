"""Fractional Brownian motion as the noise of an equation."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ...core._convert import flag, number, one_of, positive, whole
from ...core._require import require_key
from ...core._types import PRNGKey
from ...language._latent import UNDRAWN, Coords, Latent, latents
from ...language._model import Model, sites
from . import _exact as exact, _tables as tables
from ._bank import Bank, spline
from ._report import ErrorReport, judge
from ._times import increasing

SPANS = {"I": (0.01, 500.0), "II": (0.1, 500.0)}  # rates times horizon, for 250 times
TIMES, DECADES = 250, 1.18  # decades of rates that a node more covers
FASTEST = 1e6  # rate times horizon that is chosen for close times


def _hurst_prior(hurst: Any, drivers: int | None) -> tuple[Any, Latent | None]:
    """Return a value of H and no prior, or no value and the prior of a latent."""
    if isinstance(hurst, dataclasses.Field):
        spec = hurst.metadata.get("latent")
        if spec is None:
            raise ValueError("`hurst` must be a number, a prior or a latent; got a field.")
    elif isinstance(hurst, dist.Distribution):
        spec = Latent(hurst, None, (), False)
    else:
        if isinstance(hurst, Tracer):
            return hurst, None
        if isinstance(hurst, bool | str) or not np.isrealobj(hurst):
            raise ValueError(f"`hurst` must be a number or a prior; got {hurst!r}.")
        value = np.asarray(hurst, float)
        if not np.all((value >= tables.LEAST) & (value <= tables.MOST)):
            raise ValueError(
                f"`hurst` must be above 0 and below 1, and within the tables, "
                f"[{tables.LEAST}, {tables.MOST}]; got {hurst!r}."
            )
        if value.ndim > 1:
            raise ValueError(
                f"`hurst` must be one number, or one for each driver; got shape {value.shape}."
            )
        return jnp.asarray(value, float), None
    if isinstance(spec.prior, dist.Distribution):
        _check_support(spec.prior)
        if drivers is not None and spec.shape is None and not spec.prior.shape():
            spec = dataclasses.replace(spec, shape=(drivers,))
    return UNDRAWN, spec


def _check_support(prior: dist.Distribution) -> None:
    support: Any = prior.support
    try:
        # A prior of several numbers is asked with the same one in every place.
        reaches = any(np.all(support(jnp.full(prior.shape(), v))) for v in (-0.25, 1.25))
    except (NotImplementedError, TypeError):
        reaches = True
    if reaches:
        raise ValueError(
            "The prior of `hurst` must be on (0, 1), as `Beta(2, 2)` or `Uniform(0.1, 0.9)` "
            f"are; got {type(prior).__name__} on {support!r}."
        )


class FractionalNoise(Model):
    """Fractional Brownian motion with Hurst index H, through its Markov approximation.

    Increments over adjacent intervals are correlated by `2^(2H-1) - 1`: they persist for
    `H > 1/2`, reverse for `H < 1/2`, and are independent for `H = 1/2`, where the process is
    Brownian motion and the approximation exact. A sum of `nodes` Ornstein-Uhlenbeck processes
    with one common driver stands for it, one of them with rate 0.

    Args:
        hurst: H: a number in (0, 1), an array of one for each driver, or a prior:
            `whence.latent(...)` or a numpyro distribution on (0, 1). A draw beyond the
            tables, [0.002, 0.998], has no density (NaN, which engines reject).
        kind: "I" (Mandelbrot and Van Ness) has an infinite past and stationary increments;
            "II" (Riemann and Liouville) begins at the start, without a past.
        normalize: "unit" has variance `t^(2H)` (kind II: 1 at one unit of time); "mvn" the
            variance of the integral as Mandelbrot and Van Ness write it, `1 / Gamma(H + 1/2)`
            in front.
        horizon: Length of time T for which it is to be good, in units of time. By default
            from the first to the last time that the model is given. Laws are matched, and
            forecasts allowed, up to `2 T` from the start.
        nodes: Number of processes; by default 6, and more where the rates span more.
        span: Least and largest rate besides 0, times the horizon; by default `(0.01, 500)`
            (kind II: from 0.1), the largest growing with the number of times above 250, and
            for data with how close the closest of their times are.
        zero: Whether one of the processes has rate 0.
        weights: "law" matches the variances of increments at all lags; "delta" rescales the
            weights of least path error to the variance at the shortest lag; "l2" are those.
        drivers: Number of drivers that get an H each from a prior of one number.
        coords: As for any model.

    Raises:
        ValueError: If an argument is not of the form above.

    References:
        Mandelbrot and Van Ness (1968), doi:10.1137/1010093.
        Carmona, Coutin and Montseny (2000), doi:10.1023/A:1009991304645.
        Daems, Opper, Crevecoeur and Birdal (2024), Variational inference for SDEs driven by
        fractional noise, arXiv:2310.12975.
    """

    prior: Latent | None = eqx.field(static=True)
    fixed: Any
    kind: str = eqx.field(static=True)
    normalize: str = eqx.field(static=True)
    horizon: float | None = eqx.field(static=True)
    nodes: int | None = eqx.field(static=True)
    span: tuple[float, float] | None = eqx.field(static=True)
    zero: bool = eqx.field(static=True)
    weights: str = eqx.field(static=True)
    values: dict[str, Any] = latents(lambda n: {} if n.prior is None else {"hurst": n.prior})

    def __init__(
        self,
        hurst: Any = 0.5,
        kind: str = "I",
        *,
        normalize: str = "unit",
        horizon: Any = None,
        nodes: Any = None,
        span: Any = None,
        zero: Any = True,
        weights: str = "law",
        drivers: Any = None,
        coords: Any = None,
    ):
        drivers = whole("drivers", least=1, optional=True)(drivers)
        self.fixed, self.prior = _hurst_prior(hurst, drivers)
        self.kind = one_of("kind", ("I", "II"))(kind)
        self.normalize = one_of("normalize", ("unit", "mvn"))(normalize)
        self.horizon = positive("horizon", optional=True)(horizon)
        self.zero = flag("zero")(zero)
        self.nodes = whole("nodes", least=1 + self.zero, optional=True)(nodes)
        self.span = _span(span)
        self.weights = one_of("weights", ("law", "delta", "l2"))(weights)
        self.coords = Coords(coords)
        self.values = {} if self.prior is None else {"hurst": UNDRAWN}
        sites(self)  # refuses priors that do not fit

    @property
    def hurst(self) -> Any:
        """H of this draw, a number or one for each driver; of a batch of draws, all of them.

        Raises:
            ValueError: If it has a prior and no value yet.
        """
        value = self.fixed if self.prior is None else self.values["hurst"]
        if value is UNDRAWN:
            raise ValueError(
                "`hurst` has a prior and no value yet; `sample_prior(key)` or a posterior's "
                "draws have one, or `FractionalNoise(0.3)`."
            )
        return value

    def _plan(self, count: int) -> tuple[tuple[float, ...], float]:
        """Return rates times horizon, and the shortest lag that counts over the horizon.

        They depend on the number of times and not on the times: compiled programs, simulated
        data and forecasts then have the same noise.
        """
        low, high = self._rates(count)
        enough = 2 + int(np.ceil(np.log10(high / low) / DECADES - 1e-9))
        moving = (self.nodes or enough) - self.zero
        rates = np.geomspace(low, high, moving) if moving > 1 else [np.sqrt(low * high)]
        return (*[0.0] * self.zero, *map(float, rates)), min(2.0 / high, 0.25)

    def _rates(self, count: int) -> tuple[float, float]:
        """Return least and largest rate besides 0, times the horizon."""
        low, high = self.span or SPANS[self.kind]
        if self.span is None:
            high *= 2 ** max(0, int(np.ceil(np.log2(count / TIMES))))
        return low, high

    def for_times(self, times: np.ndarray, start: float) -> FractionalNoise:
        """Return the noise with rates that resolve the closest times; itself if it has them.

        Args:
            times: Increasing.
            start: Where it begins.
        """
        gaps = np.diff(times, prepend=start)
        gaps, (low, high) = gaps[gaps > 0], self._rates(len(times))
        if self.span is not None or self.nodes is not None or not gaps.size:
            return self
        need = 2 * (self.horizon or times[-1] - start) / gaps.min()
        doublings = int(np.ceil(np.log2(min(need, FASTEST) / high)))
        if doublings <= 0:
            return self
        noise = jax.tree.map(lambda leaf: leaf, self)
        object.__setattr__(noise, "span", (low, high * 2.0**doublings))
        return noise

    def bank(self, horizon: Any = None, count: int = TIMES, hurst: Any = None) -> Bank:
        """Return the bank of processes for a horizon and a number of times.

        Args:
            horizon: As that of the noise, for which it stands in where there is none.
            count: Number of times; the more, the larger the largest rate, unless `span` says.
            hurst: Any array of H in place of that of the noise; its axes lead in the weights.

        Raises:
            ValueError: If there is neither this horizon nor that of the noise.
        """
        hurst = jnp.asarray(self.hurst if hurst is None else hurst)
        horizon = jnp.asarray(self._horizon(horizon), hurst.dtype)
        x, resolution = self._plan(count)
        unit = spline(tables.table(self.kind, x, self.weights, resolution), hurst)
        # A node at rate 0 grows like the square root of the horizon.
        scales = np.sqrt([2 * rate if rate else 1.0 for rate in x])
        weights = unit / jnp.asarray(np.broadcast_to(scales, unit.shape), hurst.dtype)
        weights = weights * (horizon ** (hurst - 0.5) * self._amplitude(hurst))[..., None]
        root = jnp.sqrt(horizon)
        rates = jnp.asarray(x, hurst.dtype) / horizon
        scales = jnp.asarray(scales, hurst.dtype) / root
        return Bank(rates, scales, weights * root, horizon, self.kind, count)

    def _amplitude(self, hurst: Array) -> Array:
        return exact.own_scale(self.kind, hurst) if self.normalize == "mvn" else hurst**0

    def _horizon(self, horizon: Any) -> Any:
        chosen = self.horizon if self.horizon is not None else horizon
        if chosen is None:
            raise ValueError(
                "The approximation needs to know for how long: give "
                "`FractionalNoise(..., horizon=T)`, in units of time."
            )
        return chosen

    def covariance(self, s: Any, t: Any) -> Array:
        """Return the covariance of the approximation at times since the start, elementwise.

        Args:
            s: Times.
            t: Times; the two are broadcast. With an H for each driver, their axis is last.
        """
        return self.bank().covariance(*self._pair(s, t))

    def exact_covariance(self, s: Any, t: Any) -> Array:
        """Return the covariance of fractional Brownian motion, elementwise.

        Args:
            s: Times since the start.
            t: Times since the start; the two are broadcast.
        """
        hurst = self._one_hurst()
        covariance = exact.unit_covariance(self.kind, hurst, *self._pair(s, t))
        return covariance * self._amplitude(hurst) ** 2

    def variogram(self, lag: Any, start: Any = 0.0) -> Array:
        """Return `Var(B(start + lag) - B(start))` of the approximation, elementwise.

        Args:
            lag: Lengths of increments.
            start: Where they begin; without effect on kind I, whose increments are stationary.
        """
        return self._of_increments(self.bank().covariance, lag, start)

    def exact_variogram(self, lag: Any, start: Any = 0.0) -> Array:
        """Return `Var(B(start + lag) - B(start))` of fractional Brownian motion.

        Args:
            lag: Lengths of increments.
            start: Where they begin.
        """
        return self._of_increments(self.exact_covariance, lag, start)

    def _of_increments(self, covariance: Any, lag: Any, start: Any) -> Array:
        lag, start = self._pair(lag, start)
        end = start + lag
        return covariance(end, end) + covariance(start, start) - 2 * covariance(start, end)

    def _pair(self, s: Any, t: Any) -> tuple[Array, Array]:
        dtype = jnp.asarray(self.hurst).dtype
        s, t = jnp.broadcast_arrays(jnp.asarray(s, dtype), jnp.asarray(t, dtype))
        return s, t

    def sample(self, times: Any, *, key: PRNGKey, paths: int = 1, start: Any = 0.0) -> Array:
        """Draw paths of fractional Brownian motion itself, without approximation.

        Evenly spaced times of kind I take one fast Fourier transform a path, all others
        Cholesky's factor of their covariance.

        Args:
            times: Increasing, not before the start.
            key: A typed key.
            paths: Number of paths.
            start: Where the process is 0.

        Returns:
            An array `(paths, time)`.

        Raises:
            ValueError: If times do not increase, or begin before the start.
        """
        require_key(key)
        paths = whole("paths", least=1)(paths)
        start = number("start")(start)
        grid = increasing("times", times, start)
        hurst, first = self._one_hurst(), grid[0] - start
        gaps = np.diff(grid)
        even = len(grid) > 2 and np.ptp(gaps) <= 1e-6 * gaps[0]
        times = jnp.asarray(grid, hurst.dtype)
        skip = round(first / gaps[0]) if even else 0
        if even and self.kind == "I" and abs(skip * gaps[0] - first) <= 1e-6 * gaps[0]:
            drawn = exact.regular_paths(key, hurst, len(grid) - 1 + skip, gaps[0], paths)
            drawn = jnp.concatenate([jnp.zeros((paths, 1), hurst.dtype), drawn], axis=1)
            drawn = drawn[:, skip:]
        else:
            drawn = exact.dense_paths(key, self.kind, hurst, times, start, paths)
        return drawn * self._amplitude(hurst)

    def error_report(self, horizon: Any = None, count: int = TIMES) -> ErrorReport:
        """Return how good the approximation is, in words and numbers.

        Args:
            horizon: As for `bank`.
            count: As for `bank`.

        Raises:
            ValueError: If there is no horizon, or more than one H.
        """
        hurst, horizon = float(self._one_hurst()), float(self._horizon(horizon))
        return judge(self, hurst, horizon, count)

    def _one_hurst(self) -> Array:
        hurst = jnp.asarray(self.hurst)
        if hurst.ndim:
            raise ValueError(
                "This needs one `hurst`; got one for each driver: make a `FractionalNoise` "
                "for the driver that you ask about."
            )
        return hurst


def _span(span: Any) -> tuple[float, float] | None:
    if span is None:
        return None
    ends = tuple(map(positive("span"), span)) if np.shape(span) == (2,) else ()
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise ValueError(f"`span` must be two increasing numbers; got {span!r}.")
    return ends
