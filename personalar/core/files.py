"""Files that are there completely or not at all, whenever a process ends."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.personalar-\d+-\d+\.tmp")
"""Names that `temporary` gives, and nobody else: what a killed run was writing is known by them."""


def temporary(path: Path) -> Path:
    """Return the file beside `path` in which this thread writes what is to become `path`."""
    own = f"personalar-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name[:40]}.{own}.tmp")  # a long name must not get too long


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before; create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path)
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:  # half a file would take the room that lacks
        unfinished.unlink(missing_ok=True)
