"""Planted bugs: the checks pass what is right, and catch every one that is wrong.

The two tests of a bug differ in the bug alone, so the check that fails is known to work.
"""

import sys
from pathlib import Path

import pytest

import whence as wh

sys.path.insert(0, str(Path(__file__).parent))
from _mutants import MUTANTS  # noqa: E402


@pytest.mark.parametrize("name", MUTANTS)
def test_the_correct_version_passes(name, key):
    bug = MUTANTS[name]
    bug.check(bug.correct, key)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name, key):
    bug = MUTANTS[name]
    with pytest.raises((AssertionError, ValueError, wh.InferenceError), match=bug.says):
        bug.check(bug.mutant, key)
