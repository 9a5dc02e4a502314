"""Number of threads, and an allocator that keeps freed memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from personalar.core import process
from personalar.core.process import (
    available_cores,
    busy_cores,
    choose_threads,
    keep_memory,
    peak_memory_bytes,
    prepare_torch,
    visible_gpus,
)


@pytest.mark.parametrize(
    ("busy", "cores", "threads"),
    [(0.0, 2, 2), (0.3, 2, 2), (0.9, 2, 1), (2.0, 2, 1), (1.0, 16, 14), (0.0, 1, 1)],
)
def test_a_busy_machine_gets_fewer_threads(monkeypatch, busy: float, cores: int, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_threads("auto", busy=busy, cores=cores) == threads


def test_a_given_number_wins(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads("auto", busy=0.0, cores=8) == 3 and choose_threads(5, busy=9.0, cores=8) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert choose_threads("auto", busy=0.0, cores=8) == 8


def test_float32_is_float32_on_a_gpu_too(monkeypatch) -> None:
    """PyTorch's default (TF32) rounds the factors of a convolution, so photos would get other codes."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    prepare_torch(torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_attention_is_never_prepared_anew_for_every_length() -> None:
    """cuDNN's attention would prepare a plan for each length, and every step of sampling has a new length."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    prepare_torch(torch.get_num_threads())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_measurements_are_sane(monkeypatch) -> None:
    # The kernel counts the two in different ways, a few pages apart.
    assert peak_memory_bytes() > 0.9 * psutil.Process().memory_info().rss
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert available_cores() == 2


def test_work_on_the_cores_of_others_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_allowed_cores", lambda: [1, 3])
    monkeypatch.setattr(process, "_core_limits", lambda: ())
    monkeypatch.setattr(process.psutil, "cpu_percent", lambda **_: [100.0, 20.0, 100.0, 60.0])
    assert available_cores() == 2 and busy_cores() == pytest.approx(0.8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_allocator_listens() -> None:
    assert keep_memory()
    libc, size = ctypes.CDLL(None), 64 << 20
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    held = psutil.Process().memory_info().rss
    libc.free(block)
    assert psutil.Process().memory_info().rss > held - size // 2, "what was freed went back to the kernel"


def test_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_every_job_takes_a_gpu_of_its_own(tmp_path: Path) -> None:
    code = "from personalar.core.process import take_gpu; import os; take_gpu(); take_gpu(); "
    code += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,GPU-a/b", "TMPDIR": str(tmp_path)}
    jobs = []
    for _ in range(3):
        job = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        jobs.append((job, job.stdout.readline().strip()))
    assert [gpu for _, gpu in jobs[:2]] == ["3", "GPU-a/b"] and jobs[2][1] in ("3", "GPU-a/b")
    for job, _ in jobs:
        job.communicate("\n")
