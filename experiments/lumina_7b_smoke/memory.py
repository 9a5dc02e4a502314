"""Peak memory since the last reset."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


def reset_peak_memory(cuda: bool) -> None:
    """Reset the peak memory. If the kernel does not allow it, the peak of the host is that of the process."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_host_bytes() -> int:
    """Return the largest resident set since the last reset."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
