"""Links to other projects without a network: their objects are listed in ``docs/inventories/NAME.txt``.

The first line of a list is the address of the documentation. The others are objects as Sphinx's inventories have them:
name, role, page with ``$`` for the name. A build compresses each list into the format that intersphinx reads.
"""

from __future__ import annotations

import zlib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "inventories"


def mapping() -> dict[str, tuple[str, str]]:
    """``intersphinx_mapping`` for every list; always the same paths, or Sphinx would build all pages again."""
    out = FOLDER.parent / "_build" / ".inventories"
    out.mkdir(parents=True, exist_ok=True)
    return {path.stem: _compress(path, out / f"{path.stem}.inv") for path in sorted(FOLDER.glob("*.txt"))}


def _compress(path: Path, target: Path) -> tuple[str, str]:
    address, *objects = path.read_text().splitlines()
    lines = []
    for line in filter(None, objects):
        name, role, page = line.split()
        lines.append(f"{name} {role} 1 {page} -\n")
    head = f"# Sphinx inventory version 2\n# Project: {path.stem}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    target.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return address, str(target)
