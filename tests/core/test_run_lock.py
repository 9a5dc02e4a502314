"""The lock of a run folder: a second run ends with an error, and a killed run leaves no lock behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import run_once, start
from test_cli import command

from personalar.core.run_lock import LOCK_FILE, check_run_folder, locked, refusable


def hold(run_dir: Path) -> None:
    """Hold the lock until killed."""
    with locked(run_dir):
        (run_dir / "held").touch()
        time.sleep(120)


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock of `tmp_path / "run"`."""
    process = start(hold, tmp_path / "run", log=tmp_path / "log")
    for _ in range(1200):
        if (tmp_path / "run" / "held").exists():
            break
        time.sleep(0.05)
    yield process
    process.kill()
    process.join()


def test_the_second_run_ends_with_who_holds_the_folder(
    holder, run_overrides: list[str], tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "second"
    second = start(run_once, run_dir, run_overrides, log=log)
    second.join(100)
    assert second.exitcode == 1
    said = log.read_text()
    assert f"{run_dir} is in use by process {holder.pid} on {socket.gethostname()}: wait for it" in said
    assert f"`kill {holder.pid}`" in said and "hydra.run.dir=DIR" in said
    assert sorted(path.name for path in run_dir.iterdir()) == [LOCK_FILE, "held"]  # and wrote nothing


def test_the_folder_is_looked_at_before_hydra_writes_there(holder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid}"):
        check_run_folder(tmp_path / "run")
    check_run_folder(tmp_path / "run", leads=False)


def test_a_killed_run_blocks_nobody(holder, tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_other_processes_of_a_run_take_no_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), locked(tmp_path / "run", leads=False):
        pass
    with locked(tmp_path / "run"), locked(tmp_path / "other"):  # a sweep's jobs each have their folder
        pass


def test_a_holder_without_a_name_is_told_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with pytest.raises(ValueError, match="in use by another process on this or another machine"):
            check_run_folder(tmp_path)


def refuse(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="no such photos"), locked(run_dir), refusable(run_dir):
        raise ValueError("no such photos")


def test_a_run_refused_before_it_began_leaves_no_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "nano" / "nope")
    assert list(tmp_path.iterdir()) == [tmp_path / "nano"] and not list((tmp_path / "nano").iterdir())
    with locked(tmp_path / "nano" / "nope"):  # and nothing of it is in the way of the next one
        pass


@pytest.mark.parametrize("more", ["notes.txt", ".hydra/config.yaml", "images/base/0.png", "empty/file"])
def test_nothing_else_is_ever_deleted(tmp_path: Path, more: str) -> None:
    (tmp_path / "run" / more).parent.mkdir(parents=True)
    (tmp_path / "run" / more).write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder in ("run", "link"):
        refuse(tmp_path / folder)
        assert (tmp_path / "run" / more).read_text() == "mine" and (tmp_path / "link").is_symlink()


def test_the_folder_one_stands_in_stays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(Path("."))
    assert tmp_path.is_dir()


def test_a_run_that_goes_well_or_is_stopped_keeps_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), refusable(tmp_path / "run"):
        pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "run"), refusable(tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run").is_dir()


def test_the_command_leaves_no_folder_of_a_mistyped_one(tmp_path: Path) -> None:
    said = command(tmp_path, "personalar.run", "+subject=folder", "subject.path=nope", "subject.noun=dog")
    assert said.returncode == 1 and "subject.path=nope does not exist" in said.stderr
    assert not (tmp_path / "outputs" / "nano" / "nope").exists()
