"""Checks of `record.py` that are tests of the suite, run in a process of their own."""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from record_checks import Cell, Scale

ROOT = Path(__file__).parents[1]


def pytest_cases(arguments: list[str], **environment: str) -> dict[str, str]:
    """Run pytest; return `"passed"`, `"failed"` or `"skipped"` by name of the test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *arguments, "-q", "-n", "0", "-m", ""]
        command.append(f"--junitxml={report}")
        variables = os.environ | environment
        subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        return {case.get("name", "?"): outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    children = {child.tag for child in case}
    if children & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in children else "passed"


def sigkill(scale: Scale) -> Cell:
    """Processes killed at random moments, resumed, and compared bit for bit."""
    engines = 3  # each gets as many kills, rounded up
    kills = engines * -(-scale.kills // engines)
    arguments = ["tests/running/test_resume.py", "-k", "sigkill"]
    cases = pytest_cases(arguments, WHENCE_KILLS=str(scale.kills))
    is_right = list(cases.values()) == ["passed"]
    figures = {"kills": kills, "engines": engines}
    return Cell("right" if is_right else "wrong", f"{kills} kills", figures)


def mutations(scale: Scale) -> Cell:
    """Bugs of other libraries, planted: how many are caught, with the right version passed?"""
    path = "tests/testing/test_mutations.py"
    if not (ROOT / path).exists():
        return Cell("none", "", detail="not written yet")
    cases = pytest_cases([path])
    sources = planted()
    passed = lambda test, bug: cases.get(f"{test}[{bug}]") == "passed"
    bugs = {
        bug: {
            "source": source,
            "caught": passed("test_the_mutant_is_caught", bug),
            "passes": passed("test_the_correct_version_passes", bug),
        }
        for bug, source in sources.items()
    }
    missed = [bug for bug, found in bugs.items() if not (found["caught"] and found["passes"])]
    figures = {"bugs": bugs, "caught": len(bugs) - len(missed)}
    text = f"{figures['caught']} of {len(bugs)}"
    return Cell("wrong" if missed or not bugs else "right", text, figures, "; ".join(missed))


def planted() -> dict[str, str]:
    """Where each bug was seen, by its name."""
    code = (
        "import json, sys; sys.path.insert(0, 'tests/testing'); from _mutants import MUTANTS; "
        "print(json.dumps({name: bug.source for name, bug in MUTANTS.items()}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


ALONE = {"sigkill": sigkill, "mutations": mutations}
