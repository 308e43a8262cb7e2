"""A small tempered sequential Monte Carlo sampler, right and with planted faults."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp

import whence as wh


class Tempered(wh.AbstractEngine):
    """From prior to posterior of a `GaussianMean` in adaptive steps.

    Each step raises the power of the likelihood so far that the effective sample size of
    the incremental weights is half of all, reweights, resamples systematically, and moves
    every particle by random-walk Metropolis.

    Faults: `"increment sign"`, the search for the next power weighs with the wrong sign, so
    that it stalls and the run ends before the posterior; `"weight sign"`, the weights
    themselves have it; `"sum of weights"`, the evidence takes the sum of the weights for
    their mean; `"not resampled"`, particles are moved but their weights forgotten; `"moves
    on the prior"`, which forget the likelihood.

    References:
        Del Moral, Doucet and Jasra (2006), doi:10.1111/j.1467-9868.2006.00553.x.
    """

    particles: int = 4_000
    steps: int = 12
    moves: int = 12
    fault: str = ""

    @property
    def name(self):
        return "Tempered"

    @property
    def schedule(self):
        return wh.Schedule(replicas=1, warmup=0, steps=self.steps)

    def validate(self, target):
        pass

    def init(self, target, *, key):
        shape = (self.particles, target.y.shape[1])
        x = target.prior_mean + target.prior_sd * jr.normal(key, shape, target.y.dtype)
        zero = jnp.zeros((), x.dtype)
        return {"x": x, "power": zero, "log_evidence": zero, "variance": zero}

    def step(self, target, state, index, *, key):
        key_resample, key_move = jr.split(key)
        x, power = state["x"], state["power"]
        likelihood = jax.vmap(lambda x: target.log_likelihood(x).sum())
        terms = likelihood(x)
        increment = self._increment(terms, 1 - power)
        log_weights = increment * (-terms if self.fault == "weight sign" else terms)
        log_mean = logsumexp(log_weights)
        if self.fault != "sum of weights":
            log_mean -= jnp.log(self.particles)
        relative = jnp.exp(log_weights - logsumexp(log_weights)) * self.particles
        power = power + increment
        if self.fault != "not resampled":
            x = x[_systematic(relative / self.particles, key_resample)]

        def density(x):
            prior = jax.vmap(target.log_prior)(x)
            return (
                prior if self.fault == "moves on the prior" else prior + power * likelihood(x)
            )

        state = {
            "x": self._moved(density, x, key_move),
            "power": power,
            "log_evidence": state["log_evidence"] + log_mean,
            "variance": state["variance"] + relative.var() / self.particles,
        }
        return state, wh.Info(None, {"power": power})

    def _increment(self, terms, largest):
        """Bisect for the increment that leaves half of the particles."""
        sign = -1 if self.fault == "increment sign" else 1

        def enough(increment):
            log_weights = sign * increment * terms
            ess = jnp.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))
            return ess >= self.particles / 2

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            good = enough(middle)
            return jnp.where(good, middle, low), jnp.where(good, high, middle)

        low, _ = jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(largest), largest))
        return jnp.where(enough(largest), largest, low)

    def _moved(self, density, x, key):
        scale = 2.38 / x.shape[1] ** 0.5 * x.std(axis=0)  # Gelman, Roberts and Gilks (1996)

        def move(x, key):
            key_move, key_accept = jr.split(key)
            new = x + scale * jr.normal(key_move, x.shape, x.dtype)
            log_uniform = jnp.log(jr.uniform(key_accept, x.shape[:1], x.dtype))
            accept = log_uniform < density(new) - density(x)
            return jnp.where(accept[:, None], new, x), None

        return jax.lax.scan(move, x, jr.split(key, self.moves))[0]

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        return wh.RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(
            state["x"],  # one replica: its axis is that of chains
            {},
            method="smc",
            log_evidence=float(state["log_evidence"][0]),
            log_evidence_error=float(state["variance"][0] ** 0.5),
        )


def _systematic(weights, key):
    count = weights.size
    points = (jnp.arange(count) + jr.uniform(key, dtype=weights.dtype)) / count
    return jnp.clip(jnp.searchsorted(jnp.cumsum(weights), points), 0, count - 1)
