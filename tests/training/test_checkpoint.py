"""Interrupted runs resume with the same command and the same result; a wrong checkpoint is an error."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest_run import QUICK, compose_config, curve
from processes import run_interrupted, run_killed, run_once, start
from test_personalize import same_result

from personalar.concepts.concept import Concept
from personalar.core.errors import user_errors
from personalar.core.run_folder import RunFolder
from personalar.runs.personalize import personalize, prepare
from personalar.training.checkpoint import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    RESTART_ADVICE,
    AtomicCheckpointIO,
    StageCheckpoint,
    find_checkpoint,
)

KILLS = int(os.environ.get("PERSONALAR_KILLS", "3"))
"""Number of kills; `make chaos` sets more."""


def ended(work, *arguments, log: Path) -> int:
    """Run `work(*arguments)` in a new process and return its exit code."""
    process = start(work, *arguments, log=log, LOCAL_RANK="0", WORLD_SIZE="1")
    process.join(200)
    assert not process.is_alive(), log.read_text()
    return process.exitcode


@pytest.mark.parametrize("round_", range(max(1, KILLS // 5)))
def test_kills_anywhere_change_nothing(
    round_: int, finished_run: Path, run_overrides: list[str], tmp_path: Path, record_property
) -> None:
    """Signals at random moments, one after the other in the same run folder, until the run is finished."""
    rng = random.Random(f"{KILLS} {round_}")
    run_dir, log = tmp_path / "run", tmp_path / "log"
    record_property("inputs", min(5, KILLS))
    for _ in range(min(5, KILLS)):
        moment, name = rng.randrange(2, 60), rng.choice(["SIGKILL", "SIGKILL", "SIGTERM"])
        code = ended(run_killed, run_dir, run_overrides, moment, name, log=log)
        # 255: the server that forks cannot always tell how a killed child ended; a failed one says 1
        assert code in (0, -9, -15, 255, EXIT_TERMINATED), (
            f"{name} at event {moment}: {code}\n{log.read_text()}"
        )
    assert ended(run_once, run_dir, run_overrides, log=log) == 0, log.read_text()
    same_result(finished_run, run_dir)
    assert not list(run_dir.rglob(".*.tmp"))


def test_a_signal_in_training_saves_the_step(
    finished_run: Path, run_overrides: list[str], tmp_path: Path
) -> None:
    """Of a batch system, from Ctrl-C, and from a closed terminal, one after the other."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    rare = [*run_overrides, "trainer.checkpoint_every_steps=100"]
    for name, code, call, stage, step in (
        ("SIGTERM", 143, 3, "embedding", 3),
        ("SIGINT", 130, 2, "transformer", 1),
        ("SIGHUP", 129, 2, "transformer", 3),
    ):
        log.unlink(missing_ok=True)
        assert ended(run_interrupted, run_dir, rare, call, 0, name, log=log) == code, log.read_text()
        assert ("Ctrl-C again ends at once" in log.read_text()) == (name == "SIGINT")
        saved = RunFolder(run_dir).record["stages"][stage]["checkpoint"]
        assert (saved["step"], saved["file"]) == (step, f"step_{step:06d}.ckpt")
    assert ended(run_once, run_dir, rare, log=log) == 0, log.read_text()
    same_result(finished_run, run_dir)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_who_asks_in_the_last_step_is_answered_too(name: str, do_run, tmp_path: Path, in_pass) -> None:
    """No step and no grid follows: the concept is written, and the run ends before its pictures."""
    passes = in_pass(4, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(SystemExit) as ended_by:
        do_run(tmp_path / "run", "stage=both", "samples.grid_every_steps=0")
    assert ended_by.value.code == 128 + getattr(signal, name) and len(passes) == 4
    assert RunFolder(tmp_path / "run").has_concept("embedding")
    assert not (tmp_path / "run" / "images" / "embedding").exists()
    assert do_run(tmp_path / "run", "stage=both", "samples.grid_every_steps=0") and len(passes) == 8


def test_a_background_job_takes_sigint_and_nohup_keeps_sighup_out() -> None:
    """Shells start background jobs with SIGINT ignored; nohup ignores SIGHUP, which must stay ignored."""
    numbers, callback = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM), StageCheckpoint(every=1)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        callback.on_train_start(Mock(global_step=0), Mock())
        found = [signal.getsignal(number) for number in numbers]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert found == [callback._note, signal.SIG_IGN, callback._note]


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = StageCheckpoint(every=1)
    callback._note(signal.SIGINT)
    assert "Ctrl-C again ends at once" in capsys.readouterr().out
    with pytest.raises(SystemExit) as at_once:
        callback._note(signal.SIGINT)
    assert at_once.value.code == EXIT_INTERRUPTED


def test_ctrl_c_elsewhere_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as interrupted, user_errors("personalar.run"):
        raise KeyboardInterrupt
    assert interrupted.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == (
        "personalar.run: interrupted; finished results are kept; repeat the command to continue\n"
    )


def test_a_command_that_starts_again_does_not_say_that_it_goes_on() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "out")
    message = r"^personalar\.export: .*: repeat the command once there is space$"
    with pytest.raises(SystemExit, match=message), user_errors("personalar.export"):
        raise error


@pytest.fixture
def saved(tmp_path: Path) -> RunFolder:
    """A run folder with a checkpoint of two ZeRO processes."""
    folder = RunFolder(tmp_path)
    path = folder.checkpoints("embedding") / "step_000004.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"x": torch.ones(3)}}, path)
    facts = {"file": path.name, "step": 4, "world": 2, "strategy": "zero2"}
    folder.update_stage("embedding", checkpoint=facts)
    return folder


def test_the_checkpoint_that_was_written_is_found(saved: RunFolder) -> None:
    path = find_checkpoint(saved, "embedding", world=2, strategy="zero2")
    assert path is not None and torch.load(path, weights_only=True)["state_dict"]["x"].sum() == 3
    assert find_checkpoint(saved, "transformer", world=1, strategy="single") is None


def test_a_finished_stage_keeps_no_checkpoint(saved: RunFolder, finished_run: Path) -> None:
    saved.update_stage("embedding", steps=4)
    saved.drop_checkpoints("embedding")
    assert saved.record["stages"]["embedding"] == {"steps": 4} and not saved.checkpoints("embedding").exists()
    saved.drop_checkpoints("embedding")
    assert not list(finished_run.rglob("*.ckpt"))
    assert "checkpoint" not in json.loads((finished_run / "run.json").read_text())["stages"]["transformer"]


def test_a_missing_checkpoint_is_an_error_not_a_restart(saved: RunFolder) -> None:
    shutil.rmtree(saved.checkpoints("embedding"))
    with pytest.raises(
        FileNotFoundError,
        match=r"resumes at step 4, is missing: restore it from a copy, or .*new folder .*earlier/ included",
    ):
        find_checkpoint(saved, "embedding", world=2, strategy="zero2")


def test_a_damaged_checkpoint_is_one_sentence_and_no_restart(
    do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*args: object) -> None:
        raise RuntimeError("killed")

    words = ("stage=embedding", "scorer=none", "samples.kinds=[subject]")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("personalar.training.train.write_concept", dies)
        do_run(tmp_path, *words)
    path = RunFolder(tmp_path).checkpoints("embedding") / "step_000004.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as stopped, user_errors("personalar.run"):
        do_run(tmp_path, *words)
    said = str(stopped.value)
    assert "step_000004.ckpt cannot be read (" in said and "\n" not in said
    assert said.endswith(RESTART_ADVICE)
    path.write_bytes(whole)
    assert do_run(tmp_path, *words)
    assert "stage embedding: the last 0 of 4 steps in" in capsys.readouterr().out


def test_an_entry_of_before_with_more_in_it_is_taken(saved: RunFolder) -> None:
    record = saved.record["stages"]["embedding"]["checkpoint"]
    saved.update_stage("embedding", checkpoint={**record, "digest": "0" * 64, "optimizer": "adamw"})
    saved = RunFolder(saved.path)
    assert find_checkpoint(saved, "embedding", world=2, strategy="zero2") is not None


@pytest.mark.parametrize(("world", "strategy"), [(4, "zero2"), (2, "zero3"), (1, "single")])
def test_deepspeed_resumes_with_the_same_processes_only(saved: RunFolder, world: int, strategy: str) -> None:
    with pytest.raises(
        ValueError, match=rf"saved by 2 processes .*zero2, now there are {world} with {strategy}"
    ):
        find_checkpoint(saved, "embedding", world=world, strategy=strategy)


def test_ddp_resumes_with_any_number_of_processes(saved: RunFolder) -> None:
    record = saved.record["stages"]["embedding"]["checkpoint"]
    saved.update_stage("embedding", checkpoint={**record, "strategy": "ddp"})
    assert find_checkpoint(saved, "embedding", world=1, strategy="single") is not None


def test_a_step_may_have_other_passes_when_it_goes_on(
    do_run, tiny_model_dir: Path, tmp_path: Path, in_pass, capsys: pytest.CaptureFixture[str]
) -> None:
    """With less memory, or another number of processes: each step still has its own sequences, each once."""
    words = ["stage=embedding", "scorer=none", "samples.kinds=[subject]", "samples.grid_every_steps=0"]
    words += ["model.recipe.stages.embedding.batch=4", "model.recipe.stages.embedding.steps=5"]
    words += ["model.recipe.dropout=0.2"]  # of each sequence's own, whatever pass it is in
    do_run(tmp_path / "whole", *words)
    in_pass(4)
    with pytest.raises(RuntimeError, match="killed"):
        do_run(tmp_path / "parts", *words)  # a checkpoint at step 2
    config = compose_config("+subject=cat", *QUICK, f"model.path={tiny_model_dir}", *words)
    session, stages = prepare(config, tmp_path / "parts")
    plans = {name: replace(plan, batch=1) for name, plan in session.plans.items()}
    personalize(replace(session, plans=plans), stages, command="test")
    whole, parts = (Concept.load(tmp_path / name / "concept") for name in ("whole", "parts"))
    torch.testing.assert_close(parts.rows, whole.rows, atol=1e-5, rtol=1e-4)
    curves = [curve(tmp_path / name, "train/loss") for name in ("whole", "parts")]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4) and len(curves[0]) == 5
    told = re.findall(r"5 steps .*loss ([\d.]+)", capsys.readouterr().out)
    assert len(told) == 2 and told[0] == told[1]


def test_the_grid_of_the_last_step_does_not_shift_the_curves_of_a_longer_run(do_run, tmp_path: Path) -> None:
    words = ["stage=embedding", "scorer=none", "samples.kinds=[subject]", "samples.grid_every_steps=2"]
    words += ["model.recipe.stages.embedding.schedule=constant", "samples.time_share=1"]
    do_run(tmp_path / "longer", *words)
    for name in ("longer", "whole"):
        do_run(tmp_path / name, *words, "model.recipe.stages.embedding.steps=6")
    curves = [curve(tmp_path / name, "train/loss") for name in ("longer", "whole")]
    assert curves[0] == curves[1] and len(curves[0]) == 6
