"""The shape of the package: imports point one way, classes are abstract or final."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import pytest

import whence

ROOT = Path(whence.__file__).parent
LEAVES = {"diagnostics", "storage"}
GROUND = {"core", *LEAVES}
ALL = {"language", "posterior", "running", "inference", "models", "frontends"}
ALLOWED = {
    "diagnostics": set(),
    "storage": set(),
    "core": LEAVES,
    "language": GROUND,
    "posterior": GROUND,
    "inference": GROUND,
    "frontends": {"language", *GROUND},
    "models": {"language", "posterior", *GROUND},
    "running": {"language", "posterior", *GROUND},
    "calibration": {"language", "posterior", "running", *GROUND},
    "testing": {"calibration", *ALL, *GROUND},
    "studies": {"calibration", "testing", *ALL, *GROUND},
    "cli": {"calibration", "testing", "studies", *ALL, *GROUND},
}
OPTIONAL = {"tensorflow_probability", "flowjax", "diffrax"}
HOMES_OF_OPTIONAL = (
    "inference/backends",
    "inference/variational/_flowjax",
    "frontends",
    "storage",
)


def _modules():
    return {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _name(path):
    parts = ("whence", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@functools.cache
def _imports(name, path):
    """Return modules imported by a file, those inside functions included."""
    found = []
    tree = ast.parse(path.read_text())
    skip = {id(n) for node in ast.walk(tree) if _is_type_checking(node) for n in ast.walk(node)}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, node.module] if node.module else parts)
            for alias in node.names:
                found.append(f"{base}.{alias.name}")
    return found


def _edges():
    modules = _modules()
    for name, path in modules.items():
        for imported in _imports(name, path):
            while imported and imported not in modules:
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                yield name, imported


def _room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def test_imports_point_one_way():
    wrong = [
        (a, b)
        for a, b in _edges()
        if _room(a) in ALLOWED
        and _room(b) != _room(a)
        and _room(b) not in ALLOWED[_room(a)]
        and not (_room(b) is None and _room(a) in ("cli", "testing", "studies"))
    ]
    assert not wrong, wrong


def test_every_room_is_known():
    rooms = {_room(name) for name in _modules()} - {None}
    assert rooms <= set(ALLOWED), rooms


def test_no_import_cycle():
    graph = {}
    for a, b in _edges():
        # A package's __init__ re-exports; importing from it inside the package is refused
        # by the cycle that it makes.
        graph.setdefault(a, set()).add(b)
    done, path = set(), []

    def visit(node):
        if node in done:
            return
        assert node not in path, f"cycle: {[*path[path.index(node) :], node]}"
        path.append(node)
        for child in graph.get(node, ()):
            visit(child)
        path.pop()
        done.add(node)

    for node in list(graph):
        visit(node)


def test_optional_packages_stay_at_home():
    for name, path in _modules().items():
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(HOMES_OF_OPTIONAL):
            continue
        used = {imported.split(".")[0] for imported in _imports(name, path)} & OPTIONAL
        assert not used, (name, used)


def _public_classes():
    seen = set()
    for info in pkgutil.walk_packages([str(ROOT)], "whence."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__.startswith("whence"):
                seen.add(value)
    return seen


def test_modules_are_abstract_or_final():
    """A concrete class has no subclass in the package, and overrides nothing implemented."""
    classes = [c for c in _public_classes() if issubclass(c, eqx.Module)]
    free = (eqx.Module, whence.Model)  # users subclass Model and write its hooks
    for cls in classes:
        for base in cls.__mro__[1:]:
            if base in free or not (isinstance(base, type) and issubclass(base, eqx.Module)):
                continue
            if not base.__module__.startswith("whence"):
                continue
            abstract = base.__name__.lstrip("_").startswith("Abstract")
            assert abstract, f"{cls.__name__} subclasses the concrete {base.__name__}"
            for name, value in vars(cls).items():
                if name.startswith("__") or not callable(value):
                    continue
                inherited = vars(base).get(name)
                implemented = inherited is not None and not getattr(
                    inherited, "__isabstractmethod__", False
                )
                assert not implemented, f"{cls.__name__} overrides {base.__name__}.{name}"


def test_modules_are_private():
    public = [
        name
        for name in _modules()
        if not name.rpartition(".")[2].startswith("_")
        and _modules()[name].name != "__init__.py"
    ]
    assert not public, public


def test_files_are_short():
    """One concern a file: 500 lines hold one."""
    long = {
        path.name: n
        for path in _modules().values()
        if (n := len(path.read_text().splitlines())) > 500
    }
    assert not long, long


def test_import_is_light():
    code = "import whence, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"arviz", "arviz_stats", "arviz_plots", "blackjax", "matplotlib", "pandas"}
    heavy |= {"tensorflow_probability", "xarray", "rich", "typer", "flowjax", "diffrax"}
    assert not heavy & set(out), heavy & set(out)


OUTSIDE = re.compile(r"\.\./[A-Za-z]|(?<![\w.])/(?:work|home|root|Users)/")


@pytest.mark.parametrize("folder", ["src", "tests", "docs", "benchmarks", "examples"])
def test_repository_stands_alone(folder):
    """Nothing names a path outside the repository: users do not have it."""
    for path in (Path(__file__).parents[1] / folder).rglob("*"):
        if path.suffix in (".py", ".md", ".toml", ".yml"):
            assert not OUTSIDE.search(path.read_text()), path


def test_listed_mutations_still_apply():
    """What `benchmarks/mutations.py` breaks is in the source, once each."""
    checkout = Path(__file__).parents[1]
    listed = json.loads((checkout / "benchmarks/mutations.json").read_text())
    assert len(listed) >= 100
    for one in listed:
        count = (checkout / one["file"]).read_text().count(one["old"])
        assert count == 1, f"{one['file']}: {one['old']}"
        assert one["old"] != one["new"]
