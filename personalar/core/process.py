"""Settings of the process: threads, exact float32, memory that is kept.

Measured on 2 cores: returning every big buffer to the kernel costs a third of a training step.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
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


def visible_gpus() -> list[str]:
    """Return the GPUs that processes may be given, in CUDA's words; without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def choose_threads(setting: Any) -> int:
    """Return the number of torch threads.

    Args:
        setting: "auto" (OMP_NUM_THREADS, or else every core that this process may use), or a number that is
            taken as it is.
    """
    if setting != "auto":
        return int(setting)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else available_cores()


def prepare_torch(setting: Any) -> None:
    """Set the number of torch threads (`choose_threads`), and which of its ways a GPU may take.

    There PyTorch rounds what goes into float32 convolutions to 10 of 23 bits (TF32) unless told not to. Image
    tokenizer and judges are float32 so that codes and scores depend little on the machine.

    On Hopper and newer it may take cuDNN for attention, which prepares itself anew for every shape (tenths of
    a second, as others measured): in sampling every step has a length of its own.
    """
    import torch

    torch.set_num_threads(choose_threads(setting))
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far; or the GPU's peak where that is larger."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return max(resident, torch.cuda.max_memory_allocated())
    return resident
