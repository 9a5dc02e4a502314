"""Which GPU of this machine a process computes on, where a launcher runs several jobs of a sweep at once.

A place is taken by process, not by job number: jobs take different times, so that number modulo GPUs would
put two on one card while another idles; and a launcher's process that serves several jobs cannot change its
GPU once CUDA runs.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

_places: list[tuple[FileLock, str]] = []
"""This process's place, with what was said of it; the operating system frees it when the process ends."""


def visible_gpus() -> list[str]:
    """Return the GPUs that processes may be given, in CUDA's words; without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def take_gpu(folder: Path) -> str | None:
    """Let this process see one GPU only, until it ends: one that fewest of those asking in `folder` have.

    To be called before CUDA starts in this process, which reads its GPUs once. Inside it the GPU is cuda:0
    whichever it is, so that nothing of a result names it.

    Returns:
        What to tell about it; None where there is no GPU.
    """
    if _places:
        return _places[0][1]
    gpus = visible_gpus()
    if not gpus:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock, gpu, before = _free_place(folder, gpus)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    told = f"this job computes on GPU {gpu} (of {', '.join(gpus)})"
    if before:
        told += (
            f", as {before} more at this time: for a GPU of its own run at most {len(gpus)} jobs at once "
            "(hydra.launcher.n_jobs); to share one, tell each its part with memory.gigabytes"
        )
    _places.append((lock, told))
    return told


def _free_place(folder: Path, gpus: list[str]) -> tuple[FileLock, str, int]:
    """Return (the lock of a free place, its GPU, how many others are there): one for each GPU comes first."""
    for before in count():
        for gpu in gpus:
            name = re.sub(r"[^\w.-]", "_", f"{socket.gethostname()}-{gpu}-{before}")
            lock = FileLock(folder / f"{name}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                return lock, gpu, before
    raise AssertionError("count() does not end")
