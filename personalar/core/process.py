"""Settings of the process: threads, exact float32, the allocator, ranks."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Any

import psutil

_MALLOPT_TRIM_THRESHOLD, _MALLOPT_TOP_PAD, _MALLOPT_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


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
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return max(resident, torch.cuda.max_memory_allocated())
    return resident
