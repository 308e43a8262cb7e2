"""Processes that use `whence.storage` alone: it needs no JAX, which takes seconds to import."""

import subprocess
import sys

import pytest

import whence

ALONE = """
import sys, types
whence = types.ModuleType("whence")
whence.__path__ = [sys.argv.pop(1)]
sys.modules["whence"] = whence
"""


@pytest.fixture
def exit_code_of():
    """Run a script in a process of its own; return its exit code."""

    def run(script, *arguments):
        command = [sys.executable, "-c", ALONE + script, *whence.__path__, *map(str, arguments)]
        return subprocess.run(command, check=False).returncode

    return run
