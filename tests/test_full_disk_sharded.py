"""A full disk under DeepSpeed, which writes its own checkpoints: both processes end, nothing is lost."""

from __future__ import annotations

from pathlib import Path

from conftest_run import QUICK
from processes import run_filling, run_together
from test_distributed import assert_same_learning
from test_faults import remount, small_disk

from personalar.run_folder import RunFolder

__all__ = ["small_disk"]


def test_a_disk_that_is_full_when_deepspeed_saves(
    tiny_model_dir: Path, finished_run: Path, small_disk: Path
) -> None:
    overrides = ["+subject=cat", *QUICK, f"model.path={tiny_model_dir}", "scorer=none", "trainer=zero2"]
    overrides += ["trainer.accelerator=cpu", "trainer.attention=eager"]
    remount(small_disk, "size=32m")
    said = run_together(small_disk, *overrides, work=run_filling, arguments=(2,), expected=(1, 1))
    assert "No space left on device" in said
    folder = RunFolder(small_disk)
    saved = folder.record["stages"]["embedding"]["checkpoint"]
    assert saved["step"] == 2 and (folder.checkpoints("embedding") / saved["file"]).is_dir()
    (small_disk / "ballast").unlink()
    run_together(small_disk, *overrides)  # goes on from step 2, as the curve that is compared says
    assert len(list((small_disk / "logs" / "embedding").glob("part_*"))) == 2
    assert_same_learning(finished_run, small_disk)
