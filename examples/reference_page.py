"""The API reference as one page of plain Markdown, to be read without building the site.

    python examples/reference_page.py           # writes docs/reference.md

Every name that docs/api/index.md lists is here with its signature and its docstring, as are the methods that the API
pages show. A test compares the page with what this script makes.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

API = Path(__file__).parents[1] / "docs" / "api"
TABLE = re.compile(r"^=+ =+ =+\n.*?^=+ =+ =+\n.*?^=+ =+ =+$", flags=re.DOTALL | re.MULTILINE)
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Shape", "Source", "Example")
HEAD = """# Reference

Every public name of `fptt_plugin`, in plain text. The API pages of the site have the same with links and source code;
[contributing](contributing.md) has the command that builds them. `python examples/reference_page.py` makes this page.
"""


def names() -> Iterator[tuple[str, list[str]]]:
    """Module and public names of each row of the API index."""
    rows = re.findall(r"^\| `(fptt_plugin[\w.]*)` \| (.*?) \|", (API / "index.md").read_text(), flags=re.MULTILINE)
    for module, row in rows:
        yield module, [name for name in re.findall(r"`(\w+)`", row) if name != "__version__"]


def methods() -> dict[str, list[str]]:
    """Methods that the API pages show, by class."""
    text = "".join(page.read_text() for page in sorted(API.glob("*.md")))
    found = re.findall(r"^\.\. autoclass:: (\S+)\n((?:   :.*\n)*)", text, flags=re.MULTILINE)
    listed = {path: re.search(r":members: (.*)", options) for path, options in found}
    return {path: members[1].split(", ") if members else [] for path, members in listed.items()}


def markdown(doc: str) -> str:
    """A Google-style docstring in reStructuredText, as Markdown."""
    tables = TABLE.findall(doc)  # they stay as they are, in a fixed font
    doc = TABLE.sub("TABLE", doc)
    doc = re.sub(r":(?:\w+:)?\w+:`~?(?:[^`<]*<)?(?:[\w.]*\.)?([^`.>]+)>?`", r"`\1`", doc)
    doc = doc.replace("``", "`")
    doc = re.sub(r"^\.\. math:: (.*)$", r"$$\1$$", doc, flags=re.MULTILINE)
    lines: list[str] = []
    section = ""
    for line in doc.splitlines():
        title = line[:-1] if line.endswith(":") else ""
        if title in SECTIONS:
            section = title
            lines += [f"**{title}**", ""] + (["```pycon"] if title == "Example" else [])
        elif section == "Example" and line and not line.startswith(" "):
            lines[-1:] = ["```", "", line] if not lines[-1] else ["```", line]
            section = ""
        elif line and not line.startswith(" "):
            section = "" if section != "Example" else section
            lines.append(line)
        else:
            lines.append(_indented(line, section))
    if section == "Example":
        lines.append("```")
    text = "\n".join(lines).strip()
    for table in tables:
        text = text.replace("TABLE", f"```text\n{table}\n```", 1)
    return text


def _indented(line: str, section: str) -> str:
    """A line of a section: an entry becomes an item of a list."""
    if section == "Example":
        return line[4:]
    entry = re.match(r"    (\**\w+)(?: \((.*)\))?: (.*)", line)
    if entry and section in ("Args", "Attributes", "Raises"):
        name = f"`{entry[1]}`" if "*" not in entry[1] else entry[1].replace("*", r"\*")
        return f"* {name} (`{entry[2]}`): {entry[3]}" if entry[2] else f"* {name}: {entry[3]}"
    return "  " + line.strip() if line.strip() and section in ("Args", "Attributes", "Raises") else line.strip()


def signature(value: Any) -> str:
    """Arguments with types and defaults, one a line where they are many."""
    if getattr(value, "_is_protocol", False):
        return ""
    try:
        found = inspect.signature(value)
    except ValueError:  # a class whose constructor is Python's own
        return "()"
    parameters = [p for p in found.parameters.values() if p.name != "self"]
    shown = [_parameter(p) for p in parameters]
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returns = "" if inspect.isclass(value) else f" -> {_type(found.return_annotation)}"
    line = f"({', '.join(shown)}){returns}"
    return line if len(line) <= 80 else "(\n    " + ",\n    ".join(shown) + f",\n){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        text = ("*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**") + text
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    default = parameter.default
    if isinstance(default, str):
        text += f' = "{default}"'
    elif default is not parameter.empty:
        text += f" = {getattr(default, '__name__', default)}"
    return text


def _type(annotation: Any) -> str:
    text: Any = getattr(annotation, "__forward_arg__", None) or getattr(annotation, "__name__", None)
    return str(annotation if isinstance(annotation, str) else text or annotation)


def entry(title: str, name: str, value: Any, level: int) -> str:
    """One name with its signature and its docstring."""
    if isinstance(value, property):
        shown, doc = name, value.__doc__
    elif callable(value):
        shown, doc = name + signature(value), inspect.getdoc(value)
    else:
        shown, doc = f"{name} = {value}", ""
    shown = f"```text\n{shown}\n```\n\n"
    return f"{'#' * level} {title}\n\n{shown}{markdown(doc or '')}\n"


def page() -> str:
    """The whole reference."""
    parts, shown = [HEAD], methods()
    for module, listed in names():
        parts.append(f"## {module}\n")
        for name in listed:
            value = getattr(importlib.import_module(module), name)
            parts.append(entry(name, name, value, 3))
            for method in shown.get(f"{module}.{name}", []):
                member = getattr(value, method)
                parts.append(entry(f"{name}.{method}", method, member, 4))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip() + "\n"


if __name__ == "__main__":
    (API.parent / "reference.md").write_text(page())
