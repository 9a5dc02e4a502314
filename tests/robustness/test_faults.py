"""Full disks, missing permissions, kills, no network, wrong clocks, too little memory.

In every test nothing finished is lost, an error of one line has the fix, and the same command then ends like
an undisturbed run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from test_checkpoint import ended
from test_cli import mistake
from test_personalize import contents, same_result

import personalar
import personalar.training.module
from personalar.core.errors import user_errors, user_message
from personalar.generation import sample_files
from personalar.training.checkpoint import AtomicCheckpointIO, refusal_named

__all__ = ["mistake"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; `mount -o remount,size=...` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fails(do_run, run_dir: Path, message: str) -> str:
    """Do a run that must end with an error of one line like `message`; return the message."""
    with pytest.raises(SystemExit) as stopped, user_errors("personalar.run"):
        do_run(run_dir, "stage=both")
    said = str(stopped.value)
    assert re.search(message, said) and "\n" not in said, said
    return said


def assert_finished_stays(before: dict[str, bytes], run_dir: Path) -> dict[str, bytes]:
    """Assert that files finished before the fault are unchanged; return the files that are finished now."""
    now = contents(run_dir, "images/**/*.png") | contents(run_dir, "stages/*/concept/*")
    assert {name: data for name, data in now.items() if name in before} == before
    return now


@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again(
    do_run, finished_run: Path, small_disk: Path, record_property
) -> None:
    """The disk grows by 64 KiB after each failure, so it is full at many places; no work is lost at any."""
    run_dir, kept, said, size = small_disk / "run", {}, [], 256
    for _ in range(60):
        try:
            with user_errors("personalar.run"):
                do_run(run_dir, "stage=both")
            break
        except SystemExit as stop:
            said.append(str(stop))
            kept = assert_finished_stays(kept, run_dir)
            assert not [path for path in run_dir.rglob(".*.tmp") if path.stat().st_size > 1 << 16]
            size += 64
            remount(small_disk, f"size={size}k")
    record_property("inputs", len(said))
    assert len(said) >= 3
    for line in said:
        assert re.search(r"could not be written \(No space left on device\): finished results are kept", line)
    same_result(finished_run, run_dir)


PLACES = {
    "concept": "stages/embedding/concept/learned_embeds.safetensors",
    "record of a concept": "stages/transformer/concept/concept.json",
    "published concept": "concept/concept.json",
    "picture": "images/embedding/",
    "grid": "grids/overview.png",
    "scores": "scores.jsonl",
    "summary": "summary.json",
    "report": "report.html",
    "photo codes": "cache/photo_codes.safetensors",
    "checkpoint": "stages/embedding/checkpoints/step_000002.ckpt",
}


def test_a_write_that_fails_once_costs_nothing(
    do_run, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    """At every place once, one after the other in one run folder."""
    record_property("inputs", len(PLACES))
    run_dir, replace, left, failed, kept = tmp_path / "run", os.replace, dict(PLACES), [], {}

    def full(source: str | Path, target: str | Path) -> None:
        for place, file in left.items():
            if f"run/{file}" in str(target):
                failed.append(left.pop(place))
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for count in range(1, len(PLACES) + 1):
        said = fails(do_run, run_dir, r"could not be written .*repeat the command to continue")
        assert len(failed) == count and failed[-1] in said
        kept = assert_finished_stays(kept, run_dir)
        assert not list(run_dir.rglob(".*.tmp"))
    do_run(run_dir, "stage=both")
    assert_finished_stays(kept, run_dir)
    same_result(finished_run, run_dir)


def save_too_much(path: Path) -> None:
    """Save a checkpoint in a process whose files may not exceed 9999 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))
    try:
        with user_errors("x"), refusal_named(path):
            AtomicCheckpointIO().save_checkpoint({"a": torch.ones(9999)}, path)
    except SystemExit as stopped:
        print(stopped)


def test_a_checkpoint_too_large_for_the_limit(tmp_path: Path) -> None:
    """torch.save at the file size limit: its own error has no reason, ours has."""
    path, log = tmp_path / "step_000002.ckpt", tmp_path / "log"
    path.write_bytes(b"the one before")
    assert ended(save_too_much, path, log=log) == 0, log.read_text()
    assert f"x: {path} could not be written (File too large)" in log.read_text()
    assert path.read_bytes() == b"the one before" and not list(tmp_path.glob(".*.tmp"))
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(9999)}, path)
    assert torch.load(path, weights_only=True)["a"].sum() == 9999


@pytest.mark.parametrize("what", ["a file in its place", "a file above it", "read-only"])
def test_a_run_folder_that_cannot_be_written(
    what: str, tmp_path: Path, small_disk: Path, mistake: Callable[..., str]
) -> None:
    """For a user: the command ends with one line before anything is loaded."""
    where = tmp_path / "there"
    if what == "a file in its place":
        where.write_text("mine")
    elif what == "a file above it":
        where.write_text("mine")
        where = where / "run"
    else:
        where = small_disk / "run"
        remount(small_disk, "ro")
    said = mistake("run", "+subject=cat", f"hydra.run.dir={where}")
    assert said.startswith("personalar.run: ") and len(said.strip().splitlines()) == 1
    assert ("Read-only file system" if what == "read-only" else str(where)) in said, said
    assert what == "read-only" or (tmp_path / "there").read_text() == "mine"


def test_pictures_that_cannot_be_written_are_not_sampled(
    finished_run: Path, tiny_model_dir: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "out").mkdir()
    remount(small_disk, "ro")
    monkeypatch.setattr(sample_files, "draw_group", Mock(side_effect=AssertionError))
    with pytest.raises(OSError, match="Read-only file system"):
        personalar.sample_files(
            finished_run, ["a [V] cat"], [0], f"model.path={tiny_model_dir}", f"out={small_disk / 'out'}"
        )


def test_a_folder_that_becomes_read_only(do_run, finished_run: Path, small_disk: Path, in_pass) -> None:
    remount(small_disk, "size=64m")
    in_pass(4, lambda: remount(small_disk, "ro"))
    fails(do_run, small_disk / "run", r"cannot be written or read \(Read-only file system\)")
    remount(small_disk, "rw")
    do_run(small_disk / "run", "stage=both")
    same_result(finished_run, small_disk / "run")


def test_a_clock_set_back_decides_nothing(
    do_run, finished_run: Path, tmp_path: Path, monkeypatch, in_pass
) -> None:
    run_dir, now = tmp_path / "run", time.time
    passes = in_pass(7)
    with pytest.raises(RuntimeError, match="killed"):
        do_run(run_dir, "stage=both")
    for path in run_dir.rglob("*"):  # what the first part wrote seems to come from next year
        os.utime(path, (now() + 3e7, now() + 3e7))
    seconds = json.loads((run_dir / "run.json").read_text())["total_seconds"]
    monkeypatch.setattr(time, "time", lambda: now() - 1e8)
    do_run(run_dir, "stage=both")
    assert len(passes) == 9  # 8 steps, and the one after the last checkpoint again
    record = json.loads((run_dir / "run.json").read_text())
    assert record["total_seconds"] >= seconds >= 0
    assert all(stage["seconds"] >= 0 for stage in record["stages"].values())
    same_result(finished_run, run_dir)
    from personalar.reports.run_page import read_losses

    steps = [step for step, _ in read_losses(run_dir, "transformer")]
    assert steps == sorted({*steps}) and steps == [
        step for step, _ in read_losses(finished_run, "transformer")
    ]


def test_wandb_that_cannot_be_reached_is_kept_offline(do_run, tmp_path: Path, monkeypatch, capsys) -> None:
    """A connection that is really refused, not a mock."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    do_run(tmp_path / "run", "logger=wandb", "stage=embedding", "scorer=none")
    said = capsys.readouterr().out
    assert "W&B: not available (" in said and "wandb sync " in said
    assert list((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_network_lost_in_a_download_is_one_sentence(monkeypatch) -> None:
    import httpx
    import huggingface_hub
    from test_loading import model

    from personalar.models.loading import obtain_model

    def lost(*names: object, local_files_only: bool = False, **how: object) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        raise httpx.ReadTimeout("The read operation timed out")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lost)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 10**12)
    lost_once = r"network failed \(The read operation timed out\).*repeat the command"
    with pytest.raises(SystemExit, match=lost_once), user_errors("personalar.run"):
        obtain_model(model(), say=lambda text: None)


def test_too_little_memory_in_training_names_the_knobs(
    do_run, finished_run: Path, tmp_path: Path, in_pass
) -> None:
    def hungry() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    passes = in_pass(4, hungry)
    fails(do_run, tmp_path / "run", r"not enough memory \(.*memory\.gigabytes=N.*memory\.recompute=true")
    do_run(tmp_path / "run", "stage=both")
    assert len(passes) == 10  # the third step came after the last checkpoint
    same_result(finished_run, tmp_path / "run")


def test_a_diverged_loss_is_one_sentence(do_run, tmp_path: Path, monkeypatch) -> None:
    whole, calls = personalar.training.module.sequence_loss, []

    def breaks(*args, **kwargs):
        calls.append(1)
        return whole(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(personalar.training.module, "sequence_loss", breaks)
    said = fails(do_run, tmp_path / "run", r"the loss is nan at step 3 of stage embedding")
    for told_too in ('"identifier": ', "last good checkpoint: step_000002.ckpt"):
        assert told_too in said  # what led to it, and where to go on from
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["embedding"]
    assert stage["checkpoint"]["step"] == 2
    assert not (tmp_path / "run" / "stages" / "embedding" / "concept").exists()


@pytest.mark.parametrize("words", [["method=qlora"], ["optimizer=adamw8bit"]])
def test_a_missing_library_is_told_before_anything_is_learned(
    do_run, tmp_path: Path, words: list[str], monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with (
        pytest.raises(SystemExit, match=r'needs bitsandbytes.*pip install "personalar\[quantized\]"'),
        user_errors("personalar.run"),
    ):
        do_run(tmp_path, *words)
    assert not (tmp_path / "stages").exists()


def test_mistakes_of_ours_keep_their_traceback(monkeypatch) -> None:
    assert user_message(KeyError("x")) is None and user_message(RuntimeError("shapes")) is None
    assert user_message(ValueError("raised by no package of ours")) is None
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(OSError, match="No space"), user_errors("x"):
        raise OSError(errno.ENOSPC, "No space left on device", "file")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "", "a"),
            "a could not be written .*repeat the command to continue once there is space",
        ),
        (OSError(errno.EDQUOT, "", "a"), "a could not be written"),
        (PermissionError(errno.EACCES, "", "a"), r"a cannot be written or read \(Permission denied\)"),
        (FileExistsError(errno.EEXIST, "", "a"), r"a is in the way \(File exists\): move it, or choose"),
        (OSError(errno.EIO, "", "a"), r"a: Input/output error; finished results are kept"),
        (ConnectionResetError("reset by peer"), r"the network failed \(reset by peer\)"),
        (FileNotFoundError("concept=x holds none"), "^concept=x holds none$"),
        (MemoryError(), r"not enough memory \(all memory is in use\).*memory\.gigabytes=N"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), r"not enough memory \(Def.*recompute"),
    ],
)
def test_what_the_system_refuses_is_told(error: OSError, message: str) -> None:
    assert re.search(message, str(user_message(error)))
