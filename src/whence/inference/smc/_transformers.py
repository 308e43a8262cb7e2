"""Inference as transformers: populations of weighted points, put together from small parts.

A population is points with weights whose sum, the mass, need not be 1. A function of a key
that returns one stands for the measure `mu` with `mu(f) = E sum_i w_i f(x_i)` for all
functions f. A transformer takes a population and a key, and does one thing to the measure:

    spawn(draw, num)        none before it: the law of `draw`
    extend(step)            each point goes on by a random step: `mu K`
    score(log_factor)       `g mu`
    resample()              the same
    move(kernel)            the same, if the kernel leaves it invariant
    marginal(function)      its image under the function
    push_evidence(inner)    each point gets a population of its own, whose mass goes to the
                            weight of the point: `mu(dx) Q(dp | x) mass(p)`
    flatten()               points of points, each with the product of both weights

What is made of right parts is right: `then(spawn, score, along(resample, extend, score))` is
sequential Monte Carlo, with `move` after `resample` resample-move; `particle_mh`, a kernel on
points with populations, makes SMC squared of steps that push evidence.

References:
    Scibior, Kammar and Ghahramani (2018), "Functional programming for modular Bayesian
    inference", doi:10.1145/3236778; validated by Scibior and others, doi:10.1145/3158148.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PyTree

from ...core._convert import number, one_of, whole
from ...core._types import PRNGKey, Scalar
from .._settings import named
from ._resampling import SCHEMES, AbstractResampling
from ._weights import effective_sample_size, equal_log_weights, normalise, wide_dtype

Transformer = Callable[..., "Population"]  # of a population (`spawn`: of none) and `key=`
Step = Callable[[Any, PRNGKey], Any]  # of a point and a key


class Population(eqx.Module):
    """Points with weights that need not sum to 1.

    Attributes:
        values: A pytree whose leaves have a leading axis `particle`.
        log_weights: In nats, `(particle,)`; `-inf` is a weight of zero.
    """

    values: PyTree
    log_weights: Float[Array, " particle"]

    @property
    def log_mass(self) -> Scalar:
        """Log of the sum of the weights, in nats: of a posterior, the log evidence."""
        return logsumexp(self.log_weights)

    def mean(self, function: Callable[[Any], Any]) -> Any:
        """Return the weighted mean of a function of one point."""
        weights = jnp.exp(normalise(self.log_weights)[0])
        each = jax.vmap(function)(self.values)
        return jax.tree.map(lambda v: jnp.tensordot(weights, v.astype(weights.dtype), 1), each)


class Nested(eqx.Module):
    """A point that has a population of its own.

    Attributes:
        value: The point.
        population: Its population, of mass 1.
        log_mass: Log of the mass that the population had, all told, in nats.
    """

    value: PyTree
    population: Population
    log_mass: Scalar


def spawn(draw: Callable[[PRNGKey], Any], num: int) -> Transformer:
    """Return what makes `num` equally weighted points, of mass 1, by a function of a key."""
    whole("num", least=1)(num)

    def transform(*, key: PRNGKey) -> Population:
        return Population(jax.vmap(draw)(jr.split(key, num)), equal_log_weights(num))

    return transform


def extend(step: Step) -> Transformer:
    """Return what lets each point go on by a random step, to a point of any structure."""

    def transform(population: Population, *, key: PRNGKey) -> Population:
        keys = jr.split(key, len(population.log_weights))
        return Population(jax.vmap(step)(population.values, keys), population.log_weights)

    return transform


def marginal(function: Callable[[Any], Any]) -> Transformer:
    """Return what keeps a function of each point and forgets the rest."""
    return extend(lambda value, key: function(value))


def score(log_factor: Callable[[Any], Any]) -> Transformer:
    """Return what multiplies weights by a factor: in nats, of a point; NaN is one of zero."""

    def transform(population: Population, *, key: PRNGKey) -> Population:
        gain = jax.vmap(log_factor)(population.values)
        gain = jnp.where(jnp.isnan(gain), -jnp.inf, gain).astype(wide_dtype())
        return Population(population.values, population.log_weights + gain)

    return transform


def resample(
    scheme: str | AbstractResampling = "systematic", threshold: float | int = 1.0
) -> Transformer:
    """Return what copies points by their weights, which are equal then, and leaves the mass.

    Args:
        scheme: As `resampling` of `ParticleFilter`.
        threshold: Likewise. A population without mass stays as it is.
    """
    scheme = one_of("scheme", SCHEMES, kind=AbstractResampling)(scheme)
    share = number("threshold", least=0, most=1)(threshold)

    def transform(population: Population, *, key: PRNGKey) -> Population:
        num = len(population.log_weights)
        log_weights, log_mass = normalise(population.log_weights)
        few = effective_sample_size(log_weights) <= share * num
        uneven = few & jnp.isfinite(log_mass)
        weights = jnp.where(uneven, jnp.exp(log_weights), 1.0 / num)
        ancestors = named(scheme, SCHEMES)(weights, key=key).astype(jnp.int32)
        ancestors = jnp.where(uneven, ancestors, jnp.arange(num, dtype=jnp.int32))
        values = jax.tree.map(lambda v: v[ancestors], population.values)
        equal = log_mass + equal_log_weights(num)
        return Population(values, jnp.where(uneven, equal, population.log_weights))

    return transform


def move(kernel: Step, steps: int = 1) -> Transformer:
    """Return what moves points by a kernel that leaves the measure invariant, `steps` times."""
    count = int(whole("steps", least=1)(steps))

    def several(value: Any, key: PRNGKey) -> Any:
        return jax.lax.scan(lambda v, k: (kernel(v, k), None), value, jr.split(key, count))[0]

    return extend(several)


def _nested(value: Any, found: Population) -> Nested:
    log_weights, log_mass = normalise(found.log_weights)
    return Nested(value, Population(found.values, log_weights), log_mass)


def push_evidence(inner: Callable[[Any, PRNGKey], Population]) -> Transformer:
    """Return what gives each point a population, and its mass to the weight of the point.

    `inner` makes it, of a point and a key. Points that have one already are `Nested`: `inner`
    goes on with it, and weights grow by the new mass.
    """

    def one(value: Any, key: PRNGKey) -> tuple[Nested, Scalar]:
        own = value.value if isinstance(value, Nested) else value
        new = _nested(own, inner(value, key))
        before = value.log_mass if isinstance(value, Nested) else jnp.zeros_like(new.log_mass)
        return Nested(own, new.population, before + new.log_mass), new.log_mass

    def transform(population: Population, *, key: PRNGKey) -> Population:
        found = extend(one)(population, key=key)
        nested, gain = found.values
        return Population(nested, found.log_weights + gain)

    return transform


def flatten() -> Transformer:
    """Return what makes one population, of pairs, of points with populations."""

    def transform(population: Population, *, key: PRNGKey) -> Population:
        inner = population.values.population
        size = inner.log_weights.shape[1]
        outer = jax.tree.map(lambda v: jnp.repeat(v, size, 0), population.values.value)
        values = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), inner.values)
        log_weights = population.log_weights[:, None] + inner.log_weights
        return Population((outer, values), log_weights.ravel())

    return transform


def then(first: Transformer, *others: Transformer) -> Transformer:
    """Return transformers one after the other; each has a key of its own."""

    def transform(*population: Population, key: PRNGKey) -> Population:
        keys = jr.split(key, 1 + len(others))
        found = first(*population, key=keys[0])
        for i, other in enumerate(others):
            found = other(found, key=keys[i + 1])
        return found

    return transform


def along(step: Callable[[Any], Transformer], inputs: PyTree) -> Transformer:
    """Return the transformer of each row of `inputs` in turn, as a loop compiled once."""

    def transform(population: Population, *, key: PRNGKey) -> Population:
        keys = jr.split(key, len(jax.tree.leaves(inputs)[0]))
        advance = lambda found, at: (step(at[0])(found, key=at[1]), None)
        return jax.lax.scan(advance, population, (inputs, keys))[0]

    return transform


def metropolis(log_density: Callable[[Any], Any], propose: Step) -> Step:
    """Return the Metropolis kernel of a log density and a symmetric proposal; for `move`."""

    def kernel(value: Any, key: PRNGKey) -> Any:
        key_propose, key_accept = jr.split(key)
        new = propose(value, key_propose)
        rise = log_density(new) - log_density(value)
        accept = jnp.log(jr.uniform(key_accept, (), rise.dtype)) < rise  # never of NaN
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, value)

    return kernel


def particle_mh(
    inner: Callable[[Any, PRNGKey], Population], log_prior: Callable[[Any], Any], propose: Step
) -> Step:
    """Return the kernel of particle marginal Metropolis-Hastings, on `Nested` points.

    Their populations came from `inner`, and do so anew at each move; `log_prior` and `propose`,
    a step that is symmetric as a law, see the points alone.

    References:
        Andrieu, Doucet and Holenstein (2010), doi:10.1111/j.1467-9868.2009.00736.x.
    """

    def anew(nested: Nested, key: PRNGKey) -> Nested:
        key_propose, key_inner = jr.split(key)
        value = propose(nested.value, key_propose)
        return _nested(value, inner(value, key_inner))

    return metropolis(lambda n: log_prior(n.value) + n.log_mass, anew)
