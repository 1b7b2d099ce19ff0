"""A number and its unit stay on one line, and so do ``n = 3`` and ``6 tried``: the spaces within do not break."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

UNIT = re.compile(r"(?<=\d) (?=(?:%|MiB|GiB|KiB|ms|s|min|tried)(?!\w))|(?<=\(n) (?==)|(?<=\(n =) (?=\d)")


class Units(SphinxPostTransform):
    """In every text but code."""

    default_priority = 900

    def run(self, **_: object) -> None:
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.literal | nodes.literal_block | nodes.raw | nodes.math | nodes.math_block):
                continue
            kept = UNIT.sub("\N{NO-BREAK SPACE}", text)
            if kept != text:
                text.parent.replace(text, nodes.Text(kept))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the transform."""
    app.add_post_transform(Units)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
