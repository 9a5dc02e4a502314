"""What the process asks of the machine: threads that suit its load, exact float32, memory that is kept.

Measured on 2 cores: with a busy neighbour 2 OpenMP threads are ten times slower than 1 (they wait for each
other), and returning every big buffer to the kernel costs a third of a training step.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

_MALLOPT_TRIM_THRESHOLD, _MALLOPT_TOP_PAD, _MALLOPT_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next step; return whether it listened (False elsewhere)."""
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
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_seconds() -> tuple[float, float]:
    """Return (busy, total) time of all cores since boot, in ticks."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def busy_cores(window_s: float = 0.2) -> float:
    """Measure how many cores others keep busy; the one-minute load average where the system tells no more.

    The average alone would count this very command's set-up of a minute ago as a neighbour.
    """
    if not Path("/proc/stat").exists():
        return os.getloadavg()[0]
    busy, total = _cpu_seconds()
    time.sleep(window_s)
    busy_after, total_after = _cpu_seconds()
    return (os.cpu_count() or 1) * (busy_after - busy) / max(1, total_after - total)


def choose_threads(setting: Any, *, busy: float, cores: int) -> int:
    """Return the number of torch threads.

    Args:
        setting: "auto", or a number that is taken as it is.
        busy: cores that others keep busy.
        cores: cores this process may use.
    """
    if setting != "auto":
        return int(setting)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return cores if busy < 0.5 else max(1, int(cores - busy - 0.5))


def prepare_torch(setting: Any) -> None:
    """Choose the number of torch threads by what others leave free right now (`choose_threads`), and of
    what a GPU could do what suits us.

    There PyTorch rounds what goes into float32 convolutions to 10 of 23 bits (TF32) unless told not to. Image
    tokenizer and judges are float32 so that codes and scores depend little on the machine.

    On Hopper and newer it may take cuDNN for attention, which prepares itself anew for every shape (tenths of
    a second, as others measured): in sampling every step has a length of its own.
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
