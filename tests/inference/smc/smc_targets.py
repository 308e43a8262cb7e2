"""Targets with known evidence, and many runs of an engine at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.stats import norm
from scipy.stats import multivariate_normal

from whence.core._target import AbstractDataTarget


class Conjugate(AbstractDataTarget):
    """x ~ N(0, I) and rows of y ~ N(x, 0.25 I)."""

    y: jax.Array

    @classmethod
    def simulate(cls, dim, dtype=float):
        rng = np.random.default_rng(dim)
        return cls(jnp.asarray(1.0 + 0.5 * rng.normal(size=(20, dim)), dtype))

    @property
    def num_data(self):
        return self.y.shape[0]

    def init(self, *, key):
        return {"x": jr.uniform(key, self.y.shape[1:], self.y.dtype, -2.0, 2.0)}

    def sample_prior_position(self, *, key):
        return {"x": jr.normal(key, self.y.shape[1:], self.y.dtype)}

    def log_prior(self, position):
        return norm.logpdf(position["x"]).sum()

    def log_likelihood(self, position, rows=None):
        y = self.y if rows is None else self.y[rows]
        return norm.logpdf(y, position["x"][None], 0.5).sum(1)

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position):
        return position

    @property
    def log_evidence(self):
        y = np.asarray(self.y, float)
        cov = 0.25 * np.eye(len(y)) + 1.0
        return multivariate_normal(np.zeros(len(y)), cov).logpdf(y.T).sum()

    @property
    def mean(self):
        return np.asarray(self.y, float).sum(0) * 4.0 / (1.0 + 4.0 * len(self.y))

    @property
    def sd(self):
        return (1.0 + 4.0 * len(self.y)) ** -0.5


class OneDimension(AbstractDataTarget):
    """x ~ N(0, scale^2) with a log likelihood that is a function; everything by quadrature."""

    log_likelihood_at: object = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=1.0)

    @property
    def num_data(self):
        return None

    def init(self, *, key):
        return jr.uniform(key, (1,), float, -2.0, 2.0)

    def sample_prior_position(self, *, key):
        return self.scale * jr.normal(key, (1,))

    def log_prior(self, position):
        return norm.logpdf(position, 0.0, self.scale).sum()

    def log_likelihood(self, position, rows=None):
        return self.log_likelihood_at(position[0])

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position)

    def constrain(self, position):
        return {"x": position}

    def expect(self, function):
        """Return the evidence and the posterior expectation of a function."""
        x = np.linspace(-12.0 * self.scale, 12.0 * self.scale, 400_001)
        values = jax.vmap(lambda v: self.log_density(jnp.atleast_1d(v)))(jnp.asarray(x))
        density = np.exp(np.asarray(values))
        density[~np.isfinite(density)] = 0.0
        total = density.sum()
        return np.log(total * (x[1] - x[0])), (density * function(x)).sum() / total


def final_state(engine, target, key, step=None):
    """Run an engine to its end in one traced loop; `vmap` it for many runs at once."""
    key_init, key_steps = jr.split(key)
    step = engine.step if step is None else step

    def unfinished(carry):
        index, state = carry
        return (index < engine.schedule.steps) & ~engine.done(state)

    def advance(carry):
        index, state = carry
        state, _ = step(target, state, index, key=jr.fold_in(key_steps, index))
        return index + 1, state

    start = (jnp.asarray(0, jnp.int32), engine.init(target, key=key_init))
    return jax.lax.while_loop(unfinished, advance, start)[1]


def repeat(engine, target, key, runs, function, step=None):
    """Return evidence, its error, and `function(x)` averaged over particles, run by run."""

    def one(key):
        cloud = final_state(engine, target, key, step)
        weights = jnp.exp(cloud.log_weights)
        values = jax.vmap(function)(cloud.particles.x)
        return {
            "log_evidence": cloud.log_evidence.value,
            "variance": cloud.evidence_variance,
            "mixing": cloud.mixing_variance,
            "mean": weights @ values,
            "plain": values.mean(0),
            "done": cloud.control.finished,
            "x": cloud.particles.x,
            "weights": weights,
            "founders": cloud.founders,
        }

    many = eqx.filter_jit(lambda keys: jax.vmap(one)(keys))(jr.split(key, runs))
    return {name: np.asarray(value) for name, value in many.items()}
