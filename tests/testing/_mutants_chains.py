"""Small Markov chains, each right and, with a `fault`, wrong in a way that has been shipped."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

import whence as wh
from whence.core._data import log_density_estimate


class Toy(wh.AbstractEngine):
    """What the engines here share: a schedule, no stopping rule, every step a draw.

    Attributes:
        steps: Steps of each chain, warm-up included.
        warmup: Steps left out.
        fault: What is wrong, or empty.
    """

    steps: int = 2_500
    warmup: int = 500
    fault: str = ""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def schedule(self) -> wh.Schedule:
        return wh.Schedule(replicas=4, warmup=self.warmup, steps=self.steps)

    def validate(self, target):
        pass

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        return wh.RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(trace.sampling.position, trace.sampling.stats, method="mcmc")


class Walk(Toy):
    """Metropolis-Hastings with steps `scale * Normal(drift, 1)`, ten moves a step.

    Faults: `"sign"`, the acceptance ratio upside down; `"stale density"`, after a move the
    density is still that of the old place; `"no Hastings ratio"`, the proposal passes for
    symmetric.

    References:
        Hastings (1970), doi:10.1093/biomet/57.1.97.
    """

    scale: float = 1.0
    drift: float = 0.0

    def init(self, target, *, key):
        position = target.init(key=key)
        return position, target.log_density(position)

    def step(self, target, state, index, *, key):
        def move(state, key):
            position, density = state
            key_move, key_accept = jr.split(key)
            flat, unravel = ravel_pytree(position)
            noise = jr.normal(key_move, flat.shape, flat.dtype)
            new = unravel(flat + self.scale * (noise + self.drift))
            new_density = target.log_density(new)
            gain = new_density - density
            if self.fault != "no Hastings ratio":  # the way back needs noise -(z + 2 drift)
                gain += jnp.sum(noise**2 - (noise + 2 * self.drift) ** 2) / 2
            if self.fault == "sign":
                gain = -gain
            accept = jnp.log(jr.uniform(key_accept, dtype=flat.dtype)) < gain
            if self.fault == "stale density":
                new_density = density
            return choose(accept, (new, new_density), state), None

        state, _ = jax.lax.scan(move, state, jr.split(key, 10))
        return state, wh.Info(state[0], {})


class HMC(Toy):
    """Hamiltonian Monte Carlo with a unit metric (Neal 2011, chapter 5).

    Faults: `"energy sign"`, the change of energy in the acceptance with the wrong sign;
    `"no refresh"`, momentum drawn once and for all; `"kinetic energy left out"` of the
    acceptance; `"gradient sign"` of the force.
    """

    step_size: float = 0.8
    num_steps: int = 4

    def init(self, target, *, key):
        key_position, key_momentum = jr.split(key)
        position = target.init(key=key_position)
        flat = ravel_pytree(position)[0]
        return position, jr.normal(key_momentum, flat.shape, flat.dtype)

    def step(self, target, state, index, *, key):
        position, momentum = state
        flat, unravel = ravel_pytree(position)
        density = lambda flat: target.log_density(unravel(flat))
        key_momentum, key_accept = jr.split(key)
        if self.fault != "no refresh":
            momentum = jr.normal(key_momentum, flat.shape, flat.dtype)
        half = self.step_size / 2 * (-1 if self.fault == "gradient sign" else 1)

        def leapfrog(_, carry):
            x, p = carry
            p = p + half * jax.grad(density)(x)
            x = x + self.step_size * p
            return x, p + half * jax.grad(density)(x)

        new, new_momentum = jax.lax.fori_loop(0, self.num_steps, leapfrog, (flat, momentum))
        gain = density(new) - density(flat)
        if self.fault != "kinetic energy left out":
            gain += (momentum @ momentum - new_momentum @ new_momentum) / 2
        if self.fault == "energy sign":
            gain = -gain
        accept = jnp.log(jr.uniform(key_accept, dtype=flat.dtype)) < gain
        flat, momentum = choose(accept, (new, new_momentum), (flat, -momentum))
        return (unravel(flat), momentum), wh.Info(unravel(flat), {})


class Thermostat(Toy):
    """The stochastic-gradient Nose-Hoover thermostat, on the whole gradient.

    The friction grows while the kinetic energy `p.p / 2` is above its mean at temperature
    one, `d / 2`. Fault `"norm"`: it compares the norm `|p|` in place of its square.

    References:
        Ding et al. (2014), "Bayesian sampling using stochastic gradient thermostats", NIPS.
    """

    steps: int = 3_000
    step_size: float = 0.02
    diffusion: float = 1.0
    updates: int = 50

    def init(self, target, *, key):
        position = target.init(key=key)
        flat = ravel_pytree(position)[0]
        return position, jnp.zeros_like(flat), jnp.full((), self.diffusion, flat.dtype)

    def step(self, target, state, index, *, key):
        h = self.step_size
        unravel = ravel_pytree(state[0])[1]
        gradient = jax.grad(lambda flat: target.log_density(unravel(flat)))

        def update(carry, key):
            x, p, friction = carry
            noise = jnp.sqrt(2 * self.diffusion * h) * jr.normal(key, p.shape, p.dtype)
            p = p + h * gradient(x) - h * friction * p + noise
            x = x + h * p
            heat = jnp.linalg.norm(p) if self.fault == "norm" else p @ p
            return (x, p, friction + h * (heat / p.size - 1)), None

        start = (ravel_pytree(state[0])[0], *state[1:])
        (x, p, friction), _ = jax.lax.scan(update, start, jr.split(key, self.updates))
        return (unravel(x), p, friction), wh.Info(unravel(x), {})


class Langevin(Toy):
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), independent batches.

    Faults: `"same batch"`, the key of the batch is not advanced within a step; `"prior per
    batch"`, prior and likelihood are scaled up together; `"gradient sign"`; `"half noise"`,
    noise of variance `h` in place of `2 h`.
    """

    step_size: float = 0.001
    batch_size: int = 5
    updates: int = 20

    def init(self, target, *, key):
        return target.init(key=key)

    def step(self, target, state, index, *, key):
        h, count = self.step_size, target.num_data
        noise_sd = jnp.sqrt(h if self.fault == "half noise" else 2 * h)
        sign = -1 if self.fault == "gradient sign" else 1

        def estimate(position, rows):
            if self.fault == "prior per batch":
                likelihood = target.log_likelihood(position, rows).sum()
                return count / rows.size * (target.log_prior(position) + likelihood)
            return log_density_estimate(target, position, rows)

        def update(position, keys):
            rows = jr.randint(keys[0], (self.batch_size,), 0, count)
            gradient = jax.grad(estimate)(position, rows)
            noise = noise_sd * jr.normal(keys[1], position.shape, position.dtype)
            return position + h * sign * gradient + noise, None

        key_batch, key_noise = jr.split(key)
        batches, noises = jr.split(key_batch, self.updates), jr.split(key_noise, self.updates)
        if self.fault == "same batch":
            batches = jnp.broadcast_to(key_batch, batches.shape)
        state, _ = jax.lax.scan(update, state, (batches, noises))
        return state, wh.Info(state, {})


class Conjugate(Toy):
    """Independent draws from the posterior of a normal mean.

    Fault `"variance"`: the standard deviation of the noise where its variance belongs.
    """

    steps: int = 99
    warmup: int = 0
    prior_sd: float = 2.0
    noise_sd: float = 0.3

    @property
    def schedule(self):
        return wh.Schedule(1, self.warmup, self.steps)

    def init(self, target, *, key):
        return jnp.zeros(())

    def step(self, target, state, index, *, key):
        noise = self.noise_sd if self.fault == "variance" else self.noise_sd**2
        variance = 1 / (self.prior_sd**-2 + target.y.size / noise)
        draw = variance * target.y.sum() / noise + jnp.sqrt(variance) * jr.normal(key)
        return state, wh.Info({"mu": draw}, {})


class Stretch(wh.AbstractEngine):
    """The affine-invariant stretch move on two halves of an ensemble.

    A walker moves along the line through a walker of the other half, which stands still
    meanwhile. Fault `"itself"`: the second half moves along lines through itself. With two
    walkers in a half these fall together; the more walkers, the smaller the error.

    References:
        Goodman and Weare (2010), doi:10.2140/camcos.2010.5.65.
    """

    walkers: int = 4
    steps: int = 3_000
    stretch: float = 2.0
    moves: int = 10
    fault: str = ""

    @property
    def name(self):
        return "Stretch"

    @property
    def schedule(self):
        return wh.Schedule(replicas=1, warmup=self.steps // 6, steps=self.steps)

    def validate(self, target):
        pass

    def init(self, target, *, key):
        return jax.vmap(lambda k: target.init(key=k))(jr.split(key, self.walkers))

    def step(self, target, state, index, *, key):
        half = self.walkers // 2

        def sweep(ensemble, key):
            key_first, key_second = jr.split(key)
            first, second = ensemble[:half], ensemble[half:]
            first = self._move(target, first, second, key_first)
            other = second if self.fault == "itself" else first
            second = self._move(target, second, other, key_second)
            return jnp.concatenate([first, second]), None

        state, _ = jax.lax.scan(sweep, state, jr.split(key, self.moves))
        return state, wh.Info(state, {})

    def _move(self, target, ours, others, key):
        count, dim = ours.shape
        key_partner, key_stretch, key_accept = jr.split(key, 3)
        partner = others[jr.randint(key_partner, (count,), 0, len(others))]
        # By inversion: the density of the stretch is 1 / sqrt(z) between 1 / a and a.
        root = jnp.sqrt(self.stretch)
        z = (1 / root + jr.uniform(key_stretch, (count, 1)) * (root - 1 / root)) ** 2
        new = partner + z * (ours - partner)
        density = jax.vmap(target.log_density)
        gain = (dim - 1) * jnp.log(z[:, 0]) + density(new) - density(ours)
        accept = jnp.log(jr.uniform(key_accept, (count,))) < gain
        return jnp.where(accept[:, None], new, ours)

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        return wh.RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(np.swapaxes(trace.sampling.position[0], 0, 1), {}, method="mcmc")


def choose(accept, new, old):
    """Return one of two pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)


def with_fault(engine, fault):
    """Return an engine with a mistake."""
    return eqx.tree_at(lambda e: e.fault, engine, fault)
