"""`DirichletMixture`: a density of codes with as many components as they need."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ....core._cache import remembering
from ....core._convert import number, one_of, positive, whole
from ....core._key import as_key
from ....core._types import AnyArray, PRNGKey
from ._gibbs import gibbs, student_t
from ._variational import Factors, Prior, VariationalFit, iterate, kmeans

METHODS = ("variational", "gibbs")
USED = 0.01  # weight above which a component is counted


class DirichletMixture(eqx.Module):
    """A Dirichlet-process mixture of Gaussians with full covariances, truncated.

    Attributes:
        components: At most so many.
        concentration: c of the process; by default `1 / components`.
        method: `"variational"`, or `"gibbs"`: one draw by a collapsed sampler.
        steps: Updates at most, or sweeps.
        tolerance: Change of the bound at which updates end, in nats per row.
        reg: Added to the diagonals of covariances.

    References:
        Blei and Jordan (2006), Variational inference for Dirichlet process mixtures,
        doi:10.1214/06-BA104. Neal (2000), Markov chain sampling methods for Dirichlet process
        mixture models, doi:10.2307/1390653. Defaults as in Tran et al. (2021),
        arXiv:2106.06245.
    """

    components: int = eqx.field(default=20, converter=whole("components", least=1))
    concentration: float | None = eqx.field(
        default=None, converter=positive("concentration", optional=True), kw_only=True
    )
    method: str = eqx.field(
        default="variational", converter=one_of("method", METHODS), kw_only=True
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

        Returns:
            The mixture (or mixtures).

        Raises:
            ValueError: If there are fewer codes than components, they are not finite, or they
                lie in fewer dimensions than they have.
        """
        codes = jnp.asarray(codes)
        codes = codes.astype(jnp.promote_types(codes.dtype, jnp.float32))
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
        _check_rank(codes)
        concentration = self.concentration or 1 / self.components
        lead, flat = codes.shape[:-2], codes.reshape(-1, rows, dim)
        if responsibilities is not None:
            resp = jnp.asarray(responsibilities, codes.dtype)
            if resp.shape != (rows, self.components):
                raise ValueError(
                    f"`responsibilities` must have shape {(rows, self.components)}; got "
                    f"{resp.shape}."
                )
            responsibilities = jnp.broadcast_to(resp, (len(flat), *resp.shape))
        keys = jr.split(as_key(key), len(flat))
        settings = (self.components, self.reg, self.steps, self.tolerance)
        concentration = jnp.asarray(concentration, codes.dtype)
        program = _fit if self.method == "variational" else _gibbs
        factors, bound, made, good = program(
            flat, responsibilities, concentration, keys, settings
        )
        restore = lambda v: v.reshape(*lead, *v.shape[1:])
        factors, bound, made = jax.tree.map(restore, (factors, bound, made))
        return FittedMixture(factors, bound, made, bool(np.all(good)))


def _check_rank(codes: Array) -> None:
    each = np.asarray(codes, np.float64).reshape(-1, *codes.shape[-2:])
    for i in range(len(each)):
        values = np.linalg.eigvalsh(np.atleast_2d(np.cov(each[i].T)))
        if values[0] <= 1e-10 * max(values[-1], 1e-300):
            raise ValueError(
                f"`codes` must vary in all of their {codes.shape[-1]} dimensions; their "
                f"covariance is singular (eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}). Use a smaller latent space, or more data than dimensions."
            )


def _start(codes, resp, concentration, key, components) -> tuple[Array, Prior]:
    start = kmeans(codes, components, key=key) if resp is None else resp
    return start, Prior.of(codes, concentration)


@remembering
def _fit(codes, resp, concentration, keys, settings):
    components, reg, steps, tolerance = settings

    def one(codes, resp, key) -> VariationalFit:
        start, prior = _start(codes, resp, concentration, key, components)
        return iterate(codes, start, prior, reg=reg, steps=steps, tolerance=tolerance)

    fits = jax.vmap(one, in_axes=(0, None if resp is None else 0, 0))(codes, resp, keys)
    return fits.factors, fits.bound, fits.steps, fits.steps < steps


@remembering
def _gibbs(codes, resp, concentration, keys, settings):
    components, _, sweeps, _ = settings

    def one(codes, resp, key):
        key_start, key_run = jr.split(key)
        start, prior = _start(codes, resp, concentration, key_start, components)
        factors, used = gibbs(codes, start, prior, key=key_run, sweeps=sweeps)
        # The weights' posterior given the labels: counts, with the process's own at the end.
        after = jnp.cumsum(factors.dofs[::-1] - prior.dof)[::-1]
        counts = factors.dofs - prior.dof
        factors = factors._replace(a=1 + counts, b=concentration + after - counts)
        return factors, used

    factors, used = jax.vmap(one, in_axes=(0, None if resp is None else 0, 0))(
        codes, resp, keys
    )
    nothing = jnp.full(len(codes), jnp.nan, codes.dtype)
    # All clusters used: more would have been made.
    return factors, nothing, used[:, -1], used.max(1) < components


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
        """Return log densities of codes, in nats.

        Args:
            points: `(point, latent)`; with one mixture for each draw also
                `(chain, draw, point, latent)`.

        Returns:
            `(point,)`; with one mixture for each draw `(chain, draw, point)`.
        """
        points = jnp.asarray(points, self.factors.means.dtype)
        if not self.batched:
            return _log_prob(points, self.factors)
        lead = self.factors.a.shape[:-1]
        points = jnp.broadcast_to(points, (*lead, *points.shape[-2:]))
        return _log_probs(points, self.factors)

    def sample(self, num: int, *, key: PRNGKey | int) -> Array:
        """Draw codes, `(num, latent)` or `(chain, draw, num, latent)`.

        Args:
            num: How many; for each mixture.
            key: A typed key.
        """
        num, key = whole("num", least=1)(num), as_key(key)
        if not self.batched:
            return sample(self.factors, num, key=key)
        lead = self.factors.a.shape[:-1]
        one = lambda f, k: sample(f, num, key=k)
        return jax.vmap(jax.vmap(one))(self.factors, jr.split(key, lead))


def weights(factors: Factors) -> Array:
    """Return expected weights of the components, renormalised."""
    stick = factors.a / (factors.a + factors.b)
    rest = jnp.cumprod(1 - stick, axis=-1)
    before = jnp.concatenate([jnp.ones_like(rest[..., :1]), rest[..., :-1]], axis=-1)
    raw = stick * before
    return raw / raw.sum(-1, keepdims=True)


def spread(factors: Factors) -> Array:
    """Return standard deviations of codes, at the expected means and covariances."""
    each = weights(factors)[:, None]
    own = jnp.diagonal(factors.scatters, axis1=-2, axis2=-1) / factors.dofs[:, None]
    mean = jnp.sum(each * factors.means, axis=0)
    return jnp.sqrt(jnp.sum(each * (own + (factors.means - mean) ** 2), axis=0))


def log_prob(points: Array, factors: Factors) -> Array:
    """Return the log density of the predictive mixture of Student-t laws."""
    each = student_t(points, factors) + jnp.log(weights(factors))
    return jax.scipy.special.logsumexp(each, axis=1)


def sample(factors: Factors, num: int, *, key: PRNGKey) -> Array:
    """Draw from the predictive mixture of Student-t laws."""
    key_which, key_normal, key_chi = jr.split(key, 3)
    dim = factors.means.shape[1]
    which = jr.categorical(key_which, jnp.log(weights(factors)), shape=(num,))
    free = (factors.dofs + 1 - dim)[which]
    factor = ((1 + factors.precisions) / factors.precisions)[which] / free
    trils = jnp.linalg.cholesky(factors.scatters)[which]
    normal = jr.normal(key_normal, (num, dim), factors.means.dtype)
    chi = 2 * jr.gamma(key_chi, free / 2) / free
    scale = jnp.sqrt(factor / chi)[:, None]
    return factors.means[which] + scale * jnp.einsum("nij,nj->ni", trils, normal)


_log_prob = jax.jit(log_prob)
_log_probs = jax.jit(jax.vmap(jax.vmap(log_prob)))
