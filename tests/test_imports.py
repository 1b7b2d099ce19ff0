"""The shape of the package: every import, for typing or not, points to a lower floor; libraries stay optional."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import fptt_plugin

PACKAGE = Path(fptt_plugin.__file__).parent
ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "interrupts", "torch_internals"},
    {"tree"},
    {"functional"},
    {"state", "neurons", "regularizer", "results"},
    {"monitor", "snntorch", "spikingjelly", "drivers"},
    {"training"},
    {"compile"},
    {"checkpoint", "fit"},
    {"trainer"},
    {"baselines"},
    {"", "plot", "__main__"},  # the package's own __init__, which names the public classes
]
LIBRARY_MODULES = {"snntorch", "spikingjelly"}


def imported_names(path):
    """Absolute dotted names of everything that a file imports, wherever in the file."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def file_of(name):
    """The file that a dotted name inside the package refers to: a module, a folder's door, or where a name is from."""
    parts = name.split(".")
    while len(parts) > 1 or parts == [PACKAGE.name]:
        base = PACKAGE.joinpath(*parts[1:])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists() and (path.name == "__init__.py" or len(parts) > 1):
                return path
        parts.pop()
    return None


@cache
def file_imports():
    """Direct imports inside the package: file -> files."""
    return {
        path: {file_of(name) for name in imported_names(path) if name.split(".")[0] == PACKAGE.name} - {None, path}
        for path in PACKAGE.rglob("*.py")
    }


def part_of(path):
    """Name of the module, or of the folder, below ``fptt_plugin``; empty for the package's own ``__init__``."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    return "" if relative.parts == ("__init__",) else relative.parts[0]


@cache
def imports():
    """Direct imports between the parts of the package: part -> parts."""
    graph = {}
    for path, targets in file_imports().items():
        graph.setdefault(part_of(path), set()).update(map(part_of, targets))
    return {part: targets - {part, ""} for part, targets in graph.items()}


def reach(graph, start):
    """Everything that a node reaches, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_the_graph_is_read_at_all():
    assert {"errors", "tree", "functional", "regularizer", "state", "drivers", "training"} <= reach(
        imports(), "trainer"
    )
    assert PACKAGE / "training" / "batch.py" in file_imports()[PACKAGE / "training" / "loop.py"]


def test_every_part_has_its_floor():
    assert sorted(part for floor in FLOORS for part in floor) == sorted(imports())


@pytest.mark.parametrize("height", range(len(FLOORS)))
def test_imports_point_to_lower_floors(height):
    below = set().union(*FLOORS[:height])
    for part in FLOORS[height]:
        assert imports()[part] <= below, part


def test_no_file_imports_itself_through_others():
    graph = {
        path: {target for target in targets if target.name != "__init__.py"} for path, targets in file_imports().items()
    }
    assert [str(path) for path in graph if path in reach(graph, path)] == []


def test_folders_are_entered_by_their_door():
    """Files of a folder are imported by that folder alone; the others import what its ``__init__`` names."""
    inside = {
        f"{path.relative_to(PACKAGE)} -> {target.relative_to(PACKAGE)}"
        for path, targets in file_imports().items()
        for target in targets
        if target.parent not in (PACKAGE, path.parent) and target.name != "__init__.py"
    }
    # Pure functions are small modules with names of their own.
    assert {arrow for arrow in inside if "-> functional" not in arrow} == set()


@pytest.mark.parametrize("library", sorted(LIBRARY_MODULES))
def test_nobody_imports_the_library_modules(library):
    assert [part for part, targets in imports().items() if library in targets] == []


def test_at_most_twenty_rooms():
    rooms = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    rooms = [path for path in rooms if not path.stem.startswith("__")]
    assert 15 < len(rooms) <= 20


LAYER = nn.Linear(1, 1)
TORCH_NAMES = {name for one in (LAYER, LAYER.weight, torch.optim.SGD(LAYER.parameters())) for name in dir(one)}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_uses(path, own):
    """Private names in a file that are not the package's ``own``: imported, or attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__":
            yield from filter(is_private, [*node.module.split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            yield from filter(is_private, ".".join(alias.name for alias in node.names).split("."))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of_torch = node.attr in TORCH_NAMES and ast.unparse(node.value) not in ("self", "super()")
            if of_torch or node.attr not in own:
                yield node.attr


def own_names():
    """Private names that the package defines itself."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.alias) and node.asname:
                yield node.asname
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self."):
                yield from [node.attr] if isinstance(node.ctx, ast.Store) else []


def test_private_parts_of_torch_stand_in_one_place():
    documented = {"_asdict", "_replace", "_fields", "_field_defaults", "_getframe"}  # by Python
    own = set(own_names()) | documented
    found = {
        str(path.relative_to(PACKAGE)): {name for name in private_uses(path, own) if not name.startswith("_foreach_")}
        for path in PACKAGE.rglob("*.py")
    }
    assert {"_is_view", "_forward_hooks", "_subclasses"} <= found.pop("torch_internals.py")
    assert found.pop("compile/dynamo.py") == {"_dynamo", "_inductor"}
    memories = [found.pop(file) for file in [*found] if file.startswith("spikingjelly/")]
    assert set().union(*memories) == {"_memories", "_memories_rv"}
    assert {file: names for file, names in found.items() if names} == {}


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
        print(f"pip install '{library}>=" in str(error))
"""
    assert python(code) == ["True", "True"]
