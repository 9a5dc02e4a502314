"""Atomic files: complete or absent, whenever a process ends."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.personalar-\d+-\d+\.tmp")
"""Names that only `temporary` gives: they mark files that a killed run was writing."""


def temporary(path: Path) -> Path:
    """Return the file beside `path` that this thread writes and then renames to `path`."""
    own = f"personalar-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name[:40]}.{own}.tmp")  # a long name must not get too long


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before; create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path)
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:  # half a file would fill a full disk
        unfinished.unlink(missing_ok=True)
