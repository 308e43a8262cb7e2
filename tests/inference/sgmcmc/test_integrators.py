"""Words over A, B, O, o, D and E, interpreted: exact stationary laws, without sampling.

On a Gaussian target an update is an affine map of position and momentum, of its own noise and
of the noise in the gradient. The matrices are read off the interpreter by differentiation; the
stationary covariance then solves a discrete Lyapunov equation.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import solve_discrete_lyapunov

from whence.inference.sgmcmc import SGMCMC
from whence.inference.sgmcmc._integrator import (
    Force,
    Motion,
    Terms,
    evaluations,
    integrate,
    is_cached,
    looks_at,
    word_of,
)

WORDS = ["SGLD", "OBABO", "BAOAB", "ABOBA", "OABAO", "BAOA", "OBA", "SGHMC", "oBA"]


@functools.cache
def program(word, subtracts):
    """The affine map of an update with gradient `-a (q - c) + e`, compiled once for a word."""
    cached, damped = is_cached(word), word != "E"
    letters = sum(word.count(letter) for letter in "OoE")

    def update(state, noise, a, c, h, friction, temperature, subtracted):
        q, p = state[:1], state[1:2]
        errors = noise[letters:]
        zero = jnp.zeros(())
        force = Force(zero, state[2:]) if cached else None
        lost = jnp.full(1, subtracted) if subtracts else None
        terms = Terms(h, friction, temperature, lambda _: None, lambda _: lost)

        def evaluate(x, number, learned):
            return Force(zero, -a * (x - c) + errors[number]), learned

        motion = Motion(q, p if damped else p[:0], jnp.ones(()), force)
        new, *_ = integrate(word, motion, None, terms, evaluate, lambda n: noise[n : n + 1])
        parts = [new.position, new.momentum if damped else p]
        return jnp.concatenate(parts + ([new.force.gradient] if cached else []))

    def all_of(*numbers):
        size = 3 if cached else 2
        zeros = jnp.zeros(size), jnp.zeros(letters + len(evaluations(word)))
        return (
            *jax.jacobian(update, argnums=(0, 1))(*zeros, *numbers),
            update(*zeros, *numbers),
        )

    return jax.jit(all_of)


def read_off(name, a, h, c=0.0, friction=1.0, temperature=1.0, subtracted=None):
    """The affine map of an update with gradient `-a (q - c) + e`.

    Returns:
        Matrix of the state, matrix of the noise, and offset. The state is position and
        momentum (and, if the word goes on with it, the gradient); noise is that of the letters
        and then that of the gradient, one variable for each evaluation.
    """
    numbers = (a, c, h, friction, temperature, subtracted or 0.0)
    found = program(word_of(name), subtracted is not None)(*map(jnp.asarray, numbers))
    return jax.tree.map(np.asarray, found)


def stationary(name, a, h, noise=0.0, **more):
    """Covariance of position and momentum with a gradient `-a q + e`, `Var e = noise`."""
    matrix, spread, _ = read_off(name, a, h, **more)
    sources = np.ones(spread.shape[1])
    sources[-len(evaluations(word_of(name))) :] = noise
    if word_of(name) == "E":
        matrix, spread = matrix[:1, :1], spread[:1]
    return solve_discrete_lyapunov(matrix, spread @ np.diag(sources) @ spread.T)


# Relative errors of Var(q) and Var(p) with exact gradients, for precision `a` and friction 1.
EXACT = {
    "SGLD": lambda x: (1 / (1 - x / 2) - 1, None),
    "OBABO": lambda x: (1 / (1 - x / 4) - 1, 0),
    "BAOAB": lambda x: (0, -x / 4),
    "ABOBA": lambda x: (0, 1 / (1 - x / 4) - 1),
    "OABAO": lambda x: (-x / 4, 0),
    "BAOA": lambda x: (0, 0),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("a", "h"), [(1.0, 0.1), (1.0, 0.5), (2.5, 0.3)])
def test_stationary_moments_without_noise(name, a, h):
    covariance = stationary(name, a, h)
    position, momentum = EXACT[name](h * a if name == "SGLD" else h**2 * a)
    assert_allclose(covariance[0, 0] * a - 1, position, atol=1e-10)
    if momentum is not None:
        assert_allclose(covariance[1, 1] - 1, momentum, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "position", "momentum"),
    [("OBA", -0.0451, 2.6e-3), ("SGHMC", 2.64e-3, 5.5e-2)],
)
def test_words_of_first_order(name, position, momentum):
    """Values of an independent solution for a step of 0.1."""
    covariance = stationary(name, 1.0, 0.1)
    assert_allclose(covariance[0, 0] - 1, position, rtol=0.02)
    assert_allclose(covariance[1, 1] - 1, momentum, rtol=0.02)


@pytest.mark.parametrize("name", ["SGHMC", "oBA"])
def test_euler_friction_against_the_closed_form(name):
    """Var(q) = q / (alpha h (2 - h / (2 - alpha))), and what follows, of the recursion
    v = (1 - alpha) v - h g + noise of variance `q`; here v is the step size times p."""
    for alpha, h, noise in [(0.05, 0.01, 0.0), (0.5, 0.04, 3.0), (0.9, 0.25, 10.0)]:
        step = h**0.5
        injected = 2 * alpha * h + h**2 * noise
        covariance = stationary(name, 1.0, step, noise, friction=alpha / step)
        variance = injected / (alpha * h * (2 - h / (2 - alpha)))
        assert_allclose(covariance[0, 0], variance, rtol=1e-10)
        assert_allclose(covariance[1, 1] * h, 2 * h * variance / (2 - alpha), rtol=1e-10)


def test_noise_that_is_subtracted_leaves_the_variance_alone():
    """The scale-adapted sampler: 2 alpha - h^2 V of noise, and V comes from the gradient."""
    for noise in (0.0, 5.0):
        plain = stationary("SGHMC", 1.0, 0.1, friction=2.0)
        kept = stationary("SGHMC", 1.0, 0.1, noise, friction=2.0, subtracted=noise)
        assert_allclose(kept, plain, rtol=1e-10)
    without = stationary("SGHMC", 1.0, 0.1, 5.0, friction=2.0)
    assert without[0, 0] > 1.1 * plain[0, 0]
    # With exact gradients the subtraction is a bias that is known, too.
    biased = stationary("SGHMC", 1.0, 0.1, friction=2.0, subtracted=5.0)
    assert_allclose(biased[0, 0], plain[0, 0] * (1 - 0.1**2 * 5.0 / (2 * 0.2)), rtol=1e-10)


@pytest.mark.parametrize("name", WORDS)
def test_noise_of_batches_inflates_every_word_alike(name):
    """By `h V / (2 friction)` (overdamped: `h V / 2`), to first order."""
    for h in (0.02, 0.01):
        with_noise, without = (stationary(name, 1.0, h, v)[0, 0] for v in (4.0, 0.0))
        assert_allclose(with_noise - without, 4 * h / 2, rtol=4 * h)


@pytest.mark.parametrize("name", WORDS)
def test_temperature_scales_the_law(name):
    warm, plain = (stationary(name, 1.0, 0.2, temperature=t) for t in (0.3, 1.0))
    assert_allclose(warm, 0.3 * plain, atol=1e-12)


@pytest.mark.parametrize("name", [*WORDS, "SGNHT", "BADODAB"])
def test_one_gradient_per_update(name):
    assert len(evaluations(word_of(name))) == 1


def test_where_the_gradient_is_evaluated():
    # Two kicks with a drift between them are at two positions.
    assert evaluations("BABO") == (2,)
    assert is_cached("BABO")
    assert evaluations("ABABO") == (1, 3)
    assert [looks_at(word_of(w)) for w in ("SGLD", "BAOAB", "AoB", "OABAO")] == [
        "start",
        "start",
        "end",
        None,
    ]


def test_two_half_kicks_share_a_batch():
    """OBABO with noise in the gradient: its two kicks around a position see one error."""
    matrix, spread, _ = read_off("OBABO", 1.0, 0.1)
    # The error is carried over, as the gradient, to the first kick of the next update.
    assert spread.shape[1] == 3
    assert_allclose(spread[1, 2] / spread[2, 2], np.exp(-0.05) * 0.05, rtol=1e-10)
    assert matrix[1, 2] > 0


CENTRES = (-1.5, -0.5, 0.5, 1.5)
CURVATURES = (0.4, 0.8, 1.2, 1.6)  # unequal: with equal ones the order would be higher


def relative_error(name, h, batching):
    """Error of the variance at ends of epochs of four batches, relative to its value.

    The density is that of one quarter of the sum of four parabolas, one batch each.
    """
    maps = []
    for a, c in zip(CURVATURES, CENTRES):
        matrix, spread, offset = read_off(name, a, h, c)
        steps = spread.shape[1] - 1
        maps.append((matrix, offset, spread[:, :steps] @ spread[:, :steps].T))
    if batching == "iid":
        epochs = [(one,) for one in maps]
    else:
        epochs = list(itertools.permutations(maps))
        if batching == "symmetric":
            epochs = [order + order[::-1] for order in epochs]
    size = 1 if word_of(name) == "E" else 2
    transfer, shift, second, cross, source = 0, 0, 0, 0, 0
    for order in epochs:
        m, b, s = np.eye(size), np.zeros(size), np.zeros((size, size))
        for matrix, offset, spread in order:
            matrix, offset = matrix[:size, :size], offset[:size]
            m, b = matrix @ m, matrix @ b + offset
            s = matrix @ s @ matrix.T + spread[:size, :size]
        weight = 1 / len(epochs)
        transfer, shift = transfer + weight * m, shift + weight * b
        second = second + weight * np.kron(m, m)
        cross = cross + weight * (np.kron(m, b[:, None]) + np.kron(b[:, None], m))
        source = source + weight * (s + np.outer(b, b)).ravel()
    mean = np.linalg.solve(np.eye(size) - transfer, shift)
    moments = np.linalg.solve(np.eye(size**2) - second, cross @ mean + source)
    a = np.mean(CURVATURES)
    return (moments.reshape(size, size)[0, 0] - mean[0] ** 2) * a - 1


@pytest.mark.parametrize("name", ["BAOA", "OABAO", "SGLD"])
@pytest.mark.parametrize(
    ("batching", "order"), [("iid", 1), ("reshuffle", 2), ("symmetric", 2)]
)
def test_order_in_the_step_size(name, batching, order):
    """Independent batches leave an error of order one, reshuffled ones of order two."""
    if name == "SGLD":
        order = 1  # by its own discretisation
    errors = [relative_error(name, h, batching) for h in (0.0125, 0.00625)]
    assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


def test_errors_of_batching_are_those_computed_independently():
    for name, batching, expected in [
        ("BAOA", "iid", (5.88e-2, 2.92e-2, 1.45e-2, 7.26e-3)),
        ("OABAO", "reshuffle", (-2.61e-3, -8.42e-4, -2.35e-4, -6.19e-5)),
        ("BAOA", "reshuffle", (-2.13e-4, -2.23e-4, -7.93e-5, -2.29e-5)),
    ]:
        errors = [relative_error(name, h, batching) for h in (0.1, 0.05, 0.025, 0.0125)]
        assert_allclose(errors, expected, rtol=0.02)


def test_thermostat_takes_up_the_noise():
    """Without noise and coordinates the friction falls by the temperature, times its square."""
    terms = Terms(jnp.asarray(0.1), jnp.asarray(2.0), jnp.asarray(0.5), lambda _: None)
    force = lambda x, number, learned: (Force(jnp.zeros(()), jnp.zeros(2)), learned)
    still = Motion(jnp.zeros(2), jnp.asarray([3.0, 4.0]), jnp.ones(()), None)
    motion, *_ = integrate("oBAD", still, None, terms, force, lambda n: jnp.zeros(2))
    momentum = np.asarray([3.0, 4.0]) * (1 - 0.2)
    assert_allclose(motion.momentum, momentum, rtol=1e-12)
    # Ding et al.: friction' = friction + h (mean p^2 - T), in units of time of 1 / friction.
    friction = 2.0 + 0.1 * 2.0**2 * ((momentum**2).mean() - 0.5)
    assert_allclose(2.0 * motion.thermostat, friction, rtol=1e-12)
    exact, *_ = integrate("OBAD", still, None, terms, force, lambda n: jnp.zeros(2))
    assert_allclose(exact.momentum, np.exp(-0.2) * np.asarray([3.0, 4.0]), rtol=1e-12)


@pytest.mark.parametrize("name", ["", "A", "AB", "BAOX", "EE", "sgld", None, 3])
def test_what_is_no_word(name):
    with pytest.raises(
        ValueError, match="`integrator` must be one of SGLD, SGHMC, SGNHT, or a"
    ):
        SGMCMC(integrator=name)
