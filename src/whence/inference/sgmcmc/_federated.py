"""Gradients of data that lie in shards, one of which is visited at a time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from ...core._convert import number, one_of, whole
from ...core._rows import check_rows
from ...core._sites import from_site, gather_sites
from ...core._target import AbstractDataTarget, AbstractTarget, local_names
from ...core._types import PRNGKey
from ._gradient import AbstractGradient, Count, Estimate, Space, Vector, batch_field, rows_of
from ._surrogate import SURROGATES, Surrogates, fit_surrogates


def as_shards(value: Any) -> int | str | tuple[int, ...]:
    """Return `shards`: their number, the rows of each, or `"processes"`."""
    if isinstance(value, str) and value == "processes":
        return value
    if isinstance(value, tuple):
        return tuple(whole("shards", least=1)(rows) for rows in value)
    return whole("shards", least=1)(value)


def as_probabilities(value: Any) -> tuple[float, ...] | None:
    """Return `probabilities` as numbers with a sum of one, or None."""
    if value is None:
        return None
    if not isinstance(value, tuple) or not value:
        raise ValueError(
            f"`probabilities` must be a tuple, one number per shard, or None; got {value!r}."
        )
    each = tuple(number("probabilities", above=0)(p) for p in value)
    if abs(sum(each) - 1) > 1e-6:
        raise ValueError(f"`probabilities` must have a sum of 1; got {value!r}.")
    return each


class Visit(eqx.Module):
    """Where the chain is.

    Attributes:
        shard: Number of the shard that is visited.
        surrogates: Of all shards; None without.
    """

    shard: Int[Array, ""]
    surrogates: Surrogates | None


class FederatedGradient(AbstractGradient):
    """A batch of one shard, which stays the same for some steps, and a conducive gradient.

    The gradient is that of `log p(x) + N_s / (f_s b)` times the sum over a batch of the shard
    `s`, drawn with probability `f_s`: the distributed estimate (DSGLD). Shards that differ make
    it noisy, and after many local steps the chain has settled in the posterior of one shard.
    The conducive gradient, of `sum_r log q_r(x) - log q_s(x) / f_s` with a Gaussian surrogate
    `q_s` of each shard's likelihood, has mean zero over shards and takes that noise away as far
    as the surrogates are right (FSGLD). Surrogates are made once, before the first update.

    Rows belong to shards in their order: sort the data by shard. Batches are drawn from the
    shard with replacement. With `shards="processes"` each process of `whence.distributed` has a
    target of its own rows, its shard. All follow the same chain; the one whose shard is visited
    tells the others a gradient, and at the start each tells its surrogate. Rows stay.

    Attributes:
        shards: Number of shards of about equal size, a tuple of the rows of each, or
            `"processes"`.
        batch_size: Rows per batch; None for as many as the smallest shard has.
        local_steps: Evaluations before another shard is drawn.
        probabilities: `f_s`; None for proportional to the rows of the shards.
        surrogate: `"laplace"`, an expansion of the shard's likelihood at the mode of its own
            posterior; `"local"`, mean and covariance of a chain there; `"none"` for DSGLD.

    References:
        El Mekkaoui, Mesquita, Blomstedt and Kaski (2021), "Federated stochastic gradient
        Langevin dynamics", UAI, arXiv:2004.11231.
        Ahn, Shahbaba and Welling (2014), "Distributed stochastic gradient MCMC", ICML.
        [surrogate: none]
    """

    shards: int | str | tuple[int, ...] = eqx.field(default=2, converter=as_shards)
    batch_size: int | None = batch_field()
    local_steps: int = eqx.field(default=1, converter=whole("local_steps", least=1))
    probabilities: tuple[float, ...] | None = eqx.field(
        default=None, converter=as_probabilities
    )
    surrogate: str = eqx.field(default="laplace", converter=one_of("surrogate", SURROGATES))
    batching: str = eqx.field(default="iid", init=False)
    is_local: bool = eqx.field(default=True, init=False)
    shows_density: bool = eqx.field(default=False, init=False)
    streams: bool = eqx.field(default=False, init=False)

    def __check_init__(self):
        if self.probabilities is not None and len(self.probabilities) != self.number:
            raise ValueError(
                f"`probabilities` must have one entry for each of the {self.number} shards; "
                f"got {self.probabilities!r}."
            )

    def validate(self, target: AbstractTarget) -> None:
        rows = rows_of(target)
        if not rows:
            raise ValueError(
                "`shards` needs a target whose likelihood is a product over data rows; got "
                f"{self.shards} with {type(target).__name__}."
            )
        sizes = self.sizes(rows)
        if sum(sizes) != rows or min(sizes) < 1:
            raise ValueError(
                f"`shards` must divide the {rows} data rows among them, at least one to each; "
                f"got {self.shards!r}."
            )
        if self.batch_size is not None and self.batch_size > min(sizes):
            raise ValueError(
                "`batch_size` must be at most the number of data rows of the smallest shard, "
                f"{min(sizes)}; got {self.batch_size}."
            )
        split = self.surrogate != "none" or self.probabilities is not None or self.sites
        if local_names(target) and split:
            raise ValueError(
                "With local latents `surrogate` must be 'none', `probabilities` None and "
                "`shards` in one process, since each shard has latents of its own; got "
                f"{self.surrogate!r}, {self.probabilities!r}, {self.shards!r}."
            )
        check_rows(target, self.batch_size or min(sizes))

    def work(self, target: AbstractTarget) -> int | None:
        return self._batch(rows_of(target))

    @property
    def sites(self) -> int:
        """Processes with rows of their own; 0 if this one has all."""
        several = self.shards == "processes" and jax.process_count() > 1
        return jax.process_count() if several else 0

    @property
    def number(self) -> int:
        """Number of shards."""
        if isinstance(self.shards, str):
            return jax.process_count()
        return self.shards if isinstance(self.shards, int) else len(self.shards)

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Return the rows of each shard that is in this process."""
        if isinstance(self.shards, str):
            return (rows,)
        if isinstance(self.shards, tuple):
            return self.shards
        return tuple(len(part) for part in np.array_split(np.arange(rows), self.shards))

    def init(self, space: Space, flat: Vector, *, key: PRNGKey) -> Visit:
        shard = jnp.zeros((), jnp.int32)
        if self.surrogate == "none":
            return Visit(shard, None)
        sizes = self.sizes(rows_of(space.target))
        own = fit_surrogates(space, flat, sizes, self.surrogate, key=key)
        return Visit(shard, jax.tree.map(gather_sites, own) if self.sites else own)

    def estimate(
        self, space: Space, flat: Vector, state: Visit, counter: Count, *, key: PRNGKey
    ) -> Estimate:
        target, known = space.target, rows_of(space.target)
        sizes = np.tile(self.sizes(known), self.sites or 1)  # elsewhere as many rows as here
        share = sizes / sizes.sum()
        share = share if self.probabilities is None else np.asarray(self.probabilities)
        key_shard, key_rows = jr.split(key)
        drawn = jr.categorical(key_shard, jnp.asarray(np.log(share), flat.dtype))
        arrives = counter % self.local_steps == 0
        s = jnp.where(arrives, drawn.astype(jnp.int32), state.shard)
        begin = np.zeros_like(sizes) if self.sites else np.cumsum(sizes) - sizes
        first, here = (jnp.asarray(x, jnp.int32)[s] for x in (begin, sizes))
        rows = first + jr.randint(key_rows, (self._batch(known),), 0, here, jnp.int32)
        # Of a batch of the shard the estimate is right up to this factor on the likelihood.
        factor = jnp.asarray(sizes / (known * share), flat.dtype)[s]

        def density(x):
            estimate = space.log_density(x, rows)
            if self.probabilities is None and not self.sites:
                return estimate
            assert isinstance(target, AbstractDataTarget)
            prior = target.log_prior(space.form(x))
            return prior + factor * (estimate - prior)

        log_density, gradient = jax.value_and_grad(density)(flat)
        if self.sites:
            log_density, gradient = from_site(s, (log_density, gradient))
        if state.surrogates is not None:
            weight = jnp.asarray(1 / share, flat.dtype)[s]
            gradient = gradient + state.surrogates.conducive(s, weight, flat)
        return log_density, gradient, Visit(s, state.surrogates)

    def _batch(self, rows: int) -> int:
        return self.batch_size or min(self.sizes(rows))
