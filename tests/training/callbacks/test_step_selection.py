"""Selection of a step: the result is that of a run which ends there; the scorers; what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest_run import compose_config, curve

from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.core.run_folder import RunFolder
from personalar.training.checkpoint import StageCheckpoint

PLUGINS = Path(__file__).parents[2] / "plugins"
EVERY = ("samples.grid_every_steps=1", "samples.time_share=1")
SCRIPT = "+selection.scorer.extra.script={_target_: toys.Scripted, looks: [0.1, 0.9, 0.9, 0.2]}"
BY_SCRIPT = (SCRIPT, "selection.measures=[looks,obeys]", "scorer=none", "samples.grid_every_steps=1")
CONSTANT = "model.recipe.stages.embedding.schedule=constant"
DoRun = Callable[..., bool]


def rows(run_dir: Path) -> torch.Tensor:
    return Concept.load(run_dir / "concept").rows


def test_the_result_is_that_of_a_run_which_ends_at_the_best_step(
    do_run: DoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    do_run(tmp_path / "selected", "stage=embedding", CONSTANT, *BY_SCRIPT)
    do_run(
        tmp_path / "short",
        "stage=embedding",
        CONSTANT,
        "scorer=none",
        "model.recipe.stages.embedding.steps=2",
    )
    do_run(tmp_path / "long", "stage=embedding", CONSTANT, "scorer=none")
    assert torch.equal(rows(tmp_path / "selected"), rows(tmp_path / "short"))
    assert not torch.equal(rows(tmp_path / "selected"), rows(tmp_path / "long"))
    entry = json.loads((tmp_path / "selected" / "run.json").read_text())["stages"]["embedding"]
    assert entry["steps"] == 4 and entry["selected"]["step"] == 2  # of equal steps the first
    assert entry["selected"]["value"] == pytest.approx(1 / (0.5 / 0.95 + 0.5 / 0.75))
    assert curve(tmp_path / "selected", "val/selection")[2] == pytest.approx(
        entry["selected"]["value"], abs=1e-6
    )
    summary = json.loads((tmp_path / "selected" / "summary.json").read_text())
    assert summary["stages"]["embedding"]["selected_step"] == 2
    assert "looks ({" in summary["protocol"] and not summary["stages"]["base"]["selected_step"]


def test_a_stopped_run_selects_the_same_step(
    do_run: DoRun, tmp_path: Path, tiny_scorer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys, in_pass
) -> None:
    judges = [f"selection.scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    words = ("stage=embedding", "scorer@selection.scorer=nano", *judges, "samples.grid_every_steps=1")
    do_run(tmp_path / "whole", *words)
    assert "are also reported: these scores favour" in capsys.readouterr().out
    assert "are also reported" in (tmp_path / "whole" / "report.html").read_text()
    values, save = curve(tmp_path / "whole", "val/selection"), StageCheckpoint.save
    chosen = RunFolder(tmp_path / "whole").selected("embedding")
    assert len(values) == 4 and chosen["step"] == max(values, key=lambda step: values[step])
    for last, how in ((2, "killed"), (4, "killed"), (4, "SIGTERM")):

        def save_and_die(self, trainer, pl_module, *, kept: bool, last: int = last) -> None:
            save(self, trainer, pl_module, kept=kept)
            if trainer.global_step == last:
                raise RuntimeError("killed")

        run_dir = tmp_path / f"{how}_{last}"
        with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit), match=r"killed|143"):
            if how == "killed":
                patch.setattr(StageCheckpoint, "save", save_and_die)
            else:
                in_pass(last, lambda: os.kill(os.getpid(), signal.SIGTERM))
            do_run(run_dir, *words)
        do_run(run_dir, *words)
        assert torch.equal(rows(tmp_path / "whole"), rows(run_dir))
        assert RunFolder(run_dir).selected("embedding") == chosen
        assert curve(run_dir, "val/selection") == values  # also of the step at which it stopped
        grids = [{path.name for path in (run / "grids").iterdir()} for run in (tmp_path / "whole", run_dir)]
        assert grids[0] == grids[1]


def test_without_it_its_settings_are_not_among_those_of_a_run() -> None:
    plain, other = (
        compose_config("+subject=cat"),
        compose_config("+subject=cat", "selection.likeness_weight=0.3"),
    )
    assert "selection" not in learning_settings(plain) == learning_settings(other)
    chosen = learning_settings(compose_config("+subject=cat", "scorer@selection.scorer=nano"))["selection"]
    assert chosen["scorer"]["name"] == "nano" and chosen["grid"]["seed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["samples.grid_every_steps=0"],
            r"grid_every_steps=0 gives none in a stage of 45 steps; allowed: 1 to 45",
        ),
        (["samples.grid_every_steps=61"], r"grid_every_steps=61 gives none in a stage of 45 steps"),
        (["selection.measures=[dino]"], r"give two, one of likeness and one of prompt following"),
        (["selection.likeness_weight=2"], r"likeness_weight=2.* out of range; allowed: 0 to 1"),
        (
            ["+subject=folder", "subject.path=.", "subject.noun=dog"],
            r"a step needs others: selection\.scorer=modern, or .*selection\.scorer\.clip=DIR",
        ),
    ],
)
def test_what_cannot_select_is_refused(words: list[str], message: str) -> None:
    subject = [] if "+subject=folder" in words else ["+subject=cat"]
    with pytest.raises(ValueError, match=message):
        compose_config(*subject, "scorer@selection.scorer=nano", *words)


def test_only_cosine_similarities_select(
    do_run: DoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    with pytest.raises(ValueError, match=r"selection\.measures='rated'; allowed: looks, obeys"):
        do_run(tmp_path, "stage=embedding", *BY_SCRIPT, "selection.measures=[rated,obeys]")
