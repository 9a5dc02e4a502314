"""Atomic files: complete or absent, whenever a process ends or the power fails; and JSON within bounds.

A file is on the disk once `os.fsync` has returned for it and for its folder. Pictures and other files that
can be made again wait for the next file that is synced: they come to the disk before it, so no record names a
file that a power cut could empty.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\..+\.personalar-(\d+)-\d+\.tmp")
"""Names that only `temporary` gives, with the process: they mark files that a killed one was writing."""
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)
"""Answers of file systems that do not sync folders, or not what is open for reading."""
LARGEST_JSON = 16 << 20
"""Bytes; the records and configurations that are read have some kilobytes, the largest index a megabyte."""
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
    windows = os.name == "nt"
    if windows and path.is_dir():  # it opens no folder
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
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


def base_fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of a base's weight files, names and contents."""
    paths = list(files)
    with ThreadPoolExecutor() as pool:  # a 7B has several files, and hashing keeps one core busy
        contents = pool.map(content_hash, paths)
        named = [f"{path.name}:{content};" for path, content in zip(paths, contents, strict=True)]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """Return the sha256 of a file; one that a hub's cache keeps under its sha256 is not read for it."""
    kept_as = path.resolve().name
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", kept_as):
        return kept_as
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, as `write_atomic` does.

    Names that are no text have their bytes spelt out: in JSON that is the same value.
    """
    write_atomic(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that may come from a stranger.

    Raises:
        ValueError: with the reason: too large, damaged, or nested too deeply.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size / 1e6:.0f} MB, allowed: {LARGEST_JSON >> 20}")
    return parse_json(path.read_bytes())


def parse_json(data: bytes | str) -> Any:
    """Return the value of JSON text. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fits(value: Any, shape: Any) -> bool:
    """Tell whether plain values are of a shape.

    Args:
        shape: a type; None; a tuple of shapes, of which one fits; a list with the shape of every item; or a
            dict with the shapes of those keys that are there, "*" for all others; "x!": x must be there.
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict) or not {key[:-1] for key in shape if key.endswith("!")} <= set(value):
            return False
        any_key = shape.get("*", object)
        return all(fits(item, shape.get(key, shape.get(f"{key}!", any_key))) for key, item in value.items())
    if shape is None:
        return value is None
    if isinstance(value, bool):
        return shape in (bool, object)
    return isinstance(value, int | float if shape is float else shape)
