"""Memory limits of containers and batch systems, read from control groups of both versions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest_run import compose_config

from personalar.core import process
from personalar.doctor import diagnose
from personalar.generation.batching import free_bytes
from personalar.runs.personalize import prepare
from personalar.training.memory_fit import device_bytes

GB, HOST = 10**9, 64 * 10**9
NO_LIMIT = 9223372036854771712
"""The limit in version 1 that stands for "no limit"."""


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of 64 GB, 50 of them free: `groups(lines, {folder: (limit, used, reclaimable)})`."""

    def make(lines: str, limits: dict[str, tuple[object, int, int]]) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for folder, (limit, used, cached) in limits.items():
            where = tmp_path / "groups" / folder
            where.mkdir(parents=True, exist_ok=True)
            first = folder.split("/")[0] == "memory"
            names = ("limit_in_bytes", "usage_in_bytes") if first else ("max", "current")
            (where / f"memory.{names[0]}").write_text(f"{limit}\n")
            (where / f"memory.{names[1]}").write_text(f"{used}\n")
            stat = f"anon 5\n{'total_' if first else ''}inactive_file {cached}\n"
            (where / "memory.stat").write_text(stat)

    memory = SimpleNamespace(total=HOST, available=50 * GB)
    monkeypatch.setattr(process.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(process, "GROUP_OF", tmp_path / "cgroup")
    monkeypatch.setattr(process, "GROUPS", tmp_path / "groups")
    return make


V1 = "9:cpuset:/\n4:cpu,memory:/slurm/job_7/step_0\n0::/\n"
CASES = [
    ("no control groups", "", {}, None, 50 * GB),
    ("version 2, none", "0::/user.slice\n", {"user.slice": ("max", GB, 0)}, None, 50 * GB),
    ("version 2, Docker", "0::/\n", {"": (4 * GB, GB, GB // 2)}, 4 * GB, 7 * GB // 2),
    ("version 2, nested", "0::/a/b\n", {"a": (2 * GB, GB, 0), "a/b": (8 * GB, GB, 0)}, 2 * GB, GB),
    ("version 1, none", V1, {"memory/slurm/job_7/step_0": (NO_LIMIT, GB, 0)}, None, 50 * GB),
    ("version 1, SLURM", V1, {"memory/slurm/job_7": (6 * GB, 2 * GB, GB)}, 6 * GB, 5 * GB),
    ("version 1, Docker", "4:memory:/docker/0abc\n", {"memory": (GB, GB // 2, 0)}, GB, GB // 2),
    ("larger than the machine", "0::/\n", {"": (99 * GB, GB, 0)}, None, 50 * GB),
    ("other text", "0::/\nx\n", {"": ("?", 3, 3)}, None, 50 * GB),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "limits", "limit", "free"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])  # fmt: skip  # noqa: E501
def test_what_fits_follows_the_smaller_memory_limit(groups, lines, limits, limit, free) -> None:
    groups(lines, limits)
    assert process.memory_limit() == limit
    assert process.host_bytes() == (HOST if limit is None else limit - process.PROGRAM_BYTES)
    assert free_bytes(torch.device("cpu")) == process.free_host_bytes() == free
    config = compose_config("+subject=cat", "experiment=quick")
    assert device_bytes(config) == process.host_bytes()
    assert device_bytes(compose_config("+subject=cat", "memory.gigabytes=3")) == 3 * GB


@pytest.mark.parametrize(
    ("lines", "files", "cores"),
    [
        ("", {}, 8),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/d\n", {"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/d\n", {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_follow_the_limit_of_a_control_group(
    groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: dict[str, str], cores: int
) -> None:
    groups(lines, {})
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    monkeypatch.setattr(process, "_allowed_cores", lambda: list(range(8)))
    assert process.available_cores() == cores
    monkeypatch.setattr(process.psutil, "cpu_percent", lambda **_: [50.0] * 8)
    assert process.busy_cores() == max(0, 4 - (8 - cores))  # others can use the rest


def test_a_memory_limit_that_is_too_small_is_told(
    groups, tmp_path: Path, tiny_model_dir: Path, capsys
) -> None:
    """An error before torch is loaded, not a kill by the kernel, and an error by the estimate of a stage."""
    words = ["+subject=cat", f"model.path={tiny_model_dir}", "scorer=none", "experiment=quick"]
    groups("0::/\n", {"": (300_000_000, 99, 0)})
    with pytest.raises(ValueError, match=r"too little memory.*limit of this process is 0\.30 GB.*docker run"):
        prepare(compose_config(*words), tmp_path / "run")
    with pytest.raises(SystemExit):
        diagnose(compose_config(f"model.path={tiny_model_dir}", name="doctor"))
    assert "PROBLEM: too little memory" in capsys.readouterr().out
    groups("0::/\n", {"": (process.PROGRAM_BYTES + 1000, 99, 0)})
    with pytest.raises(
        ValueError, match=r"needs 0\.\d+ GB.*allows 0\.00 GB \(the limit of this process is 0\.40"
    ):
        prepare(compose_config(*words), tmp_path / "run")
    with pytest.raises(ValueError, match=r"to load 9\.00 GB of weights: the limit of this process"):
        process.check_memory(9 * GB)


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of 300 MB below that of this process; skipped if it cannot be created."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.exists() else []
    names = {kinds: name.lstrip("/") for _, kinds, name in (line.split(":", 2) for line in lines)}
    first = "memory" in names  # version 1
    hierarchy, kinds = ("memory", "memory") if first else ("", "")
    parent = Path("/sys/fs/cgroup", hierarchy, names.get(kinds, ""))
    group = parent / f"personalar-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text("300000000")
        yield group
    except OSError as error:
        pytest.skip(f"the group takes no memory limit: {error.strerror}")
    finally:
        group.rmdir()


def test_a_real_control_group_is_read_before_it_kills(
    real_group: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    def within(*words: str) -> subprocess.CompletedProcess[str]:
        enter = f'echo $$ > {real_group}/cgroup.procs && exec "$@"'
        return subprocess.run(["sh", "-c", enter, "sh", *words], capture_output=True, text=True, cwd=tmp_path)

    killed = within(sys.executable, "-c", "b'x' * 600_000_000")
    assert killed.returncode == -signal.SIGKILL  # the limit is real
    words = ["+subject=cat", f"model.path={tiny_model_dir}", "scorer=none", "experiment=quick"]
    refused = within(sys.executable, "-m", "personalar.run", *words)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
    assert "the limit of this process is 0.30 GB" in refused.stderr
