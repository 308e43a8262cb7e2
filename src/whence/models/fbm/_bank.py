"""The bank of Ornstein-Uhlenbeck processes that stands for the noise."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array
from scipy.interpolate import CubicSpline

from . import _tables as tables


class Bank(eqx.Module):
    """`B(t) = sum_k weights_k (Y_k(t) - Y_k(0))`, `dY_k = -rates_k Y_k dt + scales_k dW`.

    Scales make the variances of the `Y_k` comparable: 1 once they are stationary.

    Attributes:
        rates: `(node,)`, per unit of time; 0 is Brownian motion itself.
        scales: `(node,)`.
        weights: `(node,)`, or `(driver, node)` with an H for each driver.
        horizon: That it is made for.
        kind: "I": the noise has an infinite past; "II": it begins at time 0.
        count: Number of times that it is made for.
    """

    rates: Array
    scales: Array
    weights: Array
    horizon: Array
    kind: str = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def stationary(self) -> Array:
        """Return the covariance `(node, node)` of the `Y_k` at time 0."""
        if self.kind == "II":
            return jnp.zeros((len(self.rates),) * 2, self.rates.dtype)
        i, j = jnp.meshgrid(self.rates, self.rates, indexing="ij")
        moving = (i > 0) & (j > 0)
        both = self.scales[:, None] * self.scales[None, :]
        return jnp.where(moving, both / jnp.where(moving, i + j, 1.0), 0.0)

    def initial_factor(self) -> Array:
        """Return the Cholesky factor of `stationary()`, in closed form.

        A Cauchy matrix has one; a numerical factor would need jitter, as neighbouring
        processes are nearly the same. Rates must increase.
        """
        if self.kind == "II":
            return self.stationary()
        i, g = jnp.meshgrid(self.rates, self.rates, indexing="ij")
        safe = jnp.where(i + g > 0, i + g, 1.0)
        ratio = (i - g) / safe
        ahead = jnp.concatenate([jnp.ones_like(ratio[:, :1]), ratio[:, :-1]], axis=1)
        root = jnp.where(g > 0, jnp.sqrt(2 * jnp.where(g > 0, g, 1.0)), 0.0)
        lower = jnp.tril(root / safe * jnp.cumprod(ahead, axis=1))
        return self.scales[:, None] * jnp.where(i > 0, lower, 0.0)

    def covariance(self, s: Array, t: Array) -> Array:
        """Return `Cov(B(s), B(t))` elementwise, with the axes of drivers last, if any.

        Args:
            s: Times since the start.
            t: Times since the start, of the same shape.
        """
        scaled = self.weights * jnp.broadcast_to(self.scales, self.weights.shape)
        i, j = jnp.meshgrid(self.rates, self.rates, indexing="ij")
        still = i + j == 0
        safe = jnp.where(still, 1.0, i + j)

        def one(low, high):
            if self.kind == "II":
                inner = jnp.exp(-j * (high - low)) * -jnp.expm1(-safe * low) / safe
            else:
                inner = jnp.expm1(-j * (high - low)) - jnp.expm1(-i * low)
                inner = inner - jnp.expm1(-j * high)
                # With one node at rate 0, which starts at 0: not stationary, only W.
                zero_i = -jnp.expm1(-j * low) * jnp.exp(-j * (high - low))
                zero_j = -jnp.expm1(-i * low)
                inner = jnp.where(i == 0, zero_i, jnp.where(j == 0, zero_j, inner)) / safe
            inner = jnp.where(still, low, inner)
            return jnp.einsum("ij,...i,...j->...", inner, scaled, scaled)

        each = jnp.vectorize(one, signature=f"(),()->({'d' * (scaled.ndim - 1)})")
        return each(jnp.minimum(s, t), jnp.maximum(s, t))


def spline(table: CubicSpline, hurst: Array) -> Array:
    """Return the weights at H, `(*hurst.shape, node)`; NaN where H is beyond the table."""
    step = (tables.MOST - tables.LEAST) / (tables.KNOTS - 1)
    inside = (hurst >= tables.LEAST) & (hurst <= tables.MOST)
    safe = jnp.where(inside, hurst, 0.5)
    cell = jnp.clip(jnp.floor((safe - tables.LEAST) / step), 0, tables.KNOTS - 2).astype(int)
    d = (safe - tables.LEAST - cell.astype(hurst.dtype) * step)[..., None]
    c = jnp.asarray(table.c, hurst.dtype)[:, cell]
    value = ((c[0] * d + c[1]) * d + c[2]) * d + c[3]
    return jnp.where(inside[..., None], value, jnp.full_like(value, jnp.nan))
