"""A lock on a run folder: a second run in the same folder ends at once with an error.

The operating system releases the lock (flock) when its process ends, so a killed run leaves none behind.
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

from personalar.core.files import check_writable

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""Error codes of file systems without flock."""
HYDRA_FOLDER, HYDRA_FILES = ".hydra", ("config.yaml", "hydra.yaml", "overrides.yaml")


class InUseError(ValueError):
    """Another run is active in the folder."""


def in_use(run_dir: Path) -> str:
    """Return the error message for a second run in `run_dir`, with host and process of the first."""
    try:
        holder = json.loads((run_dir / LOCK_FILE).read_text(encoding="utf-8"))
        host, pid = str(holder["host"]), int(holder["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        # The first run has locked the folder, but not written its name yet.
        host, pid = "this or another machine", 0
    who = f"process {pid} on {host}" if pid else f"another process on {host}"
    ending = f"end it with `kill {pid}` on {host}" if pid else "end it"
    return (
        f"{run_dir} is in use by {who}: wait for it, or {ending} (it saves, and this command then goes on); "
        "for a second run at the same time choose another folder with hydra.run.dir=DIR"
    )


@contextmanager
def locked(run_dir: Path, *, leads: bool = True) -> Iterator[None]:
    """Lock `run_dir` against other runs while the block runs; create it.

    Args:
        leads: this is the process of rank zero; the others take no lock.

    Raises:
        InUseError: another run is active there.
        ValueError: the file system has no locks.
    """
    if not leads:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)  # a run takes hours, so do not wait
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
        # Windows locks the content too; the message of a second run then has no process.
        with suppress(PermissionError):
            (run_dir / LOCK_FILE).write_text(holder, encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def refusable(run_dir: Path, *, leads: bool = True) -> Iterator[None]:
    """Delete `run_dir` if the block fails before anything was written there; use it inside `locked`.

    Args:
        leads: this is the process of rank zero; the others delete nothing.
    """
    try:
        yield
    except Exception:
        # .hydra/ is written after the checks only (see output_subdir in conf/run.yaml).
        if leads and run_dir.resolve() != Path.cwd() and [p.name for p in run_dir.iterdir()] == [LOCK_FILE]:
            with suppress(OSError):  # another process wrote there in the meantime, or it must not be deleted
                (run_dir / LOCK_FILE).unlink()
                run_dir.rmdir()
        raise


def is_empty(run_dir: Path, *more: str) -> bool:
    """Return whether `run_dir` contains only Hydra's three files, the lock, and files named in `more`."""
    known = {HYDRA_FOLDER, LOCK_FILE, *more, *(f"{HYDRA_FOLDER}/{name}" for name in HYDRA_FILES)}
    # Stops at the first other file: a folder with thousands of pictures is not walked.
    return all(path.relative_to(run_dir).as_posix() in known for path in run_dir.rglob("*"))


def check_run_folder(run_dir: Path, *, leads: bool = True) -> None:
    """Create `run_dir` and try to write there, before Hydra does.

    Raises:
        ValueError: another run is active there.
        OSError: it cannot be created or written.
    """
    if not leads:
        return
    with locked(run_dir):
        check_writable(run_dir)
