"""Atomic file writes, which survive a kill or a power cut, and size-limited reading of JSON.

A file is on disk once `os.fsync` has returned for the file and for its folder. Syncing is slow. Files
that can be made again (pictures) are therefore written without a sync. The next write with `sync=True` first
syncs all of them, so a record on disk never names a file that is not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPORARY = re.compile(r"\..+\.personalar-(\d+)-\d+\.tmp")
"""Names of unfinished files, as `temporary` makes them; the group is the id of the writing process."""
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)
"""Error codes of file systems that cannot sync folders, or files opened for reading."""
LARGEST_JSON = 16 << 20
"""Bytes. Records and configurations have a few kilobytes, the largest index of a checkpoint one megabyte."""
SYNCED_TOGETHER = 8
"""Threads that sync in parallel, because file systems combine the writes."""

_waiting: set[Path] = set()
"""Files that are complete but not synced yet."""


def plain_name(text: str, *, longest: int, kept: str = "") -> str:
    """Return `text` as a file name that every system allows.

    Args:
        longest: maximum length.
        kept: characters to allow besides ASCII letters, digits, `_`, `.` and `-`.

    Returns:
        A name that is never empty. Different texts may get the same name.
    """
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(rf"[^A-Za-z0-9_.{re.escape(kept)}-]+", "_", letters).strip("_")[:longest] or "unnamed"


def temporary(path: Path) -> Path:
    """Return the path of the unfinished file, in the folder of `path` and unique to this thread."""
    # In the same folder, because a rename is atomic only within one file system.
    own = f"personalar-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name[:40]}.{own}.tmp")  # names are limited to 255 bytes


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` so that `path` contains either all of it or its previous content; create the folder.

    Args:
        sync: return only when this file and all files written before are on disk. Otherwise the file is
            synced together with the next one, or by `sync_files`.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    made = make_folder(path.parent)
    unfinished = temporary(path)
    try:
        unfinished.write_bytes(data)
        put_in_place(unfinished, path, sync=sync, made=made)
    finally:  # after an error; a partial file would take space on a full disk
        unfinished.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Create `folder` and its parents; return the folders that got a new entry and need a sync."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [one.parent for one in missing]


def check_writable(folder: Path) -> None:
    """Create `folder` and write a file there, which is deleted again. Raises OSError if that fails."""
    make_folder(folder)
    probe = temporary(folder / "probe")
    try:
        probe.write_bytes(bytes(1 << 16))  # on a full disk an empty file can still be created
    finally:
        probe.unlink(missing_ok=True)


def put_in_place(unfinished: Path, path: Path, *, sync: bool = True, made: Iterable[Path] = ()) -> None:
    """Rename the file `unfinished` to `path`, replacing it.

    Args:
        sync: see `write_atomic`.
        made: folders to sync besides that of `path`.
    """
    # The content first, then the name, then the folder: otherwise the file could be empty after a power cut.
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
    """Sync all files written before, and `more` (files, or folders with their content)."""
    found = []
    for path in more:
        found += [path, *path.rglob("*")]
    while _waiting:  # not a loop over the set: another thread may add to it
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
    if windows and path.is_dir():  # Windows cannot open a folder as a file, and needs no sync of it
        return
    # Windows syncs only files that are open for writing.
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def is_whole(path: Path) -> bool:
    """Return whether `path` is a file with content; a power cut leaves files empty or full of zeros."""
    try:  # the first and the last byte suffice, so that large files are not read
        with path.open("rb") as stream:
            head = stream.read(1)
            return head not in (b"", b"\0") and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\0"
    except OSError:
        return False


def base_fingerprint(files: Iterable[Path]) -> str:
    """Return the sha256 (hex) over names and contents of a base's weight files, in order."""
    paths = list(files)
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL, and a 7B has several files
        contents = pool.map(content_hash, paths)
        named = [f"{path.name}:{content};" for path, content in zip(paths, contents, strict=True)]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    # The hub's cache links each file to a blob that is named by its sha256, so it need not be read again.
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, like `write_atomic`."""
    # File names can contain surrogates for invalid bytes. As \\udcXX they are valid JSON of the same value.
    write_atomic(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Return the value of a JSON file from an untrusted source.

    Raises:
        ValueError: larger than `LARGEST_JSON`, not JSON, or nested too deeply.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size / 1e6:.0f} MB, allowed: {LARGEST_JSON >> 20}")
    return parse_json(path.read_bytes())


def parse_json(data: bytes | str) -> Any:
    """Return the value of JSON text. Raises ValueError if it is not JSON or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fits(value: Any, shape: Any) -> bool:
    """Return whether a JSON value matches a schema.

    Args:
        shape: the schema. A type, or None for null; a tuple of alternatives; a list with the schema of every
            item; or a dict with a schema per key. In a dict, keys are optional unless written as "key!",
            and "*" is the schema of all other keys (default: any value).
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        required = {key[:-1] for key in shape if key.endswith("!")}
        if not isinstance(value, dict) or not required <= set(value):
            return False
        others = shape.get("*", object)
        schemas = {key: shape.get(key, shape.get(f"{key}!", others)) for key in value}
        return all(fits(item, schemas[key]) for key, item in value.items())
    if shape is None:
        return value is None
    if isinstance(value, bool):  # in Python a bool is an int, in JSON it is not a number
        return shape in (bool, object)
    return isinstance(value, int | float if shape is float else shape)


def template_environment(folder: Path, *, escape: bool, **filters: Callable[..., str]) -> Environment:
    """Return a Jinja environment for `folder`; keep it, because it compiles each template once.

    Args:
        folder: the templates.
        escape: escape values for HTML.
        filters: functions that templates can call by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=escape,
        # A misspelt variable is an error instead of an empty string.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    return environment
