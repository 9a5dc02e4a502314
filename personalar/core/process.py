"""The process and its place: threads, exact float32, the allocator, ranks, the memory that it may use."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_MALLOPT_TRIM_THRESHOLD, _MALLOPT_TOP_PAD, _MALLOPT_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
ENDS_WITH_STDIN = "PERSONALAR_ENDS_WITH_STDIN"
"""Variable of a child whose standard input is a pipe that its parent keeps open."""
PROGRAM_BYTES = 400_000_000
"""What Python with torch and Lightning takes of a memory limit, before any weight is read."""
GROUPS, GROUP_OF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("unified", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of control groups of version 2, 2 beside 1, and 1: folder, limit, use, the part that can be given back."""


def keep_memory() -> bool:
    """Make glibc keep freed memory for the next step, which is faster; return whether it did (Linux only)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = ((_MALLOPT_MMAP_MAX, 0), (_MALLOPT_TRIM_THRESHOLD, 2**31 - 1), (_MALLOPT_TOP_PAD, 256 << 20))
    return all([mallopt(option, value) == 1 for option, value in settings])


def global_rank() -> int:
    """Return this process's number among those of a run, as torchrun, SLURM or Lightning set it."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def local_rank() -> int:
    """Return this process's number among those of this machine: the number of its GPU."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _group_limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes left) of each control group that this process is in, and of those around it."""
    try:
        lines = [line.split(":", 2) for line in GROUP_OF.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for hierarchy, limit, use, reclaimable in LIMIT_FILES:
        kind = "memory" if hierarchy == "memory" else ""
        for _, controllers, name in (line for line in lines if len(line) == 3):
            if kind not in controllers.split(","):
                continue
            inner = Path(name.lstrip("/"))
            for group in (inner, *inner.parents):  # in a container the outer ones do not exist
                where = GROUPS / hierarchy / group
                with suppress(OSError, ValueError):  # no such group, or "max"
                    allowed, used = int((where / limit).read_text()), int((where / use).read_text())
                    facts = dict(line.split() for line in (where / "memory.stat").read_text().splitlines())
                    yield allowed, max(0, allowed - used + int(facts.get(reclaimable, 0)))


def memory_limit() -> int | None:
    """Return the memory in bytes that a control group (Docker, SLURM) allows; None without a limit."""
    limits = [allowed for allowed, _ in _group_limits() if allowed < psutil.virtual_memory().total]
    return min(limits, default=None)


def host_bytes() -> int:
    """Return the memory in bytes for weights and what is computed: the machine's, or what a limit leaves."""
    limit = memory_limit()
    return psutil.virtual_memory().total if limit is None else max(0, limit - PROGRAM_BYTES)


def free_host_bytes() -> int:
    """Return the bytes that are free now, on this machine and in the control groups of this process."""
    return min([psutil.virtual_memory().available, *(left for _, left in _group_limits())])


def limit_note() -> str:
    """Return in words what a control group allows; empty without a limit."""
    limit = memory_limit()
    if limit is None:
        return ""
    return (
        f"the limit of this process is {limit / 1e9:.2f} GB, of which the program takes "
        f"{PROGRAM_BYTES / 1e9:.2f}; raise it with docker run --memory=..., sbatch --mem=..."
    )


def check_memory(weights: int = 0) -> None:
    """Raise ValueError where a memory limit is too small to load torch and `weights` (bytes).

    The kernel would kill the process without a word.
    """
    limit = memory_limit()
    if limit is not None and limit < PROGRAM_BYTES + weights:
        raise ValueError(f"too little memory to load {weights / 1e9:.2f} GB of weights: {limit_note()}")


def end_with_parent() -> None:
    """Take SIGTERM when the process that started this one ends, if that asked for it (`ENDS_WITH_STDIN`).

    The other end of standard input then closes, however it ended and on any system.
    """
    if os.environ.pop(ENDS_WITH_STDIN, None) is None:  # not for the children of this process
        return

    def watch() -> None:
        while os.read(0, 1024):
            pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs that processes may be given, in CUDA's words; without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def busy_cores() -> float:
    """Measure for 0.2 s how many cores other processes keep busy."""
    return psutil.cpu_percent(interval=0.2) / 100 * (os.cpu_count() or 1)


def choose_threads(setting: Any, *, busy: float, cores: int) -> int:
    """Return the number of torch threads.

    Threads that wait for a core wait for each other: with two busy neighbours two threads trained a stage six
    times slower than alone.

    Args:
        setting: a number, or "auto": OMP_NUM_THREADS, else the cores that others leave free.
        busy: cores that other processes keep busy.
        cores: cores that this process may use.
    """
    if setting != "auto":
        return int(setting)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return cores if busy < 0.5 else max(1, int(cores - busy - 0.5))


def prepare_torch(setting: Any) -> None:
    """Set the number of torch threads (`choose_threads`) and the kernels of a GPU.

    TF32 convolutions are off: codes and scores, made in float32, shall depend little on the machine. So is
    cuDNN's attention, which prepares itself anew for every length.
    """
    import torch

    busy = busy_cores() if setting == "auto" else 0.0
    torch.set_num_threads(choose_threads(setting, busy=busy, cores=available_cores()))
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far; or the GPU's peak where that is larger."""
    if sys.platform == "win32":
        resident = psutil.Process().memory_info().peak_wset
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return max(resident, torch.cuda.max_memory_allocated())
    return resident
