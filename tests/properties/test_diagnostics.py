"""What R-hat and effective sample sizes must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from whence.diagnostics import convergence

quick = settings(deadline=None, max_examples=30, derandomize=True)


@st.composite
def chains(draw, elements=()):
    """AR(1) chains, some of them shifted, of distinct values within (-10, 10) or so."""
    shape = draw(st.integers(1, 4)), draw(st.integers(8, 120)), *elements
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    noise, correlation = rng.normal(size=shape), draw(st.floats(-0.5, 0.95))
    for t in range(1, shape[1]):
        noise[:, t] += correlation * noise[:, t - 1]
    offset = draw(st.sampled_from([0.0, 1.0]))
    return noise / np.abs(noise).max() * 5 + offset * np.arange(shape[0]).reshape(
        -1, 1, *(1 for _ in elements)
    )


def same(a, b, names=("rhat", "ess_bulk", "ess_tail")):
    for name in names:
        assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, err_msg=name)


@quick
@given(chains(), st.sampled_from([np.exp, np.cbrt, np.arctan, lambda x: x**3 + x]))
def test_effective_sample_sizes_know_only_ranks(draws, increasing):
    same(convergence(draws), convergence(increasing(draws)), ("ess_bulk", "ess_tail"))


@quick
@given(chains(), st.integers(-30, 30), st.booleans())
def test_units_do_not_matter(draws, power, turned):
    """A power of two, since R-hat knows rounding.

    Of an even number of draws the two in the middle are equally far from the median, and
    rounding says which of them is the nearer.
    """
    changed = 2.0**power * (-draws if turned else draws)
    # Turned round, `x <= quantile` takes in the other neighbour: no longer the same event.
    names = ("rhat", "ess_bulk") if turned else ("rhat", "ess_bulk", "ess_tail")
    same(convergence(draws), convergence(changed), names)


@quick
@given(chains(), st.randoms(use_true_random=False))
def test_chains_have_no_order(draws, random):
    order = random.sample(range(len(draws)), len(draws))
    same(convergence(draws), convergence(draws[order]))


@quick
@given(chains(elements=(2, 3)))
def test_elements_know_nothing_of_each_other(draws):
    together = convergence(draws)
    for index in np.ndindex(2, 3):
        alone = convergence(draws[:, :, *index])
        for name in together._fields:
            assert_array_equal(getattr(together, name)[index], getattr(alone, name))


@quick
@given(
    chains(elements=(3,)),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 2),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_one_value_that_is_no_number_spoils_its_variable_alone(draws, bad, element, c, t):
    spoiled = draws.copy()
    spoiled[int(c * draws.shape[0]), int(t * draws.shape[1]), element] = bad
    before, after = convergence(draws), convergence(spoiled)
    others = [i for i in range(3) if i != element]
    for name in before._fields:
        assert np.isnan(getattr(after, name)[element])
        assert_array_equal(getattr(after, name)[others], getattr(before, name)[others])


@quick
@given(chains(), st.floats(0.5, 5.0))
def test_a_chain_that_moves_away_raises_rhat(draws, distance):
    if len(draws) == 1:
        draws = np.concatenate([draws, draws[:, ::-1]])
    away = draws.copy()
    away[0] += 20.0
    further = away.copy()
    further[0] += 20.0 * distance  # beyond all others already: ranks stay
    assert convergence(away).rhat > convergence(draws).rhat
    assert_allclose(convergence(away).ess_bulk, convergence(further).ess_bulk, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_draws_say_nothing(count):
    draws = np.random.default_rng(0).normal(size=(2, count))
    assert all(np.isnan(value) for value in convergence(draws))
