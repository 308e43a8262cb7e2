"""Particle Gibbs with ancestor sampling: paths given parameters, parameters given paths."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PyTree

from ...core._convert import fraction, whole
from ...core._engine import Info, Sample, Trace
from ...core._feynman_kac import AbstractSequenceTarget, sequence_of
from ...core._flat import flat_view, position_shapes
from ...core._require import check_positions
from ...core._target import AbstractTarget
from ...core._types import Draw, PRNGKey
from ._filter import ParticleFilter
from ._moves import acceptance_probability
from ._particle_mh import AbstractParticleChains, adapted, find_visit, joined, jump
from ._smoothing import trace_back


class _State(eqx.Module):
    x: Float[Array, " dim"]  # parameters
    path: PyTree
    root: Float[Array, "dim dim"]  # of the proposal's covariance
    is_finite: Bool[Array, ""]


class ParticleGibbs(AbstractParticleChains):
    """Particle Gibbs with ancestor sampling on a state-space model.

    A sweep draws a path of states given the parameters by a particle filter that is conditioned
    on the path before, whose past is drawn anew at each time, and then moves the parameters
    given the path by a random walk whose covariance is adapted in warm-up. The draws have the
    exact joint posterior for any number of particles, two and more; other than `ParticleMH` it
    needs few of them however long the data are. Where paths nearly determine the parameters
    (a small noise of the state), sweeps are small steps.

    Attributes:
        particles: Number of particles of the filter, at least 2.
        chains: Independent chains.
        warmup: Sweeps of each chain that adapt the random walk; they are not draws.
        draws: Sweeps kept of each chain.
        moves: Steps of the random walk in a sweep.
        target_acceptance: Acceptance rate that the size of the random walk is adapted to.

    References:
        Lindsten, Jordan and Schoen (2014), "Particle Gibbs with ancestor sampling", JMLR 15.
        Andrieu, Doucet and Holenstein (2010), doi:10.1111/j.1467-9868.2009.00736.x.
        Vihola (2012), robust adaptive Metropolis, doi:10.1007/s11222-011-9269-5.
    """

    particles: int = eqx.field(default=30, converter=whole("particles", least=2))
    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=500, converter=whole("warmup", least=0))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    moves: int = eqx.field(default=5, converter=whole("moves", least=1))
    target_acceptance: float = eqx.field(default=0.3, converter=fraction("target_acceptance"))

    def validate(self, target: AbstractTarget) -> None:
        sequence = sequence_of(target)
        check_positions(sequence, self.name)
        if jax.tree.structure(position_shapes(target)) == jax.tree.structure(
            position_shapes(sequence)
        ):
            raise ValueError(
                "ParticleGibbs needs a target whose states are latents; those of this one are "
                "integrated out (say `exact=False` when the model is made) or discrete (use "
                "`ParticleMH`)."
            )

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> _State:
        here, root, is_finite = find_visit(target, ParticleFilter(self.particles), key=key)
        return _State(here.x, here.path, root, is_finite)

    def step(
        self, target: AbstractTarget, state: _State, index: Array, *, key: PRNGKey
    ) -> tuple[_State, Info]:
        key_path, key_moves = jr.split(key)
        sequence = sequence_of(target)
        unflatten = flat_view(sequence)[1]
        draw = sequence.constrain(unflatten(state.x))
        path = conditional_path(sequence, draw, state.path, self.particles, key=key_path)
        log_density = lambda x: target.log_density(sequence.join(unflatten(x), path))

        def move(i, carry):
            x, here, root, total = carry
            key_jump, key_accept = jr.split(jr.fold_in(key_moves, i))
            step, steps = index * self.moves + i, self.warmup * self.moves
            noise = jump(x, step, steps, key=key_jump)
            new = x + root @ noise
            there = log_density(new)
            chance = acceptance_probability(there - here)
            accept = jr.uniform(key_accept, (), chance.dtype) < chance
            root = adapted(root, noise, chance, self.target_acceptance, step, steps)
            return (
                jnp.where(accept, new, x),
                jnp.where(accept, there, here),
                root,
                total + chance,
            )

        here = log_density(state.x)
        start = state.x, here, state.root, jnp.zeros_like(here)
        x, here, root, total = jax.lax.fori_loop(0, self.moves, move, start)
        changed = jax.tree.map(lambda a, b: jnp.mean(a != b, dtype=x.dtype), path, state.path)
        stats = {
            "lp": here,
            "acceptance_rate": (total / self.moves).astype(x.dtype),
            "renewed": sum(jax.tree.leaves(changed)) / len(jax.tree.leaves(changed)),
        }
        return _State(x, path, root, state.is_finite), Info(position=(x, path), stats=stats)

    def posterior(
        self, target: AbstractTarget, state: _State, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        draws = trace.sampling
        assert draws is not None  # the loop asks only once there are draws
        positions, _ = joined(target, draws.position)
        return Sample(positions=positions, stats=dict(draws.stats), method="mcmc")


def conditional_path(
    sequence: AbstractSequenceTarget, draw: Draw, path: PyTree, particles: int, *, key: PRNGKey
) -> PyTree:
    """Return a path by a Markov kernel that leaves the law of paths given all data invariant.

    A bootstrap filter whose last particle is the path given; at each time the past of that
    particle is drawn by the weights of all, times the density of the way to where it is.

    Returns:
        A path, `(time, ...)`.
    """
    key_first, key_rest, key_last = jr.split(key, 3)
    at = lambda tree, index: jax.tree.map(lambda v: v[index], tree)
    pin = lambda states, own: jax.tree.map(lambda v, w: v.at[-1].set(w), states, own)

    def weights(states, time, datum):
        seen = jax.vmap(lambda x: sequence.log_potential(draw, x, time, datum))(states)
        return jnp.where(jnp.isnan(seen), -jnp.inf, seen)

    def step(carry, inputs):
        states, logs = carry
        own, time, key = inputs
        key_parent, key_own, key_move = jr.split(key, 3)
        datum = sequence.datum(time)
        parents = jr.categorical(key_parent, logs, shape=(particles,)).astype(jnp.int32)
        ways = jax.vmap(lambda x: sequence.log_transition(draw, x, own, time, datum))(states)
        ways = jnp.where(jnp.isnan(ways), -jnp.inf, ways)
        past = jr.categorical(key_own, logs + ways.astype(logs.dtype)).astype(jnp.int32)
        parents = parents.at[-1].set(past)
        go = lambda x, k: sequence.transition(draw, x, time, datum, key=k)
        states = jax.vmap(go)(at(states, parents), jr.split(key_move, particles))
        states = pin(states, own)
        logs = weights(states, time, datum)
        return (states, logs), (states, parents)

    zero = jnp.asarray(0, jnp.int32)
    begin = lambda k: sequence.initial(draw, key=k)
    first = pin(jax.vmap(begin)(jr.split(key_first, particles)), at(path, 0))
    logs = weights(first, zero, sequence.datum(zero))
    times = jnp.arange(1, sequence.num_times, dtype=jnp.int32)
    rest = jax.tree.map(lambda v: v[1:], path)
    inputs = (rest, times, jr.split(key_rest, len(times)))
    (_, logs), (states, parents) = jax.lax.scan(step, (first, logs), inputs)
    join = lambda a, b: jnp.concatenate([a[None], b])
    own = jnp.arange(particles, dtype=jnp.int32)
    return trace_back(jax.tree.map(join, first, states), join(own, parents), logs, key=key_last)
