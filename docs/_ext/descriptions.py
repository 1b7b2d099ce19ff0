"""API pages: types of a constructor's arguments, of attributes and of what is returned; links from the index."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc.typehints import record_typehints

ATTRIBUTE = re.compile(r"(\.\. attribute:: \w+\n)((?:   .*\n|\n)*?)\n   :type: (.*)\n")
DOTTED = re.compile(r"(?<![\w.])\w+(?:\.\w+)+")


def _types_of_init(app, objtype, name, obj, options, args, retann):  # type: ignore[no-untyped-def]
    # Sphinx takes the type of a class's attribute for that of an argument of the same name.
    if objtype == "class" and "__init__" in vars(obj):
        record_typehints(app, objtype, name, obj.__init__, options, args, retann)
        types = app.env.current_document.autodoc_annotations.get(name, {})
        types.update({key: re.sub(r"\S*TypeAliasForwardRef\('(.*?)'\)", r"~\1", text) for key, text in types.items()})


def _no_arguments_of_protocols(app, objtype, name, obj, options, args, retann):  # type: ignore[no-untyped-def]
    return ("", None) if objtype == "class" and getattr(obj, "_is_protocol", False) else None


def _types_of_attributes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Napoleon writes the type below the description, with the full path of its module.
    def beside_name(match: re.Match[str]) -> str:
        head, description, type_ = match.groups()
        return f"{head}   :type: {DOTTED.sub(lambda path: '~' + path[0], type_)}\n{description}"

    lines[:] = ATTRIBUTE.sub(beside_name, "\n".join(lines) + "\n").split("\n")


def _type_after_returned(app: Sphinx, domain: str, objtype: str, content: nodes.Element) -> None:
    # Napoleon begins another list of fields below the attributes: what a class raises belongs to its parameters. And
    # Sphinx appends the type behind the exceptions.
    lists = [child for child in content.children if isinstance(child, nodes.field_list)]
    for later in lists[1:]:
        lists[0].extend(later.children)
        content.remove(later)
    for fields in content.findall(nodes.field_list):
        named = {field[0].astext(): field for field in fields}
        if "returns" in named and "rtype" in named:
            fields.remove(named["rtype"])
            fields.insert(fields.index(named["returns"]) + 1, named["rtype"])


def _links_in_the_index(app: Sphinx, document: nodes.document) -> None:
    # Its table has modules in the first column and names in the second, in Markdown that needs no site.
    if app.env.docname != "api/index":
        return
    for row in document.findall(nodes.row):
        module, names = row[0].astext(), row[1]
        for literal in list(names.findall(nodes.literal)):
            if not literal.astext().startswith("__"):
                target = {"refdomain": "py", "reftype": "obj", "reftarget": f"{module}.{literal.astext()}"}
                link = addnodes.pending_xref("", literal.deepcopy(), refdoc=app.env.docname, refexplicit=True, **target)
                literal.parent.replace(literal, link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the handlers, each after that of Sphinx which it corrects."""
    app.connect("autodoc-process-signature", _types_of_init, priority=900)
    app.connect("autodoc-process-signature", _no_arguments_of_protocols, priority=901)
    app.connect("autodoc-process-docstring", _types_of_attributes, priority=900)
    app.connect("doctree-read", _links_in_the_index)
    app.connect("object-description-transform", _type_after_returned, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
