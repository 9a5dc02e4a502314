"""Files that are there completely or not at all, whenever a process ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before; create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{threading.get_ident()}"  # a long name must not get too long
    temporary = path.with_name(f".{path.name[:40]}.{own}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:  # half a file would take the room that lacks
        temporary.unlink(missing_ok=True)
