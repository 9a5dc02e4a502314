"""Killed commands: the next one cleans up, no child continues, and a closed terminal loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest_run import compose_config
from test_concept import make
from test_exchange import adapter, export

from personalar.core.files import TEMPORARY, temporary, write_atomic
from personalar.core.own_files import delete_abandoned
from personalar.core.process import ENDS_WITH_STDIN
from personalar.generation.sample_files import write_samples
from personalar.models import tensor_files
from personalar.reports.comparison_page import compare_folders
from personalar.runs.benchmark import execute

NOBODY = 2**22 + 1
"""A process id that Linux never assigns."""


def leave(folder: Path, pid: int = NOBODY, *, age: float = 7200.0) -> Path:
    """Create what a process leaves if it is killed while it writes a.png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".a.png.personalar-{pid}-1.tmp"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_next_sample_compare_and_export_clean_up(
    finished_run: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    left = leave(out)
    words = [f"concept={finished_run}", f"model.path={tiny_model_dir}", f"out={out}", "prompts=['a [V] cat']"]
    assert write_samples(compose_config(*words, name="sample"))
    assert not left.exists()
    left = leave(tmp_path / "compared")
    compare_folders([finished_run], tmp_path / "compared")
    assert not left.exists()
    concept = make(lora=adapter()).save(tmp_path / "concept")
    left, other = leave(tmp_path / "export"), leave(tmp_path / "export" / "lora")
    assert export(concept, tmp_path / "export", f"model.path={tiny_model_dir}")
    assert not left.exists() and not other.exists()


def test_what_is_being_written_and_what_is_ours_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        written = leave(tmp_path, other.pid, age=0)
        delete_abandoned(tmp_path, tmp_path / "missing")
        assert written.exists()  # it is at work
        old = leave(tmp_path, other.pid, age=10**6)
        delete_abandoned(tmp_path)
        assert not old.exists()  # its number was another's then, as in a container
        other.communicate(b"\n")
    elsewhere = leave(tmp_path, age=600)  # by a process of another machine, maybe
    delete_abandoned(tmp_path)
    assert elsewhere.exists()
    own = tmp_path / ".mine.tmp"
    own.write_text("mine")
    delete_abandoned(tmp_path)
    assert own.exists()
    assert TEMPORARY.fullmatch(temporary(Path("x" * 200)).name)


def test_shards_that_were_not_finished_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    names = []

    def full(path: Path, data: bytes, **how: bool) -> None:
        names.append(path.name)
        if len(names) == 2:
            raise OSError(28, "No space left on device")
        write_atomic(path, data, **how)

    monkeypatch.setattr(tensor_files, "write_atomic", full)
    tensors = [(str(number), torch.ones(100)) for number in range(3)]
    with pytest.raises(OSError, match="No space"):
        tensor_files.write_shards(tmp_path, tensors, dtype=torch.float32, shard_bytes=200)
    assert not list(tmp_path.iterdir()) and all(TEMPORARY.fullmatch(name) for name in names)


def test_a_killed_evaluate_takes_its_child_with_it(tmp_path: Path) -> None:
    """The parent is killed without a chance to say so; its child gets SIGTERM and saves."""
    code = (
        "import sys; from pathlib import Path; from personalar.runs import benchmark\n"
        "benchmark.sys.executable = sys.argv[1]\n"
        "print(benchmark.execute(['x'], Path(sys.argv[2])))"
    )
    program = tmp_path / "child"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, time; from pathlib import Path\n"
        "from personalar.core.process import end_with_parent\n"
        "save = lambda *_: sys.exit(Path('asked').write_text('yes') and 143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "end_with_parent()\n"
        "Path('pid').write_text(str(os.getpid()))\n"
        "while True: time.sleep(0.05)\n"
    )
    program.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", code, str(program), "log"], cwd=tmp_path) as parent:
        wait_for(tmp_path / "pid")
        parent.kill()
    wait_for(tmp_path / "asked")
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).wait(5) is None


def test_a_run_whose_evaluate_is_gone_ends(tmp_path: Path, run_overrides: list[str]) -> None:
    """The pipe is closed before the child has begun; without the variable standard input is not watched."""
    words = [sys.executable, "-m", "personalar.run", *run_overrides, "--cfg", "job"]
    for variables, code in (({ENDS_WITH_STDIN: "1"}, -signal.SIGTERM), ({}, 0)):
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, cwd=tmp_path, env=os.environ | variables
        )
        assert done.returncode == code


def wait_for(path: Path) -> None:
    """Wait until `path` exists and is not empty."""
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not come")


def test_a_child_that_ends_by_itself_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("true", True), ("false", False)):
        monkeypatch.setattr("personalar.runs.benchmark.sys.executable", f"/bin/{name}")
        assert execute(["x"], tmp_path / "log") is answer
