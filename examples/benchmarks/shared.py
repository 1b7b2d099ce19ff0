"""What the benchmarks share with the other examples, whose folder is not on the path of scripts in this one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from _measure import device_name, versions

__all__ = ["device_name", "versions"]
