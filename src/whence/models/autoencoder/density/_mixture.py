"""`DirichletMixture`: a density of codes with as many components as they need."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ....core import AnyArray, PRNGKey, number, one_of, positive, whole
from ....core._batches import by_draw
from ....core._cache import remembering
from ....core._key import as_key
from ._gibbs import gibbs
from ._variational import Factors, Prior, iterate, kmeans, mixture, weights

USED = 0.01  # weight above which a component is counted


class DirichletMixture(eqx.Module):
    """A Dirichlet-process mixture of Gaussians with full covariances, truncated.

    Attributes:
        components: At most so many.
        concentration: c of the process; by default `1 / components`.
        method: `"variational"`, or `"gibbs"`: one draw by a collapsed sampler.
        steps: Updates at most, or sweeps.
        tolerance: Change of the bound at which updates end, in nats per row.
        reg: Added to the diagonals of covariances; less where codes have variances below 0.01,
            so that it never is more than `100 * reg` of them.

    References:
        Blei and Jordan (2006), doi:10.1214/06-BA104. Neal (2000), doi:10.2307/1390653.
        Defaults as in Tran et al. (2021), arXiv:2106.06245.
    """

    components: int = eqx.field(default=20, converter=whole("components", least=1))
    concentration: float | None = eqx.field(
        default=None, converter=positive("concentration", optional=True), kw_only=True
    )
    method: str = eqx.field(
        default="variational",
        converter=one_of("method", ("variational", "gibbs")),
        kw_only=True,
    )
    steps: int = eqx.field(default=2_000, converter=whole("steps", least=1), kw_only=True)
    tolerance: float = eqx.field(default=1e-3, converter=positive("tolerance"), kw_only=True)
    reg: float = eqx.field(default=1e-6, converter=number("reg", least=0), kw_only=True)

    def fit(
        self, codes: AnyArray, *, key: PRNGKey | int = 0, responsibilities: Any = None
    ) -> "FittedMixture":
        """Fit to codes.

        Args:
            codes: `(row, latent)`; or `(chain, draw, row, latent)` for one mixture for each
                draw of the weights, as `encode` returns them.
            key: For the start by k-means, and for the sampler.
            responsibilities: To start from, `(row, component)`.

        Raises:
            ValueError: If there are fewer codes than components, they are not finite, or they
                lie in fewer dimensions than they have.
        """
        codes = jnp.asarray(codes, jnp.result_type(float))
        if codes.ndim not in (2, 4) or codes.shape[-1] == 0:
            raise ValueError(
                "`codes` must have shape (row, latent) or (chain, draw, row, latent), with at "
                f"least one latent number; got {codes.shape}."
            )
        rows, dim = codes.shape[-2:]
        if rows < self.components:
            raise ValueError(
                f"`codes` must have at least as many rows as `components`, {self.components}; "
                f"got {rows}."
            )
        if not np.isfinite(np.asarray(codes)).all():
            raise ValueError("`codes` must be finite; they are not.")
        lead, flat = codes.shape[:-2], codes.reshape(-1, rows, dim)
        _check_rank(np.asarray(flat, np.float64))
        want, keys = (rows, self.components), jr.split(as_key(key), len(flat))
        if responsibilities is None:
            seeds = np.asarray(jr.bits(as_key(key), (len(flat),)))
            each = zip(np.asarray(flat), seeds, strict=True)
            starts = np.stack([kmeans(c, self.components, seed=int(s)) for c, s in each])
        elif np.shape(responsibilities) == want:
            starts = np.broadcast_to(responsibilities, (len(flat), *want))
        else:
            raise ValueError(
                f"`responsibilities` must have shape {want}; got {np.shape(responsibilities)}."
            )
        concentration = jnp.asarray(self.concentration or 1 / self.components, codes.dtype)
        found = _fit(self, flat, jnp.asarray(starts, codes.dtype), concentration, keys)
        restore = lambda v: v.reshape(*lead, *v.shape[1:])
        factors, bound, made, good = jax.tree.map(restore, found)
        return FittedMixture(factors, bound, made, bool(np.all(good)))


def _check_rank(codes: np.ndarray) -> None:
    for each in codes:
        values = np.linalg.eigvalsh(np.atleast_2d(np.cov(each.T)))
        if values[0] <= 1e-10 * max(values[-1], 1e-300):
            raise ValueError(
                f"`codes` must vary in all of their {codes.shape[-1]} dimensions; their "
                f"covariance is singular (eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}). Use a smaller latent space, or more data than dimensions."
            )


@remembering
def _fit(settings: DirichletMixture, codes, starts, concentration, keys):
    steps, most = settings.steps, settings.components

    def one(codes, start, key):
        prior = Prior.of(codes, concentration)
        if settings.method == "variational":
            rule = {"reg": settings.reg, "steps": steps, "tolerance": settings.tolerance}
            fit = iterate(codes, start, prior, **rule)
            return fit.factors, fit.bound, fit.steps, fit.steps < steps
        factors, used = gibbs(codes, start, prior, key=key, sweeps=steps)
        # All clusters used: more would have been made.
        return factors, jnp.asarray(jnp.nan, codes.dtype), used[-1], used.max() < most

    return jax.vmap(one)(codes, starts, keys)


class FittedMixture(eqx.Module):
    """A mixture fitted to codes; its predictive law is a mixture of Student-t laws.

    Attributes:
        factors: Of the components; leading axes `(chain, draw)` if fitted for each draw.
        bound: Lower bound of the log evidence, in nats; NaN for the sampler.
        steps: Updates made; for the sampler clusters in the last sweep.
        good: Whether updates ended by the tolerance; whether the sampler had clusters left.
    """

    factors: Factors
    bound: Array
    steps: Array
    good: bool

    @property
    def batched(self) -> bool:
        """Whether there is one mixture for each draw of the weights."""
        return self.factors.a.ndim > 1

    @property
    def weights(self) -> Array:
        """Expected weights of the components, which add up to 1."""
        return weights(self.factors)

    @property
    def covariances(self) -> Array:
        """Inverses of the expected precisions, `W^-1 / nu`."""
        return self.factors.scatters / self.factors.dofs[..., None, None]

    def __str__(self) -> str:
        used = np.asarray((self.weights > USED).sum(-1)).ravel()
        many = f"{used[0]}" if np.ptp(used) == 0 else f"{used.min()} to {used.max()}"
        each = f", one for each of {used.size} draws" if self.batched else ""
        said = f"A mixture with {many} components of weight above {USED}{each}."
        if not self.good:
            said += " It did not settle: allow more `steps`, or more `components`."
        return said

    def log_prob(self, points: AnyArray) -> Array:
        """Return log densities of codes, in nats, `(point,)` or `(chain, draw, point)`.

        Args:
            points: `(point, latent)`, or `(chain, draw, point, latent)` for as many mixtures.
        """
        points, lead = jnp.asarray(points, self.bound.dtype), self.factors.a.shape[:-1]
        if self.batched:
            points = jnp.broadcast_to(points, (*lead, *points.shape[-2:]))
        return _each(_log_prob, self.factors, points)

    def sample(self, num: int, *, key: PRNGKey | int) -> Array:
        """Draw codes, `(num, latent)` or, of each mixture, `(chain, draw, num, latent)`."""
        num, key = whole("num", least=1)(num), as_key(key)
        keys = jr.split(key, self.factors.a.shape[:-1]) if self.batched else key
        return _each(_sample, self.factors, keys, num)


def _log_prob(factors, points):
    return mixture(factors).log_prob(points)


def _sample(factors, key, num):
    return mixture(factors).sample(key, (num,))


@remembering
def _each(function, factors, values, *rest):
    one = lambda pair: function(*pair, *rest)
    both = factors, values
    return by_draw(one, both) if factors.a.ndim > 1 else one(both)
