"""Atomic files: complete or absent, whenever a process ends or the power fails.

A file is on the disk once `os.fsync` has returned for it and for its folder. Pictures and other files that
can be made again wait for the next file that is synced: they come to the disk before it, so no record names a
file that a power cut could empty.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.personalar-\d+-\d+\.tmp")
"""Names that only `temporary` gives: they mark files that a killed run was writing."""
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)
"""Answers of file systems that do not sync folders, or not what is open for reading."""
SYNCED_TOGETHER = 8
"""Threads: file systems write the files of several at once."""

_waiting: set[Path] = set()
"""Files that have their name and may not be on the disk yet."""


def plain_name(text: str, *, longest: int, kept: str = "") -> str:
    """Return `text` as a name for any system: ASCII letters, digits, `_`, `.`, `-` and `kept`, never empty.

    Different texts may get the same name.
    """
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(rf"[^A-Za-z0-9_.{re.escape(kept)}-]+", "_", letters).strip("_")[:longest] or "unnamed"


def temporary(path: Path) -> Path:
    """Return the file beside `path` that this thread writes and then renames to `path`."""
    own = f"personalar-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name[:40]}.{own}.tmp")  # a long name must not get too long


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` so that `path` holds either all of it or what it held before; create the folder.

    Args:
        sync: return when it is on the disk, and before it all that was written earlier; else it waits for
            the next file that is synced, or for `sync_files`.
    """
    made = make_folder(path.parent)
    unfinished = temporary(path)
    try:
        unfinished.write_bytes(data)
        put_in_place(unfinished, path, sync=sync, made=made)
    finally:  # half a file would fill a full disk
        unfinished.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Create `folder`; return the folders that got a new entry thereby."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [one.parent for one in missing]


def put_in_place(unfinished: Path, path: Path, *, sync: bool = True, made: Iterable[Path] = ()) -> None:
    """Rename a file to `path`.

    Args:
        sync: see `write_atomic`.
        made: folders to sync besides that of `path`.
    """
    if sync:
        sync_files()
        _sync(unfinished)
    os.replace(unfinished, path)
    for folder in (path.parent, *made):
        if sync:
            _sync(folder)
        else:
            _waiting.add(folder)
    if not sync:
        _waiting.add(path)


def sync_files(*more: Path) -> None:
    """Return when all files written before, and `more` (folders with all they contain), are on the disk."""
    found = [inside for path in more for inside in (path, *path.rglob("*"))]
    while _waiting:
        found.append(_waiting.pop())
    if len(found) > 1:
        with ThreadPoolExecutor(SYNCED_TOGETHER) as pool:
            list(pool.map(_sync_if_there, found))
    elif found:
        _sync_if_there(found[0])


def _sync_if_there(path: Path) -> None:
    with suppress(FileNotFoundError):  # deleted in the meantime
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def is_whole(path: Path) -> bool:
    """Tell whether `path` is a file with something in it: a power cut leaves files empty or full of zeros."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1)
            return head not in (b"", b"\0") and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\0"
    except OSError:
        return False
