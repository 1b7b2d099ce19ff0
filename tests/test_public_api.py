"""docs/api/index.md lists exactly what is public; every public name resolves and shows how it is used."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import fptt_plugin
from fptt_plugin import errors

API = Path(__file__).parents[1] / "docs" / "api"


def listed():
    """Module -> names, of the table in the API index."""
    table = {}
    for row in re.findall(r"^\| `(fptt_plugin[\w.]*)` \| (.*?) \|", (API / "index.md").read_text(), flags=re.MULTILINE):
        table.setdefault(row[0], []).extend(re.findall(r"`(\w+)`", row[1]))
    return table


LISTED = listed()
DOORS = {
    "fptt_plugin.training",
    "fptt_plugin.drivers",
    "fptt_plugin.fit",
}  # of which the index picks names; the rest is for upper floors
NAMES = [(module, name) for module, names in LISTED.items() for name in names]


def test_each_name_is_listed_once_and_resolves():
    assert len(NAMES) == len(set(NAMES)) > 30
    missing = [f"{module}.{name}" for module, name in NAMES if not hasattr(importlib.import_module(module), name)]
    assert missing == []


@pytest.mark.parametrize("module", LISTED)
def test_what_a_listed_module_exports_is_what_is_listed(module):
    """A module without ``__all__`` is one of the inside from which the index picks single names."""
    exported = getattr(importlib.import_module(module), "__all__", LISTED[module])
    if module in DOORS:
        assert set(LISTED[module]) < set(exported)
    else:
        assert set(exported) == set(LISTED[module])


def test_every_exception_and_warning_class_is_listed():
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, (errors.FPTTError, errors.FPTTWarning))
    }
    assert classes == set(LISTED["fptt_plugin.errors"])


def test_nothing_else_is_importable_from_the_top_level():
    """Apart from submodules, which are reached by their own path."""
    public = {name for name, value in vars(fptt_plugin).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(LISTED["fptt_plugin"]) - {"__version__"}


@pytest.mark.parametrize("module", ["fptt_plugin.snntorch", "fptt_plugin.spikingjelly", "fptt_plugin.functional"])
def test_nothing_else_is_importable_from_the_user_facing_subpackages(module):
    values = vars(importlib.import_module(module)).items()
    public = {name for name, value in values if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(LISTED[module])


def pages():
    return {page.name: page.read_text() for page in API.glob("*.md") if page.name != "index.md"}


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_is_documented_with_an_example(module, name):
    value, text = getattr(importlib.import_module(module), name), "".join(pages().values())
    on_page = any(name in example.source for example in doctest.DocTestParser().get_examples(text))
    if isinstance(value, str):
        assert on_page
        return
    assert re.search(rf"^\.\. auto(class|function|data):: {module}\.{name}$", text, flags=re.MULTILINE), "no entry"
    if not callable(value):  # a table of constants, whose use is shown with the function that looks it up
        assert name in importlib.import_module(module).method_color.__doc__
        return
    assert inspect.getdoc(value), "no docstring"
    in_docstring = any(name in example.source for example in doctest.DocTestParser().get_examples(value.__doc__))
    via_result = module == "fptt_plugin.results" and re.search(r">>> (result|sequence|history) = ", text)
    assert in_docstring or on_page or via_result, "no example in the docstring or on its page"


def documented_members():
    """Public classes and functions, with the methods that the pages list: what it is called, the object, its module."""
    text = "".join(pages().values())
    methods = {}
    for path, options in re.findall(r"^\.\. autoclass:: (\S+)\n((?:   :.*\n)*)", text, flags=re.MULTILINE):
        listed_members = re.search(r":members: (.*)", options)
        methods[path] = listed_members[1].split(", ") if listed_members else []
    for module, name in NAMES:
        value = getattr(importlib.import_module(module), name)
        if callable(value):
            yield f"{module}.{name}", value
            yield from (
                (f"{module}.{name}.{method}", getattr(value, method)) for method in methods.get(f"{module}.{name}", [])
            )


MEMBERS = {name: value for name, value in documented_members() if callable(value)}


def own_parameters(value):
    """Arguments of a function, or of a class whose constructor is not that of a documented base."""
    if inspect.isclass(value):
        bases = [base for base in value.__mro__[1:] if base in MEMBERS.values()]
        if (
            value is errors.FPTTWarning
            or getattr(value, "_is_protocol", False)
            or any(base.__init__ is value.__init__ for base in bases)
        ):
            return []
    return [p.name for p in inspect.signature(value).parameters.values() if p.name not in ("self", "cls")]


def test_members_are_found():
    assert len(MEMBERS) > 100
    assert "fptt_plugin.FPTTTrainer.fit" in MEMBERS
    assert len(own_parameters(MEMBERS["fptt_plugin.snntorch.RLTCLeaky"])) > 20


@pytest.mark.parametrize("name", MEMBERS)
def test_every_parameter_and_result_is_documented(name):
    value = MEMBERS[name]
    doc = inspect.getdoc(value)
    arguments = re.search(r"^(?:Args|Attributes):\n(.*?)(?:^\S|\Z)", doc, flags=re.DOTALL | re.MULTILINE)
    described = set(re.findall(r"^    \**(\w+):", arguments[1], flags=re.MULTILINE)) if arguments else set()
    assert set(own_parameters(value)) - described == set()
    if not inspect.isclass(value):
        returns = inspect.signature(value).return_annotation
        assert returns in (None, "None") or re.search(r"^(Returns|Yields):$", doc, flags=re.MULTILINE)


def test_the_plain_reference_is_what_its_script_makes(monkeypatch):
    root = API.parents[1]
    monkeypatch.syspath_prepend(str(root / "examples"))
    made = importlib.import_module("reference_page").page()
    assert (root / "docs" / "reference.md").read_text() == made, "run python examples/reference_page.py"
    assert "0x" not in made  # an address would differ from run to run
    for module, name in NAMES:
        assert name == "__version__" or re.search(rf"^### {name}$", made, flags=re.MULTILINE), (module, name)
    assert made.count("\n* `") > 300  # arguments
