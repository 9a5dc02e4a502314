"""Which step is kept: the rule's arithmetic, the kept state, kills, patience, several processes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest_run import QUICK, compose_config
from processes import run_together
from test_run import same_result

import personalar.training.callbacks.subject_scores
import personalar.training.module
from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.config.selection import SelectionConfig, harmonic, rule_values
from personalar.core.run_folder import RunFolder
from personalar.generation.generator import Generator
from personalar.reports.run_page import write_report
from personalar.training.checkpoint import EXIT_TERMINATED

FIVE = ["stage=embedding", "model.recipe.stages.embedding.steps=5"]
FIVE += ["model.recipe.stages.embedding.schedule=constant", "samples.grid_every_steps=2"]
BY_RULE = [*FIVE, "selection.rule=harmonic"]


def grid_values(run_dir: Path, name: str = "val/harmonic") -> dict[int, float]:
    """Return the rule's value by optimizer step, over all parts of a stage."""
    found = {}
    for path in sorted((run_dir / "logs" / "embedding").glob("part_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get(name):
                found[int(row["step"]) + 1] = float(row[name])
    return found


def lines_of(*pictures: tuple[float, float, float]) -> list[dict]:
    names = ("dino", "clip_i", "clip_t")
    return [
        {"prompt": "a cat", "seed": seed, "scorer": name, "value": value}
        for seed, values in enumerate(pictures)
        for name, value in zip(names, values, strict=True)
    ]


def test_the_harmonic_mean_is_rpos() -> None:
    """1 / (lambda / I + (1 - lambda) / T) of cosines put on [0, 1]; alike values stay what they are."""
    assert harmonic(0.6, 0.6, 0.3) == pytest.approx(0.8)
    assert harmonic(0.6, 0.2, 0.3) == pytest.approx(1 / (0.3 / 0.8 + 0.7 / 0.6))
    assert harmonic(0.6, 0.2, 1.0) == pytest.approx(0.8) and harmonic(0.6, 0.2, 0.0) == pytest.approx(0.6)
    assert 0 <= harmonic(-1.0, 1.0, 0.5) < 1e-6  # what lacks one of the two is worth nothing


def test_rules_over_pictures() -> None:
    lines = lines_of((0.6, 0.8, 0.2), (0.2, 0.4, 0.4))
    found = rule_values(lines, SelectionConfig())
    assert found["harmonic"] == pytest.approx((harmonic(0.6, 0.2, 0.5) + harmonic(0.2, 0.4, 0.5)) / 2)
    assert found["product"] == pytest.approx(0.4 * 0.3)
    other = rule_values(lines, SelectionConfig(likeness="clip_i", likeness_weight=0.3))
    assert other["harmonic"] == pytest.approx((harmonic(0.8, 0.2, 0.3) + harmonic(0.4, 0.4, 0.3)) / 2)
    assert rule_values([], SelectionConfig()) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selection.rule=best"], "selection.rule='best' is not known; allowed: last, harmonic, product"),
        (["selection.likeness=lpips"], "selection.likeness='lpips' is not known; allowed: dino, clip_i"),
        (["selection.likeness_weight=2"], "selection.likeness_weight=2.0 is out of range; allowed: 0 to 1"),
        (["selection.rule=product", "selection.patience=0"], "selection.patience=0 is out of range"),
        (["selection.patience=2"], "selection.rule=last looks at none: choose selection.rule=harmonic"),
        (["selection.rule=harmonic", "scorer=none"], "scorer=none gives none: choose scorer=nano"),
        (["selection.rule=product", "samples.grid_every_steps=0"], "samples.grid_every_steps=0 makes none"),
    ],
)
def test_rules_without_anything_to_compare(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config("+subject=cat", *overrides)


def test_what_is_compared_is_a_setting_only_where_it_decides() -> None:
    """Old run folders and those with `last` are the same runs whatever their grids."""
    last, rule = (
        learning_settings(compose_config("+subject=cat", *more)) for more in ([], ["selection.rule=harmonic"])
    )
    assert "selection" not in last
    assert rule["selection"]["grid_every_steps"] == 50 and rule["selection"]["scorer"]["name"] == "nano"


@pytest.fixture(scope="module")
def selected_run(do_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage kept the step that the rule picked; do not write into it."""
    run_dir = tmp_path_factory.mktemp("selected") / "run"
    do_run(run_dir, *BY_RULE)
    return run_dir


def test_the_best_grids_state_is_what_the_stage_leaves(do_run, selected_run: Path, tmp_path: Path) -> None:
    values = grid_values(selected_run)
    assert list(values) == [2, 4, 5]  # the last step competes too
    best = max(values, key=values.get)
    facts = json.loads((selected_run / "run.json").read_text())["stages"]["embedding"]
    assert (facts["steps"], facts["selected_step"]) == (5, best)
    assert facts["selected_by"] == {"val/harmonic": pytest.approx(values[best], abs=1e-5)}
    assert not (selected_run / "stages" / "embedding" / "best").exists()
    summary = json.loads((selected_run / "summary.json").read_text())
    assert summary["stages"]["embedding"]["selected_step"] == best
    assert f"kept: step {best}, selected by val/harmonic" in write_report(selected_run).read_text()
    do_run(tmp_path, *FIVE, f"model.recipe.stages.embedding.steps={best}")
    kept, alone = (Concept.load(path / "concept") for path in (selected_run, tmp_path))
    assert torch.equal(kept.rows, alone.rows)  # the rates are constant: a shorter stage ends there


def test_by_default_the_last_step_is_kept_and_values_are_logged(do_run, tmp_path: Path) -> None:
    do_run(tmp_path, *FIVE, "samples.time_share=1")
    assert list(grid_values(tmp_path)) == list(grid_values(tmp_path, "val/product")) == [2, 4]
    assert "selected_step" not in json.loads((tmp_path / "run.json").read_text())["stages"]["embedding"]


def events(monkeypatch: pytest.MonkeyPatch, dies_at: int) -> list[int]:
    """Make the `dies_at`-th forward pass or batch of pictures fail; return what counts them."""
    count: list[int] = []

    def before(function):
        def called(*args, **kwargs):
            count.append(1)
            if len(count) == dies_at:
                raise RuntimeError("killed")
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(
        personalar.training.module, "sequence_loss", before(personalar.training.module.sequence_loss)
    )
    monkeypatch.setattr(Generator, "codes", before(Generator.codes))
    return count


def test_sigterm_at_a_step_with_a_grid_costs_nothing(
    do_run, selected_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a step is saved after its grid, which is drawn before the process ends."""
    whole, calls, handler = personalar.training.module.sequence_loss, [], signal.getsignal(signal.SIGTERM)

    def terminated(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **kwargs)

    overrides = [*BY_RULE, "trainer.checkpoint_every_steps=100"]
    try:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(personalar.training.module, "sequence_loss", terminated)
            do_run(tmp_path / "run", *overrides)
        assert ended.value.code == EXIT_TERMINATED and len(calls) == 2
        assert RunFolder(tmp_path / "run").record["stages"]["embedding"]["checkpoint"]["step"] == 2
        do_run(tmp_path / "run", *overrides)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert grid_values(tmp_path / "run") == grid_values(selected_run)
    same_result(selected_run, tmp_path / "run")


@pytest.mark.parametrize("dies_at", range(3, 11))
@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_stage_keeps_the_same_step(
    do_run, selected_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, dies_at: int
) -> None:
    """Between steps, in the grids, after them; a checkpoint at every step, or only where a grid is due."""
    overrides = [*BY_RULE, f"trainer.checkpoint_every_steps={every}"]
    with monkeypatch.context() as patch:
        events(patch, dies_at)
        with pytest.raises(RuntimeError, match="killed"):
            do_run(tmp_path / "run", *overrides)
    do_run(tmp_path / "run", *overrides)
    same_result(selected_run, tmp_path / "run")
    one, two = (json.loads((p / "run.json").read_text()) for p in (selected_run, tmp_path / "run"))
    assert two["stages"]["embedding"]["selected_by"] == one["stages"]["embedding"]["selected_by"]
    assert grid_values(selected_run) == grid_values(tmp_path / "run")


def falling(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Give the grids these values, in order."""
    told = itertools.chain(values)
    monkeypatch.setattr(
        personalar.training.callbacks.subject_scores,
        "rule_values",
        lambda lines, config: {"harmonic": next(told), "product": 0.0},
    )


def test_patience_ends_the_stage_and_the_best_is_kept(
    do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stop = [*BY_RULE, "samples.grid_every_steps=1", "selection.patience=2"]
    falling(monkeypatch, [0.1, 0.5, 0.4, 0.4, 0.9])
    do_run(tmp_path / "run", *stop)
    facts = RunFolder(tmp_path / "run").record["stages"]["embedding"]
    assert (facts["steps"], facts["selected_step"]) == (4, 2)
    assert "step 2 of 4 kept, val/harmonic 0.5000 is the highest of 4 grids" in capsys.readouterr().out


def test_a_stage_that_stopped_stays_stopped(do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the checkpoint of the step that ended it, before the concept was written."""
    stop = [*BY_RULE, "samples.grid_every_steps=1", "selection.patience=2"]
    falling(monkeypatch, [0.1, 0.5, 0.4, 0.4])

    def dies(*args, **kwargs):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("personalar.training.train.leave_concept", dies)
        with pytest.raises(RuntimeError, match="killed"):
            do_run(tmp_path, *stop)
    assert RunFolder(tmp_path).record["stages"]["embedding"]["checkpoint"]["step"] == 4
    do_run(tmp_path, *stop)
    facts = RunFolder(tmp_path).record["stages"]["embedding"]
    assert (facts["steps"], facts["selected_step"]) == (4, 2)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_processes_keep_the_step_that_one_keeps(
    strategy: str, selected_run: Path, run_overrides: list[str], tmp_path: Path
) -> None:
    """Rank zero alone has judges; the other process keeps up with what it decides."""
    overrides = [*run_overrides[:-1], *BY_RULE, f"trainer={strategy}", "trainer.accelerator=cpu"]
    run_together(tmp_path / "run", *overrides, "trainer.attention=eager", *QUICK[1:], "selection.patience=9")
    one, two = (RunFolder(p).record["stages"]["embedding"] for p in (selected_run, tmp_path / "run"))
    assert two["selected_step"] == one["selected_step"]
    first, second = (Concept.load(p / "concept") for p in (selected_run, tmp_path / "run"))
    torch.testing.assert_close(second.rows, first.rows, atol=2e-4, rtol=1e-3)
