"""The shape of the package: imports point downward, libraries stay optional."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import fptt_plugin

PACKAGE = Path(fptt_plugin.__file__).parent
ROOT = Path(__file__).parents[1]
LAYERS = [{"functional"}, {"gates", "regularizer", "state"}, {"drivers"}, {"acceleration"}, {"trainer"}, {"baselines"}]
LIBRARY_MODULES = {"snntorch", "spikingjelly"}


def part_of(path):
    """Name of the module, or of the subpackage, below ``fptt_plugin``; empty for the package's own ``__init__``."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    return "" if relative.name == "__init__" and len(relative.parts) == 1 else relative.parts[0]


def is_for_annotations_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported_names(node, package):
    """Absolute dotted names of what a file imports at run time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            source = ".".join([*base, *filter(None, [child.module])])
            yield from (f"{source}.{alias.name}" for alias in child.names)
        elif not is_for_annotations_only(child):
            yield from imported_names(child, package)


@cache
def imports():
    """Direct imports inside the package: part -> parts."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
        names = [name.split(".") for name in imported_names(ast.parse(path.read_text()), package)]
        inside = {name[1] for name in names if name[0] == PACKAGE.name and len(name) > 1}
        graph.setdefault(part_of(path), set()).update(inside - {part_of(path)})
    return {part: targets & set(graph) for part, targets in graph.items()}


def reach(part):
    """Everything a part imports, directly or through others."""
    seen, waiting = set(), [part]
    while waiting:
        new = imports()[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_the_graph_is_read_at_all():
    assert set().union(*LAYERS[:2]) - {"gates"} <= reach("trainer")
    assert "functional" in imports()["regularizer"]


@pytest.mark.parametrize("height", range(len(LAYERS)))
def test_imports_point_downward(height):
    above = set().union(*LAYERS[height:])
    for part in LAYERS[height] & set(imports()):
        assert not reach(part) & (above - {part}), part


def test_no_cycles():
    assert [part for part in imports() if part and part in reach(part)] == []


def test_functional_stands_alone_and_gates_and_state_on_it():
    assert reach("functional") == set()
    assert reach("gates") | reach("state") <= {"functional"}


@pytest.mark.parametrize("library", sorted(LIBRARY_MODULES))
def test_library_modules_import_the_bottom_and_nobody_imports_them(library):
    assert imports()[library] <= {"functional", "gates", "state"}
    assert [part for part, targets in imports().items() if library in targets] == []


def python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_core_loads_torch_alone():
    """Compared with what torch itself brings, which is its own affair."""
    optional = ["snntorch", "spikingjelly", "tonic", "matplotlib", "tqdm", "sklearn", "pandas", "scipy"]
    code = f"""
import sys, torch
before = set(sys.modules)
import fptt_plugin, fptt_plugin.functional
print(*(name for name in {optional} if name in set(sys.modules) - before))
"""
    assert python(code) == []


def test_without_the_libraries_the_core_works_and_the_neurons_name_the_extra():
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("snntorch", "spikingjelly", "tonic", "matplotlib", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib, torch, fptt_plugin
from fptt_plugin.state import ModelState
assert ModelState(torch.nn.Linear(2, 2)).modules() == []
for library in ("snntorch", "spikingjelly"):
    try:
        importlib.import_module(f"fptt_plugin.{library}")
    except ImportError as error:
        print(f"fptt_plugin[{library}]" in str(error))
"""
    assert python(code) == ["True", "True"]
