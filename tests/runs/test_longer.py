"""More steps for a finished run: equal to a run that had them from the start, or an error with a command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest_run import compose_config
from test_cli import command
from test_personalize import contents, same_result

from personalar.core.own_files import delete_own
from personalar.core.run_folder import RunFolder
from personalar.runs import longer
from personalar.training import checkpoint

ONE, TWO = ("model.recipe.stages.joint", "method=joint"), ("model.recipe.stages.transformer", "stage=both")


def steps(number: int, of: tuple[str, str] = ONE, schedule: str = "constant") -> list[str]:
    """Return the settings of a short run; a checkpoint is written every two steps."""
    return [
        of[1],
        f"{of[0]}.steps={number}",
        f"{of[0]}.batch=2",
        f"{of[0]}.accumulate=1",
        f"{of[0]}.schedule={schedule}",
    ]


@pytest.fixture(scope="module")
def shorter(do_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one stage with 3 steps; read only."""
    run_dir = tmp_path_factory.mktemp("shorter") / "run"
    do_run(run_dir, *steps(3))
    return run_dir


@pytest.fixture(scope="module")
def whole(do_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 5 steps from the start."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    do_run(run_dir, *steps(5))
    return run_dir


def test_a_finished_run_goes_on_and_ends_as_if_it_had_had_the_steps_at_once(
    do_run, shorter: Path, whole: Path, copied, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from personalar.training import module

    loss, calls = module.sequence_loss, []
    monkeypatch.setattr(module, "sequence_loss", lambda *a, **k: (calls.append(1), loss(*a, **k))[1])
    run_dir = copied(shorter)
    assert do_run(run_dir, *steps(5)) and len(calls) == 2
    same_result(whole, run_dir)
    said = capsys.readouterr().out
    assert (
        f"stage transformer continues from step 3; the result of 3 steps is kept in {run_dir}/earlier" in said
    )
    for name in ("concept", "images/transformer"):
        kept = contents(run_dir / "earlier" / "transformer_3" / name, "**/*")
        assert kept == contents(shorter / name, "**/*") != contents(run_dir / name, "**/*")
    for name in ("summary.json", "scores.jsonl", "report.html"):
        assert (run_dir / "earlier/transformer_3" / name).read_bytes() == (shorter / name).read_bytes()
    record = json.loads((run_dir / "run.json").read_text())
    assert record["stages"]["transformer"]["steps"] == 5 and record["finished"]["stages"][-1] == "transformer"
    logged = {path.parent.name for path in (run_dir / "logs" / "transformer").rglob("metrics.csv")}
    assert logged == {"part_0", "part_1"}
    assert not do_run(run_dir, *steps(5))
    delete_own(run_dir, "earlier")
    assert not (run_dir / "earlier").exists()


def test_killed_while_it_is_made_ready_it_ends_the_same(
    do_run, shorter: Path, whole: Path, copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change of the folder, one after the other; the previous command still works."""

    def killed_at(name: str) -> None:
        where = longer if hasattr(longer, name) else RunFolder
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(where, name, Mock(side_effect=KeyboardInterrupt))
            do_run(run_dir, *steps(5))

    run_dir = copied(shorter)
    for name in ("copy_files", "update", "delete_own", "write_scores"):
        killed_at(name)
    assert do_run(run_dir, *steps(3))
    same_result(shorter, run_dir)
    for name in ("delete_own", "write_scores", "update"):
        killed_at(name)
    assert do_run(run_dir, *steps(5))
    same_result(whole, run_dir)
    kept = run_dir / "earlier" / "transformer_3" / "scores.jsonl"
    assert kept.read_bytes() == (shorter / "scores.jsonl").read_bytes()


def test_an_interrupted_stage_takes_more_steps_and_one_that_has_not_begun_any(
    do_run, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("personalar.training.train.write_concept", Mock(side_effect=KeyboardInterrupt))
        do_run(tmp_path / "run", *steps(3))
    assert do_run(tmp_path / "run", *steps(5))
    same_result(whole, tmp_path / "run")
    assert not (tmp_path / "run" / "earlier").exists()
    run_dir = tmp_path / "parts"
    assert do_run(run_dir, *steps(3, TWO, "linear"), "stage=embedding")
    assert do_run(run_dir, *steps(2, TWO, "linear"))
    assert RunFolder(run_dir).record["stages"]["transformer"]["steps"] == 2


def test_the_state_is_kept_for_the_last_stage_and_where_it_is_small(
    do_run, shorter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [path.name for path in shorter.rglob("*.ckpt")] == ["step_000003.ckpt"]
    run_dir, constant = tmp_path / "two", "model.recipe.stages.embedding.schedule=constant"
    assert do_run(run_dir, *steps(3, TWO), constant, "stage=embedding")
    assert [path.name for path in run_dir.rglob("*.ckpt")] == ["step_000004.ckpt"]
    monkeypatch.setattr(checkpoint, "LARGEST_STATE", 10_000)
    assert do_run(run_dir, *steps(3, TWO), constant)
    assert not list(run_dir.rglob("*.ckpt"))


def test_the_state_of_an_older_run_is_kept(shorter: Path, copied) -> None:
    """Older versions did not record that a checkpoint is kept."""
    folder, config = RunFolder(copied(shorter)), compose_config("+subject=cat", *steps(3))
    entry = folder.checkpoint_of("transformer")
    for kept, left in ((None, 1), (False, 0)):
        older = {name: value for name, value in entry.items() if name != "kept"}
        folder.update_stage("transformer", checkpoint=older if kept is None else {**older, "kept": kept})
        longer.drop_states(config, folder)
        assert len(list(folder.path.rglob("*.ckpt"))) == left


def refusal(do_run, run_dir: Path, *words: str) -> str:
    before = contents(run_dir, "**/*")
    with pytest.raises(ValueError, match="contains a run with other settings") as refused:
        do_run(run_dir, *words)
    assert contents(run_dir, "**/*") == before
    return str(refused.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (steps(2), "stage transformer would have fewer steps than before"),
        ([*steps(5), "seed=1"], None),
        ([*steps(5, schedule="linear")], None),
    ],
)
def test_what_is_not_more_steps_alone_is_refused(
    do_run, shorter: Path, words: list[str], reason: str | None
) -> None:
    said = refusal(do_run, shorter, *words)
    assert ("It cannot be trained longer" in said) == (reason is not None)
    assert (reason or "other settings") in said and f"hydra.run.dir={shorter}-2" in said


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_state_that_cannot_be_read_is_refused(do_run, shorter: Path, copied, damage: str) -> None:
    run_dir = copied(shorter)
    path = next(run_dir.rglob("*.ckpt"))
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        middle = len(data) // 2
        changed = data[:middle] + bytes(64) + data[middle + 64 :]
        path.write_bytes(data[:middle] if damage == "cut" else changed)
    assert "the optimizer state of stage transformer is missing or damaged" in refusal(
        do_run, run_dir, *steps(5)
    )


def test_an_earlier_stage_and_a_stage_that_is_not_chosen_are_refused(
    do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, embedding = tmp_path / "run", "model.recipe.stages.embedding"
    words = [*steps(3, TWO), f"{embedding}.schedule=constant"]
    do_run(run_dir, *words, "scorer=none")
    said = refusal(do_run, run_dir, *words, "scorer=none", f"{embedding}.steps=6")
    assert "stage transformer has begun after stage embedding" in said
    more = [*words, "scorer=none", f"{TWO[0]}.steps=5"]
    said = refusal(do_run, run_dir, *more, "stage=embedding")
    assert "stage transformer is not among those to train (stage=embedding)" in said
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "start one process with trainer.devices=N" in refusal(
        do_run, run_dir, *more, "trainer.devices=2", "trainer.strategy=ddp"
    )


def test_the_command_that_is_offered_trains_in_a_new_folder(do_run, finished_run: Path) -> None:
    """The learning rate depends on the steps; the suggested command is run as it is printed."""
    said = refusal(do_run, finished_run, f"{TWO[0]}.steps=5")
    assert "the learning rate of stage transformer depends on its number of steps" in said
    line = next(line for line in said.splitlines() if line.startswith("  python -m personalar.run "))
    words, new = shlex.split(line), Path(f"{finished_run}-2")
    assert words[-1] == f"hydra.run.dir={new}"
    done = command(new.parent, *words[2:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunFolder(new).record["stages"]["transformer"]["steps"] == 5
