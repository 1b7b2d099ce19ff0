"""A doctest of a page ends in an empty line, or the fence would be part of its output; readers do not see that line."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class NoEmptyLastLine(SphinxPostTransform):
    """In every code block."""

    default_priority = 900

    def run(self, **_: object) -> None:
        for block in self.document.findall(nodes.literal_block):
            if block.astext().endswith("\n"):
                block.rawsource = block.astext().rstrip()
                block[:] = [nodes.Text(block.rawsource)]  # so that the text knows its parent


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the transform."""
    app.add_post_transform(NoEmptyLastLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
