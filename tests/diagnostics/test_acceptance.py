"""Chains whose step size does not fit where they are now, by name; others pass."""

import numpy as np
import pytest

from whence.diagnostics import AdaptedChains, diagnose

CHAINS, DRAWS = 4, 1000


def rates(rng, means, draws=DRAWS, chains=CHAINS):
    """Acceptance rates as NUTS has them, spread out between 0 and 1, with these means."""
    means = np.broadcast_to(means, (draws, chains)).T
    return rng.beta(4 * means, 4 * (1 - means))


def report(rate, target=0.8, **stats):
    x = np.random.default_rng(0).normal(size=rate.shape)
    record = None if target is None else AdaptedChains(target)
    return diagnose({"x": x}, {"acceptance_rate": rate, **stats}, record=record)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_chains_that_left_where_they_were_adapted(rng):
    """Two of four accept 0.07 and 0.25 where 0.8 was aimed at."""
    sizes = np.broadcast_to([[0.1], [0.6], [0.11], [0.5]], (CHAINS, DRAWS))
    found = report(rates(rng, [0.8, 0.07, 0.82, 0.25]), step_size=sizes)["acceptance"]
    assert found.severity == "warning"
    assert found.where == ("chain 1", "chain 3")
    assert "chain 1: 0.07 (step size 0.6, of the other chains 0.11)" in found.message
    assert "chain 3: 0.2" in found.message
    assert "0.80 was aimed at" in found.message
    assert "dispersed starts" in found.remedy
    assert 0.06 < found.value < 0.08


@pytest.mark.parametrize("target", [0.6, 0.8, 0.95, 0.99])
def test_chains_that_fit_pass(rng, target):
    """A rate of a little less than the aim is what curved posteriors have."""
    found = report(rates(rng, [target, target - 0.05, target, 0.5 + target / 2]), target)
    assert found["acceptance"].severity == "ok"
    assert "step_size" not in found


def test_every_chain_is_held_against_its_own_aim(rng):
    """Chains that diverged in warm-up aim higher than the others."""
    aims = np.array([0.6, 0.6, 0.92, 0.6])
    found = report(rates(rng, aims - 0.05), aims)["acceptance"]
    assert found.severity == "ok"
    assert "0.60 to 0.92 was aimed at" in found.message
    found = report(rates(rng, [0.6, 0.6, 0.55, 0.6]), aims)["acceptance"]
    assert found.where == ("chain 2",)
    # Draws of another number of chains, resampled for example: the highest aim.
    assert "0.92 was aimed at" in report(rates(rng, 0.9, chains=1), aims)["acceptance"].message
    reached = np.ones((CHAINS, DRAWS), bool)
    small = report(rates(rng, [0.96, 0.6, 0.96, 0.6]), aims, reached_max_treedepth=reached)
    assert small["step_size"].where == ("chain 0",)


@pytest.mark.parametrize("draws", [10, 40, 1000])
def test_chance_raises_no_alarm(draws):
    """At the aim, no alarm in 200 runs; the limit is more than four standard errors off."""
    rng = np.random.default_rng(2)
    alarms = sum("acceptance" in report(rates(rng, 0.8, draws)) for _ in range(200))
    assert alarms <= 1


def test_a_change_within_the_draws(rng):
    """The second half does not fit, though the mean of all draws would pass."""
    means = np.full((DRAWS, CHAINS), 0.85)
    means[DRAWS // 2 :, 2] = 0.5
    found = report(rates(rng, means))["acceptance"]
    assert found.where == ("chain 2",)
    assert "in the first half, 0." in found.message
    assert "in the second" in found.message
    assert report(rates(rng, means[::-1]))["acceptance"].where == ("chain 2",)


def test_steps_that_are_too_small(rng):
    """A rate of 0.99 with trajectories that are cut off; without those it does no harm."""
    rate = rates(rng, [0.8, 0.8, 0.8, 0.99])
    reached = np.zeros((CHAINS, DRAWS), bool)
    assert "step_size" not in report(rate, reached_max_treedepth=reached)
    reached[3, ::2] = True
    sizes = np.broadcast_to([[0.1], [0.1], [0.1], [0.002]], (CHAINS, DRAWS))
    found = report(rate, reached_max_treedepth=reached, step_size=sizes)
    assert found["acceptance"].severity == "ok"
    small = found["step_size"]
    assert small.where == ("chain 3",)
    assert "too small" in small.message
    assert "50% of the trajectories there are cut off" in small.message
    assert "step size 0.002, of the other chains 0.1" in small.message
    # Trajectories that are cut off at the rate aimed at: another finding.
    assert "step_size" not in report(rates(rng, 0.8), reached_max_treedepth=reached)


def test_steps_that_became_too_small(rng):
    means = np.full((DRAWS, CHAINS), 0.8)
    means[DRAWS // 2 :, 0] = 0.995
    reached = np.zeros((CHAINS, DRAWS), bool)
    reached[0, DRAWS // 2 :] = True
    found = report(rates(rng, means), reached_max_treedepth=reached)["step_size"]
    assert found.where == ("chain 0",)
    assert "100% of the trajectories" in found.message


def test_without_a_record_of_cuts_the_number_of_steps_tells(rng):
    rate = rates(rng, [0.8, 0.99, 0.8, 0.8])
    steps = np.full((CHAINS, DRAWS), 7)
    assert "step_size" not in report(rate, n_steps=steps)
    steps[1] = 127
    found = report(rate, n_steps=steps)["step_size"]
    assert found.where == ("chain 1",)
    assert "18 times the usual steps" in found.message


def test_without_an_aim_only_rejecting_nearly_all_counts(rng):
    assert "acceptance" not in report(rates(rng, [0.8, 0.25, 0.5, 0.8]), target=None)
    found = report(rates(rng, [0.8, 0.04, 0.5, 0.8]), target=None)["acceptance"]
    assert found.where == ("chain 1",)


def test_a_rate_that_is_not_finite_is_no_pass(rng):
    rate = rates(rng, 0.8)
    rate[2, 5] = np.nan
    assert report(rate)["acceptance"].where == ("chain 2",)
