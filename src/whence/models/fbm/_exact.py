"""Fractional Brownian motion itself: covariances, and paths without approximation."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.extend.random import threefry_2x32
from jax.scipy.special import gammaln
from jaxtyping import Array

from ...core._types import PRNGKey
from . import _forms as forms


def own_scale(kind: str, hurst: Array) -> Array:
    """Return the standard deviation at 1 of a kind as its integral defines it."""
    if kind == "I":
        log_variance = -gammaln(2 * hurst + 1) - jnp.log(jnp.sin(jnp.pi * hurst))
    else:
        log_variance = -jnp.log(2 * hurst) - 2 * gammaln(hurst + 0.5)
    return jnp.exp(log_variance / 2)


def unit_covariance(kind: str, hurst: Array, s: Array, t: Array) -> Array:
    """Return the covariance, elementwise, of the process with unit variance at 1.

    That of kind II is a hypergeometric function, computed on the host: raise if traced.
    """
    if kind == "I":
        power = lambda x: jnp.abs(x) ** (2 * hurst)
        return 0.5 * (power(s) + power(t) - power(s - t))
    if any(isinstance(value, Tracer) for value in (hurst, s, t)):
        raise ValueError(
            "The exact covariance of kind II is computed outside of compiled functions; "
            "`hurst` and times must be numbers here."
        )
    found = forms.rl_covariance(np.asarray(s, float), np.asarray(t, float), float(hurst))
    return jnp.asarray(found, s.dtype)


def regular_paths(key: PRNGKey, hurst: Array, num: int, step: Any, paths: int) -> Array:
    """Return `(paths, num)` values at `step, 2 step, ...` of kind I, from 0 at time 0.

    Increments have a Toeplitz covariance, which is the corner of a circulant one, whose
    eigenvalues are the Fourier transform of its first row. White noise is drawn as its own
    Fourier transform: one inverse transform a path.

    References:
        Davies and Harte (1987), doi:10.1093/biomet/74.1.95.
        Wood and Chan (1994), doi:10.1080/10618600.1994.10474655.
    """
    dtype = jnp.result_type(hurst)
    # The row r_0 .. r_num, r_(num-1) .. r_1 is symmetric: its transform is real.
    size, k = 2 * num, jnp.arange(num + 1, dtype=dtype)
    power = lambda x: jnp.abs(x) ** (2 * hurst)
    row = 0.5 * (power(k + 1) - 2 * power(k) + power(k - 1))
    eigenvalues = jnp.fft.rfft(jnp.concatenate([row, row[1:-1][::-1]])).real
    # Least eigenvalues are positive in exact arithmetic for every H.
    amplitude = jnp.sqrt(jnp.maximum(eigenvalues, 0.0))
    ends = (k == 0) | (k == num)
    half = jnp.asarray(0.5, dtype)
    amplitude = (amplitude * jnp.sqrt(size * jnp.where(ends, 1.0, half)))[None, :]
    noise = normals(key, (2, paths, num + 1), dtype)
    imaginary = jnp.where(ends[None, :], 0.0, noise[1])
    spectrum = jax.lax.complex(noise[0] * amplitude, imaginary * amplitude)
    increments = jnp.fft.irfft(spectrum, n=size)[:, :num]
    return jnp.cumsum(increments, axis=1) * jnp.asarray(step, dtype) ** hurst


def normals(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return standard normal numbers, in float32 from each half of what the generator makes.

    `jax.random.bits` makes 64 random bits for 32 that it returns; most of the time is theirs.
    """
    size = math.prod(shape)
    threefry = str(jr.key_impl(key)) == "threefry2x32"
    if dtype != jnp.float32 or not threefry or size >= 2**32:
        return jr.normal(key, shape, dtype)
    bits = threefry_2x32(jr.key_data(key), jnp.arange(size, dtype=jnp.uint32))
    # 23 bits, and the middles of their cells: never 0 or 1.
    uniform = (bits >> jnp.uint32(9)).astype(jnp.float32) * 2.0**-22 + (2.0**-23 - 1)
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(shape)


def dense_paths(
    key: PRNGKey, kind: str, hurst: Array, times: Array, start: Any, paths: int
) -> Array:
    """Return `(paths, time)` values at any increasing times, by Cholesky's factor."""
    since = times - start
    late = since > 0  # at the start itself the process is 0
    grid = jnp.meshgrid(*2 * [jnp.where(late, since, 1.0)], indexing="ij")
    both = late[:, None] & late[None, :]
    covariance = jnp.where(both, unit_covariance(kind, hurst, *grid), jnp.eye(len(times)))
    drawn = jr.normal(key, (paths, len(times)), times.dtype) @ jnp.linalg.cholesky(covariance).T
    return jnp.where(late[None, :], drawn, 0.0)
