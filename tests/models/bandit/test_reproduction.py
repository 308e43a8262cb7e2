"""Regrets against those of independent simulations in NumPy with float64.

The reference numbers are means over 2,000 instances (1,000 for two policies) with their
standard errors, horizon 2,000, ten arms unless said otherwise. All are in the study "varts".
Policies that are sometimes over-confident have so heavy a tail that a standard error says
little: their medians, which the reference gives as whole numbers, are compared as well.
"""

import jax.random as jr
import numpy as np
import pytest

from whence.models.bandit import (
    MVTS,
    UCB1,
    UCBV,
    HondaTakemura,
    KnownVariance,
    KnownVarianceTS,
    NormalGamma,
    VarTS,
    sample_instances,
    simulate,
)
from whence.studies import _varts as varts
from whence.studies._varts_problems import ARM_COUNTS, HORIZONS, problems


def _prior(alpha, arms=10):
    return NormalGamma(0.0, 1.0, alpha, 1.0, arms=arms)


def _assert_mean(run, mean, error):
    got = run.bayes_regret()
    distance = abs(got.mean[-1] - mean) / np.hypot(got.standard_error[-1], error)
    assert distance < 4, (got.mean[-1], got.standard_error[-1], mean)


P1 = {
    "VarTS": (VarTS(_prior(4.0)), 53.8, 0.7),
    "UCB1": (UCB1(10), 143.7, 0.8),
    "UCBV": (UCBV(10), 295.4, 0.6),
    "MVTS": (MVTS(10), 107.3, 0.7),
    "Honda": (HondaTakemura(10), 92.2, 0.5),
}


@pytest.fixture(scope="module")
def p1():
    return sample_instances(_prior(4.0), instances=250, key=jr.key(20))


@pytest.mark.parametrize("name", P1)
def test_main_policies(name, p1):
    policy, mean, error = P1[name]
    run = simulate({name: policy}, p1, horizon=2_000, key=jr.key(21))[name]
    _assert_mean(run, mean, error)


def test_known_variances(p1):
    policy = KnownVarianceTS(KnownVariance(0.0, p1.scale**2, p1.scale**2))
    run = simulate({"TS": policy}, p1, horizon=2_000, key=jr.key(22))["TS"]
    _assert_mean(run, 43.2, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", problems())
def test_every_policy_of_every_problem(name):
    """2,000 instances: means within 4 standard errors of both, and medians where known."""
    problem = problems()[name]
    for policy, run in varts.play(problem, varts.PLANS["full"], jr.key(23)).items():
        reference = problem.references[policy]
        z = varts.z_mean(run, reference)
        assert abs(z) < 4, (policy, run.bayes_regret().mean[-1], reference, z)
        if reference.median is not None:
            z = varts.z_median(run, reference)
            assert abs(z) < 4, (policy, np.median(run.final), reference, z)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arms", "horizon", "reference"),
    [
        *[(10, horizon, reference) for horizon, reference in HORIZONS.items()],
        *[(arms, 2_000, reference) for arms, reference in ARM_COUNTS.items()],
    ],
)
def test_growth_with_rounds_and_arms(arms, horizon, reference):
    run = varts.grow(arms, horizon, varts.StudySize(1_000), jr.key(27))
    assert abs(varts.z_mean(run, reference)) < 4
