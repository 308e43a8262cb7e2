"""Planted bugs: the checks pass what is right, and catch every one that is wrong.

The two tests of a bug differ in the bug alone, so the check that fails is known to work.
"""

import sys
from pathlib import Path

import pytest

import whence as wh

sys.path.insert(0, str(Path(__file__).parent))
from _mutants import MUTANTS  # noqa: E402

# Relatives of others that are always run; each compiles an engine or two of its own.
SLOW = {
    "metropolis: stale density",
    "hmc: sign of the force",
    "langevin: half of the noise",
    "smc: moves on the prior",
    "smc: sign of the weights",
    "smc: weights forgotten",
    "front end: observed site sampled, by moments",
}
pytestmark = pytest.mark.usefixtures("standard")  # what is wrong may mix types, too
CASES = [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MUTANTS]


@pytest.mark.parametrize("name", CASES)
def test_the_correct_version_passes(name, key):
    bug = MUTANTS[name]
    bug.check(bug.correct, key)


@pytest.mark.parametrize("name", CASES)
def test_the_mutant_is_caught(name, key):
    bug = MUTANTS[name]
    with pytest.raises((AssertionError, ValueError, wh.InferenceError), match=bug.says):
        bug.check(bug.mutant, key)
