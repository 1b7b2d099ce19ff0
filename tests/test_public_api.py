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
    if name == "__version__":
        assert on_page
        return
    assert re.search(rf"^\.\. auto(class|function):: {module}\.{name}$", text, flags=re.MULTILINE), "no entry"
    assert inspect.getdoc(value), "no docstring"
    in_docstring = any(name in example.source for example in doctest.DocTestParser().get_examples(value.__doc__))
    via_result = module == "fptt_plugin.results" and re.search(r">>> (result|sequence|history) = ", text)
    assert in_docstring or on_page or via_result, "no example in the docstring or on its page"
