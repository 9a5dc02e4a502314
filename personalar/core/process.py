"""Settings of this process (threads, float32 kernels, allocator), its limits, and versions of libraries."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from personalar import __version__
from personalar.core.files import plain_name

PACKAGES = (
    "torch", "lightning", "transformers", "safetensors", "tokenizers", "huggingface_hub", "peft", "deepspeed"
)  # fmt: skip
"""The libraries that results depend on."""
_MALLOPT_TRIM_THRESHOLD, _MALLOPT_TOP_PAD, _MALLOPT_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
ENDS_WITH_STDIN = "PERSONALAR_ENDS_WITH_STDIN"
"""A parent sets this variable for a child process that must end with it. The child ends when its standard
input, a pipe held open by the parent, is closed (`end_with_parent`)."""
PROGRAM_BYTES = 400_000_000
"""Memory of Python with torch and Lightning, before any weight is loaded."""
_TAKEN: list[FileLock] = []
"""The lock of this process's GPU; it would be released if nothing referred to it."""
GROUPS, GROUP_OF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of control groups of version 2 and 1: folder, limit, usage, and the entry of memory.stat that counts
reclaimable page cache."""


def keep_memory() -> bool:
    """Make glibc's malloc keep freed memory for the next step. Return whether it did (Linux with glibc only).

    By default malloc returns large blocks to the kernel, which must fill them with zeros again at every step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl, as in Alpine
        return False
    # No mmap for large blocks, never shrink the heap, and grow it in blocks of 256 MB.
    settings = ((_MALLOPT_MMAP_MAX, 0), (_MALLOPT_TRIM_THRESHOLD, 2**31 - 1), (_MALLOPT_TOP_PAD, 256 << 20))
    return all([mallopt(option, value) == 1 for option, value in settings])


def _first_number(*names: str) -> int:
    """Return the first of these environment variables that is a number; 0 if none is."""
    return next((int(found) for name in names if (found := os.environ.get(name, "")).isdigit()), 0)


def global_rank() -> int:
    """Return the rank of this process in the run, as set by torchrun, SLURM or Lightning; default 0."""
    # Lightning's own launcher sets LOCAL_RANK only, on a single machine, where it equals the global rank.
    return _first_number("RANK", "SLURM_PROCID", "LOCAL_RANK")


def local_rank() -> int:
    """Return the rank of this process on this machine, which is the index of its GPU."""
    # torchrun and Lightning set the first, srun the second.
    return _first_number("LOCAL_RANK", "SLURM_LOCALID")


def _groups(hierarchy: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, and of their parent groups."""
    try:
        lines = [line.split(":", 2) for line in GROUP_OF.read_text().splitlines()]
    except OSError:  # not Linux
        return
    # A line of /proc/self/cgroup is "number:controllers:path"; version 2 has no controllers there.
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if hierarchy in controllers.split(","):
            inner = Path(name.lstrip("/"))
            # A parent's limit counts too. In a container the path is the host's and only "/" exists.
            yield from (GROUPS / hierarchy / group for group in (inner, *inner.parents))


def _group_limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, remaining bytes) of each control group of this process and of its parent groups."""
    for hierarchy, limit, use, reclaimable in LIMIT_FILES:
        for where in _groups(hierarchy):
            with suppress(OSError, ValueError):  # no such group, or the limit is "max"
                allowed, used = int((where / limit).read_text()), int((where / use).read_text())
                facts = dict(line.split() for line in (where / "memory.stat").read_text().splitlines())
                # Page cache counts as used, but the kernel frees it when memory is needed.
                yield allowed, max(0, allowed - used + int(facts.get(reclaimable, 0)))


def _core_limits() -> Iterator[float]:
    """Yield the limit of cores of each control group of this process (Docker's --cpus)."""
    for hierarchy in ("", "cpu"):
        for where in _groups(hierarchy):
            with suppress(OSError, ValueError):  # no such group, or the limit is "max"
                if hierarchy == "cpu":
                    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    quota, period = (int((where / name).read_text()) for name in names)
                else:
                    quota, period = map(int, (where / "cpu.max").read_text().split())
                if quota > 0:  # version 1 writes "no limit" as -1
                    yield quota / period


def memory_limit() -> int | None:
    """Return the memory limit in bytes of a control group (Docker, SLURM); None without a limit."""
    # Version 1 writes "no limit" as a number near 2 ** 63.
    limits = [allowed for allowed, _ in _group_limits() if allowed < psutil.virtual_memory().total]
    return min(limits, default=None)


def host_bytes() -> int:
    """Return the bytes for weights and activations: the machine's memory, or a limit minus the program."""
    limit = memory_limit()
    return psutil.virtual_memory().total if limit is None else max(0, limit - PROGRAM_BYTES)


def free_host_bytes() -> int:
    """Return the bytes that are free now: the least of the machine and the control groups of this process."""
    return min([psutil.virtual_memory().available, *(left for _, left in _group_limits())])


def limit_note() -> str:
    """Return a message about the limit of a control group; "" without a limit."""
    limit = memory_limit()
    if limit is None:
        return ""
    return (
        f"the limit of this process is {limit / 1e9:.2f} GB, of which the program needs "
        f"{PROGRAM_BYTES / 1e9:.2f}; raise it with docker run --memory=... or sbatch --mem=..."
    )


def check_memory(weights: int = 0) -> None:
    """Raise ValueError if a memory limit is too small to load torch and `weights` (bytes).

    Otherwise the kernel would kill the process without a message.
    """
    limit = memory_limit()
    if limit is not None and limit < PROGRAM_BYTES + weights:
        raise ValueError(f"too little memory to load {weights / 1e9:.2f} GB of weights: {limit_note()}")


def end_with_parent() -> None:
    """Send SIGTERM to this process when its parent ends, if the parent set `ENDS_WITH_STDIN`.

    When a process ends, in whatever way and on any system, its end of the pipe is closed.
    """
    if os.environ.pop(ENDS_WITH_STDIN, None) is None:  # removed: not for children of this process
        return

    def watch() -> None:
        while os.read(0, 1024):  # returns b"" once the pipe is closed
            pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _allowed_cores() -> list[int]:
    """Return the numbers of the cores on which this process may run."""
    # A batch system or taskset may allow fewer than os.cpu_count(); macOS and Windows do not report it.
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Return the number of cores that this process may use: those it may run on, or a limit below it."""
    return max(1, int(min([len(_allowed_cores()), *_core_limits()])))


def visible_gpus() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them (index or UUID), without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    # Device files of NVIDIA's driver; torch need not be loaded, and no context is created.
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def take_gpu() -> None:
    """Restrict this process and its children to one GPU that no other job on this machine has taken.

    The GPU is taken until this process ends. If all are taken, jobs share one. Call it before torch uses a
    GPU; with a single visible GPU it does nothing.
    """
    names = visible_gpus()
    if len(names) < 2:
        return
    chosen = names[os.getpid() % len(names)]
    for name in names:
        lock = FileLock(
            Path(tempfile.gettempdir()) / f"personalar-gpu-{plain_name(name, longest=60)}.lock", mode=0o666
        )
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            _TAKEN.append(lock)
            chosen = name
            break
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen


def busy_cores() -> float:
    """Return how many of `available_cores` are busy, measured for 0.2 s in which this process sleeps."""
    shares, allowed = psutil.cpu_percent(interval=0.2, percpu=True), _allowed_cores()
    busy = sum(shares[core] for core in allowed if core < len(shares)) / 100
    # With a limit below them, other processes can use the rest of these cores.
    return max(0.0, busy - (len(allowed) - available_cores()))


def choose_threads(setting: Any, *, busy: float, cores: int) -> int:
    """Return the number of torch threads.

    More threads than free cores are slow, because all threads of an operation wait for the last one: beside
    two busy processes, two threads trained a stage six times slower than on an idle machine.

    Args:
        setting: a number, or "auto" for OMP_NUM_THREADS if set, else the number of free cores.
        busy: number of cores that other processes use.
        cores: number of cores that this process may use.
    """
    if setting != "auto":
        return int(setting)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return cores if busy < 0.5 else max(1, int(cores - busy - 0.5))


def prepare_torch(setting: Any) -> None:
    """Set the number of torch threads (see `choose_threads`) and choose GPU kernels."""
    import torch

    busy = busy_cores() if setting == "auto" else 0.0
    torch.set_num_threads(choose_threads(setting, busy=busy, cores=available_cores()))
    # TF32 rounds to 10 bits. Image codes and scores are computed in float32 to depend little on the machine.
    torch.backends.cudnn.allow_tf32 = False
    # cuDNN's attention builds a new plan for every sequence length.
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_memory_bytes() -> int:
    """Return the peak memory in bytes of this process or of its GPU, whichever is larger."""
    if sys.platform == "win32":
        resident = psutil.Process().memory_info().peak_wset
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")  # if it was never imported, no GPU memory was used
    if torch is not None and torch.cuda.is_available():
        return max(resident, torch.cuda.max_memory_allocated())
    return resident


@functools.cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def package_versions() -> dict[str, str]:
    """Return the versions by name; DeepSpeed, for example, is installed on Linux only."""
    own = {"python": platform.python_version(), "personalar": __version__}
    return {**own, **{name: _version(name) for name in PACKAGES}}
