"""What a measurement says of the machine it ran on: of a GPU more than of a CPU, where it can be told."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from personalar.bench import decode_table
from personalar.bench.decode import read_settings, run
from personalar.bench.machine import machine, told
from personalar.bench.peak import Peak, peak_of, reset_peak
from personalar.bench.train import attempt, table

UUID = "0a1b2c3d-0000-1111-2222-333344445555"
CARDS = f"GPU-ffff, 570.86.15, 300.00\nGPU-{UUID}, 570.86.15, 700.00\n"
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A card that torch tells of, and nvidia-smi beside another one."""
    for name, found in (
        ("get_device_name", "NVIDIA H200"),
        ("get_device_properties", SimpleNamespace(uuid=UUID)),
        ("max_memory_allocated", 3_000_000_000),
        ("max_memory_reserved", 4_000_000_000),
        ("reset_peak_memory_stats", None),
        ("empty_cache", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=found: found)
    says(monkeypatch, CARDS)
    return monkeypatch


def says(patch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    """Let nvidia-smi print `answer`, or fail with it."""

    def called(command: list[str], **_: object) -> SimpleNamespace:
        assert command[0] == "nvidia-smi"
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    patch.setattr(subprocess, "run", called)


def test_a_gpu_is_told_with_its_driver_and_power_limit(gpu: pytest.MonkeyPatch) -> None:
    facts = machine(GPU)
    assert (facts["device"], facts["driver"], facts["power_limit_w"]) == ("NVIDIA H200", "570.86.15", 700.0)
    assert facts["torch"] == torch.__version__ and facts["date"]
    assert "NVIDIA H200, " in told(facts) and "driver 570.86.15, power limit 700 W; torch" in told(facts)


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (f"GPU-{UUID}, 570.86.15, [N/A]\n", {"driver"}),
        ("GPU-ffff, 570.86.15, 700.00\n", {"driver"}),  # a part of a card (MIG) has a uuid of its own
        ("No devices were found\n", set()),
        (FileNotFoundError("nvidia-smi"), set()),
        (subprocess.CalledProcessError(9, "nvidia-smi"), set()),
        (subprocess.TimeoutExpired("nvidia-smi", 60), set()),
    ],
)
def test_what_nvidia_smi_cannot_tell_is_left_out(
    gpu: pytest.MonkeyPatch, answer: str | Exception, known: set[str]
) -> None:
    says(gpu, answer)
    facts = machine(GPU)
    assert {"driver", "power_limit_w"} & set(facts) == known
    assert "torch" in told(facts)


def test_of_a_cpu_nothing_of_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, AssertionError("there is no GPU to ask for"))
    assert not {"driver", "power_limit_w"} & set(machine(CPU))
    reset_peak(CPU)
    assert peak_of(CPU).used > 1e6 and peak_of(CPU).reserved == 0


def test_tables_show_what_was_reserved(gpu: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    settings = read_settings([f"model.path={tiny_model_dir}", "batch=1", "runs=1", "baselines=none"])
    plain = run(settings)
    assert "reserved_mb" not in plain["rows"][0] and "driver" not in plain["machine"]
    gpu.setattr("personalar.bench.decode.peak_of", lambda _: peak_of(GPU))
    record = run(settings)
    assert (record["rows"][0]["peak_mb"], record["rows"][0]["reserved_mb"]) == (3000, 4000)
    assert "| 3000 (4000) |" in decode_table.table(record)
    session = SimpleNamespace(device="cuda:0")
    assert attempt(lambda *_: (1.0, 1.0), session, None)[1] == Peak(3_000_000_000, 4_000_000_000)


def test_the_larger_of_each_peak_is_kept() -> None:
    assert Peak(3, 4).or_more(Peak(5, 1)) == Peak(5, 4)


@pytest.mark.parametrize(("reserved", "cell"), [({"personalar": 4.0}, "| 3.00 (4.00) |"), ({}, "| 3.00 |")])
def test_the_table_of_training(reserved: dict[str, float], cell: str) -> None:
    ones = {"personalar": 1.0}
    result = machine(CPU) | dict.fromkeys(("seconds_per_step", "work_seconds_per_step"), ones)
    result |= dict.fromkeys(("model", "stage", "method"), "x") | {"batch": 4, "tokens": 9, "mfu": None}
    result |= {"ours_over": {}, "our_work_over": {}, "failed": {}, "subject_minutes": None}
    result |= dict.fromkeys(("tokens_per_s", "flops_per_s", "stage_minutes", "stage_steps"), 1.0)
    said = table(result | {"peak_memory_gb": {"personalar": 3.0}, "reserved_memory_gb": reserved})
    assert cell in said and told(machine(CPU)).split(";")[0] in said
