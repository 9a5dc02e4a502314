"""Clocks, peak memory, bandwidth, and a description of the machine."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from personalar.models.chameleon.backend import ChameleonBackend

WARM_UP = 3  # steps
Moment = tuple[float, float]
"""Wall time and CPU time of this process, in seconds."""


def split_own(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return `defaults` updated with the "key=value" arguments for its keys, and the other arguments."""
    own, rest = dict(defaults), []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(argument)
    return own, rest


def whole_number(own: Mapping[str, str], key: str) -> int:
    """Return the value of a setting, a whole number from 1. Raises ValueError for other values."""
    if not own[key].isdigit() or int(own[key]) < 1:
        raise ValueError(f"{key}={own[key]} must be a whole number from 1")
    return int(own[key])


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device's name, threads, load, version of torch and date."""
    info, load = Path("/proc/cpuinfo"), Path("/proc/loadavg")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{names[0]}, {len(names)} cores" if names else platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "load_average": load.read_text().split()[0] if load.exists() else "",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def now() -> Moment:
    """Wait for the GPU; return wall time and CPU time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def seconds_per_step(times: list[Moment]) -> Moment:
    """Return the median wall time and CPU time of a step after the warm-up, from the ends of all steps."""
    pairs = list(zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False))
    passed, worked = (statistics.median(b[clock] - a[clock] for a, b in pairs) for clock in (0, 1))
    return passed, worked


@contextmanager
def counted_forwards(owner: Any) -> Iterator[list[int]]:
    """Yield a list that grows by one with every call of `owner.forward`; graph replays are not counted."""
    forward, calls = owner.forward, []
    owner.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    try:
        yield calls
    finally:
        del owner.forward  # restores the method of the class


def release_memory(device: torch.device) -> None:
    """Free memory that is no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (path := Path("/proc/self/clear_refs")).exists():
        path.write_text("5")  # resets VmHWM


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory since `reset_peak`: that of torch on a GPU, otherwise of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def reason(error: Exception) -> str:
    """Return an error as one line for the table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = (str(error).splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first}"


FORMULA = (
    "bytes of a step = transformer weights without embedding and head + image rows of the head "
    "+ B x rows x mean filled length x 2 x layers x kv heads x head size x bytes per number"
)


def step_bytes(backend: ChameleonBackend, *, batch: int, prompt: int, answer: int, guided: bool) -> float:
    """Return the bytes that an average step of plain decoding reads; see `FORMULA`.

    Args:
        batch: number of images.
        prompt, answer: number of tokens before the image, and of the image.
        guided: whether every image has a second row for guidance.
    """
    transformer = backend.transformer
    weights = sum(p.nbytes for p in transformer.parameters())
    weights -= transformer.lm_head.weight.nbytes + transformer.model.embed_tokens.weight.nbytes
    weights += transformer.lm_head.weight[backend.tokenizer.image_rows].nbytes
    cache = backend.new_cache(torch.zeros(1, 1, dtype=torch.int64, device=backend.device))
    token = sum(t.nbytes for t in (*cache.keys, *cache.values))
    filled = (prompt + answer / 2) + (answer / 2 if guided else 0)
    return weights + batch * filled * token


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second (read and written) of copying a large tensor."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        started, _ = now()
        target.copy_(source)
        seconds.append(now()[0] - started)
    return 2 * source.nbytes / min(seconds)
