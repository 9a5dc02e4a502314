"""One run at a time in a run folder: a second one ends at once and names the process that holds the lock.

The lock (flock) ends with its process, so a killed run blocks nobody.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from personalar.core.files import temporary

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""Answers of file systems that know no flock."""
HYDRA_FOLDER, HYDRA_FILES = ".hydra", ("config.yaml", "hydra.yaml", "overrides.yaml")


class InUseError(ValueError):
    """Another run is at work in the folder."""


def in_use(run_dir: Path) -> str:
    """Return the message for a second run in `run_dir`."""
    try:
        holder = json.loads((run_dir / LOCK_FILE).read_text(encoding="utf-8"))
        host, pid = str(holder["host"]), int(holder["pid"])
    except (OSError, ValueError, TypeError, KeyError):  # not written yet
        host, pid = "this or another machine", 0
    who = f"process {pid} on {host}" if pid else f"another process on {host}"
    ending = f"end it with `kill {pid}` on {host}" if pid else "end it"
    return (
        f"{run_dir} is in use by {who}: wait for it, or {ending} (it saves, and this command then goes on); "
        "to run beside it choose another folder with hydra.run.dir=DIR"
    )


@contextmanager
def locked(run_dir: Path, *, leads: bool = True) -> Iterator[None]:
    """Keep other runs out of `run_dir` while the block runs.

    Args:
        leads: this is the process of rank zero; the others take no lock.

    Raises:
        ValueError: another run is at work there, with its host and process.
    """
    if not leads:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(in_use(run_dir)) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{run_dir} is on a file system without locks (flock), where two runs could spoil each other: "
            "choose a folder on another disk with hydra.run.dir=DIR"
        ) from error
    try:
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        with suppress(PermissionError):  # Windows locks the content too
            (run_dir / LOCK_FILE).write_text(holder, encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def refusable(run_dir: Path) -> Iterator[None]:
    """Remove `run_dir` when the block fails before a run wrote anything there; inside `locked`."""
    try:
        yield
    except Exception:
        remove_empty_run(run_dir)
        raise


def remove_empty_run(run_dir: Path) -> None:
    """Delete `run_dir` if it contains only Hydra's three files and the lock."""
    hydra = run_dir / HYDRA_FOLDER
    if not is_empty(run_dir) or run_dir.resolve() == Path.cwd():
        return
    with suppress(OSError):  # not as it looks, or not to be deleted
        for path in (*(hydra / name for name in HYDRA_FILES), run_dir / LOCK_FILE):
            path.unlink(missing_ok=True)
        if hydra.is_dir():
            hydra.rmdir()
        run_dir.rmdir()


def is_empty(run_dir: Path, *more: str) -> bool:
    """Tell whether `run_dir` contains only Hydra's three files, the lock and files of the names `more`."""
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")}
    return found <= {HYDRA_FOLDER, LOCK_FILE, *more, *(f"{HYDRA_FOLDER}/{name}" for name in HYDRA_FILES)}


def check_run_folder(run_dir: Path, *, leads: bool = True) -> None:
    """Make `run_dir` and try to write there, before Hydra does.

    Raises:
        ValueError: another run is at work there.
        OSError: it cannot be made or written.
    """
    if not leads:
        return
    with locked(run_dir):
        probe = temporary(run_dir / "probe")
        try:
            probe.write_bytes(bytes(1 << 16))
        finally:
            probe.unlink(missing_ok=True)
