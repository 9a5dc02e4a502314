"""The experiments' own modules can be imported here, as with PYTHONPATH=experiments."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments"
sys.path[:0] = [str(FOLDER), str(FOLDER / "nano_base")]
collect_ignore_glob = [] if FOLDER.is_dir() else ["test_*.py"]
"""A copy of the source may have no experiments/."""
