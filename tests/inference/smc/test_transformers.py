"""Laws of transformers by exact enumeration: every outcome of all random numbers.

A program runs on keys whose random bits are not random: each number that the program asks for
is one of a few cells of equal probability, and the program is run for all combinations. As
long as a program compares its numbers with multiples of the cells only, the mean over runs
is the exact expectation.
"""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.random import define_prng_impl
from numpy.testing import assert_allclose

from whence.inference.smc import (
    Nested,
    Population,
    along,
    extend,
    flatten,
    marginal,
    metropolis,
    move,
    particle_mh,
    push_evidence,
    resample,
    score,
    spawn,
    then,
)

BRANCHES = 16  # twice the most children of a key


def _keys(size, bits):
    """Return the kind of keys whose numbers come from `bits(name, width, data)`."""

    def named(data, names):
        rest = jnp.broadcast_to(data[1:], (*names.shape, size))
        return jnp.concatenate([names[..., None], rest], axis=-1)

    def split(data, shape):
        children = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.uint32) + jnp.uint32(1)
        return named(data, (data[0] * jnp.uint32(BRANCHES) + children).reshape(shape))

    def random_bits(data, width, shape):
        count = int(np.prod(shape, dtype=int))
        names = data[0] * jnp.uint32(BRANCHES) + jnp.arange(count, dtype=jnp.uint32)
        high = bits(names + jnp.uint32(BRANCHES // 2), width, data[1:]).astype(jnp.uint64)
        kept = high << jnp.uint64(width - 32) if width > 32 else high >> jnp.uint64(32 - width)
        return kept.astype(f"uint{width}").reshape(shape)

    return define_prng_impl(
        key_shape=(1 + size,),
        seed=lambda seed: jnp.zeros(1 + size, jnp.uint32),
        split=split,
        random_bits=random_bits,
        fold_in=lambda data, number: split(data, (BRANCHES,))[number],
        name="enumerated",
        tag=f"enum{size}",
    )


def expect(program, coins=2, uniforms=12):
    """Return the exact mean of what a function of a key returns.

    Args:
        program: The function; its outcomes depend on bytes (`coin`) and uniforms.
        coins: Cells of a byte.
        uniforms: Cells of a uniform.
    """
    asked = []

    def ask(names, width, data):
        jax.debug.callback(lambda n, w=width: asked.extend((int(i), w) for i in n), names)
        return jnp.zeros_like(names)

    one = lambda impl, data: program(jr.wrap_key_data(data, impl=impl))
    jax.block_until_ready(one(_keys(0, ask), jnp.zeros(1, jnp.uint32)))
    jax.effects_barrier()
    slots = sorted(asked)
    assert len({name for name, _ in slots}) == len(slots)  # no key is used twice
    cells = [coins if width == 8 else uniforms for _, width in slots]
    numbers = [((2 * np.arange(c) + 1) * 2**31 // c).astype(np.uint32) for c in cells]
    outcomes = np.array(list(itertools.product(*numbers)), np.uint32)
    order = jnp.asarray([name for name, _ in slots], jnp.uint32)

    def look_up(names, width, data):
        return data[jnp.argmax(names[:, None] == order[None, :], axis=1)]

    impl = _keys(len(slots), look_up)
    data = jnp.asarray(np.insert(outcomes, 0, 0, axis=1))
    run = jax.jit(lambda d: jax.lax.map(lambda v: one(impl, v), d, batch_size=8192))
    return jax.tree.map(lambda v: np.asarray(v).mean(0), run(data))


def coin(key, p=0.5):
    """Return 1 with probability p, a multiple of the cell of a byte."""
    return (jr.bits(key, (), jnp.uint8).astype(float) < 256 * p).astype(int)


def measure(program, index, size, **cells):
    """Return the mass that a sampler puts on each of finitely many values, exactly."""

    def masses(key):
        found = program(key=key)
        weights = jnp.exp(found.log_weights)
        return jnp.zeros(size).at[jax.vmap(index)(found.values)].add(weights)

    return expect(masses, **cells)


def given(weights):
    """Return a sampler without randomness: points 0, 1, ... with these weights."""
    population = Population(jnp.arange(len(weights)), jnp.log(jnp.asarray(weights, float)))
    return lambda *, key: population


FACTOR = np.array([1.0, 3.0])
log_factor = lambda x: jnp.log(jnp.asarray(FACTOR)[x])
identity = lambda x: x
pair = lambda v: 2 * v[0] + v[1]


def test_spawn_extend_score_and_marginal():
    start = spawn(lambda key: coin(key, 0.25), 2)
    law = np.array([0.75, 0.25])
    assert_allclose(measure(start, identity, 2, coins=4), law, rtol=1e-12)
    scored = then(start, score(log_factor))
    assert_allclose(measure(scored, identity, 2, coins=4), law * FACTOR, rtol=1e-12)
    step = lambda x, key: (x, coin(key, jnp.where(x == 1, 0.75, 0.25)))
    both = (law * FACTOR)[:, None] * np.array([[0.75, 0.25], [0.25, 0.75]])
    extended = then(scored, extend(step))
    assert_allclose(measure(extended, pair, 4, coins=4), both.ravel(), rtol=1e-12)
    last = then(extended, marginal(lambda v: v[1]))
    assert_allclose(measure(last, identity, 2, coins=4), both.sum(0), rtol=1e-12)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "ssp", "killing"])
def test_resampling_leaves_every_weighted_sum(scheme):
    few = scheme == "killing"  # with thresholds of thirds and quarters
    weights = 5.0 * np.array([0.25, 0.75] if few else [0.125, 0.375, 0.375, 0.125])
    cells = {"uniforms": 12 if few else 4}
    resampled = then(given(weights), resample(scheme))
    assert_allclose(measure(resampled, identity, len(weights), **cells), weights, rtol=1e-12)
    masses = expect(lambda key: jnp.exp(2 * resampled(key=key).log_mass), **cells)
    assert_allclose(masses, 25.0, rtol=1e-12)  # the mass is the same, not only its mean
    kept = then(given(weights), resample(scheme, 0.0))(key=jr.key(0))
    assert_allclose(np.exp(kept.log_weights), weights)


def test_a_population_without_mass_stays_as_it_is(key):
    nothing = lambda *, key: Population(jnp.arange(3), jnp.full(3, -jnp.inf))
    found = then(nothing, resample())(key=key)
    assert found.log_mass == -np.inf
    np.testing.assert_array_equal(found.values, np.arange(3))
    scored = then(given([1.0, 2.0]), score(lambda x: jnp.where(x == 0, jnp.nan, 0.0)))
    assert_allclose(np.exp(scored(key=key).log_weights), [0.0, 2.0])


def test_moves_leave_the_measure_they_are_made_for():
    start = then(spawn(coin, 2), score(log_factor))
    flip = metropolis(log_factor, lambda x, key: 1 - x)
    assert_allclose(measure(then(start, move(flip)), identity, 2), FACTOR / 2, rtol=1e-12)
    # From one point the kernel is not the identity: a third of the threes go down.
    one = measure(then(given([0.0, 3.0]), move(flip)), identity, 2)
    assert_allclose(one, [1.0, 2.0], rtol=1e-12)
    twice = measure(then(given([0.0, 3.0]), move(flip, 2)), identity, 2)
    assert_allclose(twice, [2 / 3, 7 / 3], rtol=1e-12)


# A hidden chain of coins: moves to the other side with probability 1/4, factors by time.
STAY = np.array([[0.75, 0.25], [0.25, 0.75]])
SEEN = np.array([[1.0, 3.0], [3.0, 1.0], [1.0, 3.0]])
step = lambda x, key: x ^ coin(key, 0.25)
seen = lambda x, factors: jnp.log(factors[x])


def _forward():
    alpha = np.array([0.5, 0.5]) * SEEN[0]
    for factors in SEEN[1:]:
        alpha = (alpha @ STAY) * factors
    return alpha


def test_sequential_monte_carlo_is_exact_in_the_mean():
    rows = jnp.asarray(SEEN)

    def one_time(factors):
        return then(resample(), extend(step), score(lambda x: seen(x, factors)))

    smc = then(spawn(coin, 2), score(lambda x: seen(x, rows[0])), along(one_time, rows[1:]))
    found = measure(smc, identity, 2, coins=4, uniforms=4)
    assert_allclose(found, _forward(), rtol=1e-12)
    many = then(spawn(coin, 4000), *[score(lambda x: seen(x, rows[0]))])(key=jr.key(1))
    assert abs(float(many.mean(lambda x: x)) - 0.75) < 4.5 * 0.5 / 4000**0.5


def test_resample_move_is_exact_in_the_mean():
    # Of one coin with factors taken in one by one: the move is under those so far.
    flip = metropolis(log_factor, lambda x, key: 1 - x)
    program = then(spawn(coin, 2), score(log_factor), resample(), move(flip), score(log_factor))
    assert_allclose(measure(program, identity, 2), 0.5 * FACTOR**2, rtol=1e-12)


# Parameters: a coin that says whether hidden coins show 1 with probability 1/2 or never.
def _inner(size):
    hidden = lambda theta: lambda key: theta * coin(key)

    def inner(theta, key):
        return then(spawn(hidden(theta), size), score(log_factor))(key=key)

    return inner


JOINT = np.array([0.5 * 1.0, 0.0, 0.25 * 1.0, 0.25 * 3.0])  # (theta, x), each one factor
even = lambda theta: jnp.zeros(())


def test_evidence_of_inner_populations_weighs_the_outer_one():
    nested = then(spawn(coin, 1), push_evidence(_inner(2)))
    found = measure(then(nested, flatten()), pair, 4)
    assert_allclose(found, JOINT, rtol=1e-12)
    outer = measure(then(nested, marginal(lambda n: n.value)), identity, 2)
    assert_allclose(outer, JOINT.reshape(2, 2).sum(1), rtol=1e-12)


def test_particle_mh_leaves_the_joint_measure():
    kernel = particle_mh(_inner(2), even, lambda theta, key: 1 - theta)
    program = then(spawn(coin, 1), push_evidence(_inner(2)), move(kernel))
    index = lambda n: 3 * n.value + n.population.values.sum()
    cells = {"uniforms": 6}  # masses are 1, 2 and 3: ratios of halves and thirds
    start = measure(then(spawn(coin, 1), push_evidence(_inner(2))), index, 6, **cells)
    assert_allclose(measure(program, index, 6, **cells), start, rtol=1e-12)
    assert_allclose(measure(then(program, flatten()), pair, 4, **cells), JOINT, rtol=1e-12)


def test_smc_squared_is_exact_in_the_mean():
    def go_on(nested, key):
        step = extend(lambda x, key: x ^ (nested.value * coin(key)))
        return then(step, score(lambda x: -log_factor(x)))(nested.population, key=key)

    kernel = particle_mh(_inner(1), even, lambda theta, key: 1 - theta)
    first = then(spawn(coin, 2), push_evidence(_inner(1)), resample())
    program = then(first, move(kernel), push_evidence(go_on), flatten())
    # (theta, last x): the coin of theta = 1 is tossed again, seen by 1 / factor.
    want = [0.5, 0.0, 0.5 * JOINT[2:].sum(), 0.5 * JOINT[2:].sum() / 3]
    assert_allclose(measure(program, pair, 4), want, rtol=1e-12)
    masses = expect(lambda key: jnp.sum(jnp.exp(program(key=key).log_weights)))
    assert_allclose(masses, sum(want), rtol=1e-12)


def test_mass_of_a_population_adds_up_over_time(key):
    go_on = lambda nested, key: score(log_factor)(nested.population, key=key)
    program = then(spawn(coin, 3), push_evidence(_inner(4)), push_evidence(go_on))
    found = program(key=key)
    assert isinstance(found.values, Nested)
    assert_allclose(found.log_weights + np.log(3), found.values.log_mass, rtol=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`num` must be at least 1; got 0"):
        spawn(coin, 0)
    with pytest.raises(ValueError, match="`scheme` must be one of"):
        resample("best")
    with pytest.raises(ValueError, match="`threshold` must be .* at most 1; got 2"):
        resample(threshold=2)
    with pytest.raises(ValueError, match="`steps` must be at least 1; got 0"):
        move(lambda x, key: x, 0)
