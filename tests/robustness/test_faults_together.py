"""Faults in runs of two processes: both end, nothing finished is lost, and the same command resumes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest_run import QUICK
from processes import run_filling, run_interrupted, run_together
from test_distributed import assert_same_learning
from test_faults import remount, small_disk

from personalar.core.errors import user_message
from personalar.core.run_folder import RunFolder

__all__ = ["small_disk"]


def overrides_of(model: Path, trainer: str) -> list[str]:
    words = ["+subject=cat", *QUICK, f"model.path={model}", "scorer=none", f"trainer={trainer}"]
    words += ["samples.prompts=['a {}']", "samples.kinds=[subject]", "samples.grid_every_steps=0"]
    return [*words, "trainer.accelerator=cpu"]


@pytest.mark.slow  # that of a full disk below has the same death with zero2
@pytest.mark.parametrize("trainer", ["ddp", "zero2"])
def test_a_process_that_dies(trainer: str, tiny_model_dir: Path, finished_run: Path, tmp_path: Path) -> None:
    overrides, run_dir = overrides_of(tiny_model_dir, trainer), tmp_path / "run"
    assert_death_is_told(run_dir, overrides, call=7)
    run_together(run_dir, *overrides)
    assert_same_learning(finished_run, run_dir)


def test_a_disk_that_is_full_when_deepspeed_saves_and_a_damaged_checkpoint(
    tiny_model_dir: Path, finished_run: Path, small_disk: Path
) -> None:
    overrides = overrides_of(tiny_model_dir, "zero2")
    remount(small_disk, "size=32m")
    said = run_together(small_disk, *overrides, work=run_filling, arguments=(2,), expected=(1, 1))
    assert "No space left on device" in said
    folder = RunFolder(small_disk)
    saved = folder.record["stages"]["embedding"]["checkpoint"]
    assert saved["step"] == 2 and (folder.checkpoints("embedding") / saved["file"]).is_dir()
    (small_disk / "ballast").unlink()
    assert_damage_is_told(folder.checkpoints("embedding") / saved["file"], overrides)
    assert_death_is_told(
        small_disk, overrides, call=5
    )  # goes on from step 2, as the curve that is compared says
    run_together(small_disk, *overrides)
    assert len(list((small_disk / "logs" / "embedding").glob("part_*"))) == 3
    assert_same_learning(finished_run, small_disk)


def assert_death_is_told(run_dir: Path, overrides: list[str], *, call: int) -> None:
    """Kill one of two processes in its `call`-th pass, step 3 of stage 2: the other must not wait forever."""
    kill = (call, 1, "SIGKILL")
    said = run_together(run_dir, *overrides, work=run_interrupted, arguments=kill, expected=(1, -9))
    (raised,) = re.findall(r"^RuntimeError: (.*gloo.*)$", said, re.MULTILINE)
    told = user_message(RuntimeError(raised))
    assert told is not None and told.startswith("another process of this run has ended (")
    assert RunFolder(run_dir).record["stages"]["transformer"]["checkpoint"]["step"] == 2


def assert_damage_is_told(checkpoint: Path, overrides: list[str]) -> None:
    """Truncate a file of DeepSpeed's: both processes print the fix; then restore it."""
    (states,) = checkpoint.rglob("*model_states.pt")
    whole = states.read_bytes()
    states.write_bytes(whole[: len(whole) // 2])
    said = run_together(checkpoint.parents[3], *overrides, expected=(1, 1))
    assert f"ValueError: {checkpoint} cannot be read (" in said
    states.write_bytes(whole)
