"""Power cuts: files that were not synced are empty or missing; the same command resumes, same result."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from power import Disk, empty
from processes import run_once
from test_checkpoint import ended
from test_personalize import same_result

import personalar.core.files
from personalar.core.files import is_whole, sync_files, write_atomic
from personalar.core.own_files import PROGRESS_FILE
from personalar.core.png import is_whole_png
from personalar.core.run_folder import RunFolder
from personalar.reports.run_page import read_losses, write_report


def test_a_power_cut_anywhere_costs_nothing_that_was_finished(
    do_run, finished_run: Path, tmp_path: Path, monkeypatch, record_property
) -> None:
    """Cuts at many renames and after the end, in both ways in which a file system can lose data."""
    replace, disk, run_dir, renames, left = os.replace, Disk(monkeypatch), tmp_path / "run", [], []
    chosen, ways = {9, 22, 40, 55, 70, 90}, (True, False)  # some renames publish a checkpoint

    def watched(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        if str(target).endswith(PROGRESS_FILE):  # written at any time, by a thread of its own
            return
        renames.append(target)
        if len(renames) in chosen and str(target).startswith(str(run_dir)):
            place = tmp_path / f"left_{len(renames)}"
            left.extend(disk.cut(run_dir, place / str(names), names=names) for names in ways)

    monkeypatch.setattr(os, "replace", watched)
    do_run(run_dir, "stage=both")
    for folder in (disk.cut(run_dir, tmp_path / f"end_{names}", names=names) for names in ways):
        same_result(finished_run, folder)
        for path in run_dir.rglob("*"):
            if path.is_file() and path.name != ".lock":
                assert (folder / path.relative_to(run_dir)).read_bytes() == path.read_bytes(), path
        assert not do_run(folder, "stage=both")  # finished before
    monkeypatch.undo()
    record_property("inputs", len(left))
    assert len(left) >= 8
    for folder in left:
        before = RunFolder(folder)
        learned = [stage for stage in ("embedding", "transformer") if before.has_concept(stage)]
        do_run(folder, "stage=both")
        same_result(finished_run, folder)
        assert all(before.record["stages"][stage]["steps"] == 4 for stage in learned)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("images/embedding/*.png", "half"),
        ("grids/overview.png", "empty"),
        ("concept/pictures/*.png", "zeros"),
        ("references/00.png", "half"),
        ("summary.json", "zeros"),
        ("report.html", "half"),
        ("scores.jsonl", "half"),
        ("scores.jsonl", "gone"),  # what the message about a damaged one recommends
        ("images/embedding", "gone"),
        ("concept", "gone"),
        ("concept/concept.json", "gone"),
        ("stages/embedding/concept", "gone"),
    ],
)
def test_what_a_finished_run_lost_is_made_again(
    name: str, how: str, do_run: Callable[..., bool], finished_run: Path, copied
) -> None:
    run_dir = copied(finished_run)
    path = min(run_dir.glob(name))
    if how == "gone":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        empty(path, how)
        assert not (is_whole_png if path.suffix == ".png" else is_whole)(path)
    assert do_run(run_dir, "stage=both")
    same_result(finished_run, run_dir)
    assert not do_run(run_dir, "stage=both")


@pytest.mark.parametrize("how", ["empty", "zeros", "half"])
def test_files_that_a_power_cut_left_are_not_whole(how: str, finished_run: Path, copied) -> None:
    run_dir = copied(finished_run)
    for name in ("grids/overview.png", "summary.json", "report.html", "scores.jsonl"):
        whole = is_whole_png if name.endswith("png") else is_whole
        assert whole(run_dir / name)
        empty(run_dir / name, how)
        assert not whole(run_dir / name)


@pytest.mark.parametrize("how", ["empty", "zeros"])
def test_damaged_caches_are_made_again(how: str, do_run, finished_run, tmp_path, in_pass) -> None:
    """A run that is cut in its first stage and finds all its caches damaged."""
    run_dir = tmp_path / "run"
    in_pass(2)
    with pytest.raises(RuntimeError, match="killed"):
        do_run(run_dir, "stage=both")
    caches = [path for path in (run_dir / "cache").rglob("*") if path.is_file()]
    assert len(caches) >= 3
    for path in caches:
        empty(path, how)
    do_run(run_dir, "stage=both")
    same_result(finished_run, run_dir)


def test_a_log_that_a_power_cut_left_is_read_as_far_as_it_goes(finished_run: Path, copied) -> None:
    run_dir = copied(finished_run)
    for path in (run_dir / "logs" / "embedding").rglob("metrics.csv"):
        path.write_bytes(path.read_bytes()[:60] + bytes(999) + b"\n\xff\xfe,,,\n")
    for path in (run_dir / "references" / "redrawn").glob("*.png"):
        empty(path, "zeros")
    assert read_losses(run_dir, "embedding") == [] and read_losses(run_dir, "transformer")
    assert write_report(run_dir).is_file()


def test_syncs_are_few(tmp_path: Path, monkeypatch, do_run) -> None:
    """Pictures are synced together, in threads: at most three waits for a file that must be on the disk."""
    waits, records, sync, put = [], [], os.fsync, personalar.core.files.put_in_place

    class Pool(ThreadPoolExecutor):
        def map(self, *words: object, **more: object) -> Iterator[object]:
            waits.append("pool")
            return super().map(*words, **more)

    def synced(handle: int) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def counted(*words: object, sync: bool = True, **more: object) -> None:
        records.extend(["record"] if sync else [])
        put(*words, sync=sync, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(personalar.core.files, "ThreadPoolExecutor", Pool)
    for place in ("core.files", "training.checkpoint"):
        monkeypatch.setattr(f"personalar.{place}.put_in_place", counted)
    do_run(tmp_path / "run", "stage=embedding", "scorer=none")
    assert 0 < len(records) <= len(waits) <= 3 * len(records)


def test_a_file_system_that_does_not_sync_folders(tmp_path: Path, monkeypatch) -> None:
    def refuses(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    write_atomic(tmp_path / "a" / "b" / "c", b"x")
    write_atomic(tmp_path / "d", b"x", sync=False)
    (tmp_path / "d").unlink()
    sync_files()
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*e"):
        write_atomic(tmp_path / "e", b"x")
    assert not (tmp_path / "e").exists()


def test_a_checkpoint_is_on_the_disk_before_run_json_names_it(
    run_overrides: list[str], finished_run: Path, tmp_path: Path
) -> None:
    """In a new process, which ends with a power cut after its second checkpoint."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    assert ended(cut_after_checkpoint, run_dir, run_overrides, log=log) == 77, log.read_text()
    left = Path(f"{run_dir}_left")
    stage = json.loads((left / "run.json").read_text())["stages"]["embedding"]
    assert (left / "stages/embedding/checkpoints" / stage["checkpoint"]["file"]).stat().st_size > 1000
    assert ended(run_once, left, run_overrides, log=log) == 0, log.read_text()
    same_result(finished_run, left)


def cut_after_checkpoint(run_dir: Path, overrides: list[str]) -> None:
    """Do a run until run.json names a checkpoint, and create what a power cut leaves at that moment."""
    patch = pytest.MonkeyPatch()
    disk, update = Disk(patch), RunFolder.update_stage

    def stopped(folder: RunFolder, stage: str, **facts: object) -> None:
        update(folder, stage, **facts)
        if "checkpoint" in facts:
            disk.cut(run_dir, Path(f"{run_dir}_left"), names=False)
            os._exit(77)

    patch.setattr(RunFolder, "update_stage", stopped)
    run_once(run_dir, overrides)
