import pytest

from whence.cli._errors import FileProblem, UsageProblem
from whence.cli._load import load_target
from whence.language import ModelTarget


@pytest.mark.parametrize("spec", ["model.py:target", "model.py:make", "model.py"])
def test_targets_are_found(folder, spec):
    target = load_target(spec)
    assert isinstance(target, ModelTarget)
    assert float(target.y[0]) == (40.0 if spec.endswith("make") else 4.0)


def test_a_file_may_import_its_neighbours(write):
    write("neighbour_of_model.py", "from model import target as found\n")
    write("other.py", "import neighbour_of_model\ntarget = neighbour_of_model.found\n")
    assert isinstance(load_target("other.py:target"), ModelTarget)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("model", UsageProblem, "FILE.py:NAME"),
        ("model.py:a b", UsageProblem, "FILE.py:NAME"),
        ("absent.py:target", FileNotFoundError, "absent.py"),
        ("model.py:absent", FileProblem, "the targets in it: `target`"),
        ("model.py:model", FileProblem, "condition(model, y)"),
        ("model.py:Line", FileProblem, r"condition(Line(), y)"),
        ("model.py:Y", FileProblem, "must be a target"),
        ("model.py:needs", FileProblem, "without arguments"),
        ("model.py:fails", FileProblem, "model.py, line "),
    ],
)
def test_what_is_no_target_is_explained(folder, spec, kind, words):
    with pytest.raises(kind) as caught:
        load_target(spec)
    assert words in str(caught.value)


def test_errors_in_the_file_name_the_line(write):
    name = write("broken.py", "x = 1\ny = x / 0\n")
    with pytest.raises(FileProblem, match=r"broken.py, line 2: ZeroDivisionError"):
        load_target(f"{name}:target")
    name = write("unreadable.py", "x = 1\ny = (\n")
    with pytest.raises(FileProblem, match=r"unreadable.py, line 2: SyntaxError"):
        load_target(f"{name}:target")


def test_a_file_without_or_with_several_targets_needs_a_name(write):
    name = write("none.py", "x = 1\n")
    with pytest.raises(UsageProblem, match="it has none"):
        load_target(name)
    name = write("two.py", "from model import target as a, target as b\n")
    with pytest.raises(UsageProblem, match="it has a, b"):
        load_target(name)
