"""The note on a stage that learned nothing, and the movement of [V] in one that learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_concept import make

from personalar.core.types import PromptSpec, Sample
from personalar.reports.summary import result_lines
from personalar.training.callbacks.learning_check import LEAST_CHANGE, LEAST_MOVE, move_of, share_changed

STILL = ("model.recipe.stages.embedding.lr=1e-7", "model.recipe.stages.transformer.lr=1e-12",
         "model.recipe.stages.transformer.identifier_lr=1e-12")  # fmt: skip
LOOK = ("samples.kinds=[subject]", "samples.grid_every_steps=0")


def test_the_move_is_in_lengths_of_the_first_row() -> None:
    before, after = (make(rows=torch.tensor([row, [9.0, 9.0]])) for row in ([3.0, 4.0], [3.0, 9.0]))
    assert move_of(before, after) == pytest.approx(1.0) and move_of(before, before) == 0


def sample(prompt: str, shade: int, *, kind: str = "subject", seed: int = 0) -> Sample:
    """Return a grey picture."""
    spec = PromptSpec(text="a {}", category="plain")
    image = Image.new("RGB", (4, 4), (shade,) * 3)
    return Sample(stage="embedding", prompt=prompt, kind=kind, seed=seed, spec=spec, image=image)


def test_pictures_are_compared_by_prompt_and_seed_and_the_subjects_alone() -> None:
    before = [sample("a [V] cat", 1), sample("one [V] cat", 2), sample("a cat", 3, kind="class")]
    after = [sample("a [V] cat", 1), sample("one [V] cat", 3), sample("a cat", 3, kind="class")]
    assert share_changed(before, before) == 0 and share_changed(before, after) == 0.5
    assert share_changed(before, [replace(before[0], seed=1)]) is None


def said(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_stages_that_change_nothing_are_noted_where_a_reader_looks(
    do_run: Callable[..., bool], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = (*STILL, "scorer=none", *LOOK)
    do_run(tmp_path, "stage=embedding", *overrides)
    lines = said(capsys)
    (moved,) = [line for line in lines if line.startswith("stage embedding: [V] moved ")]
    assert "e-0" in moved and moved.endswith(" of its length from its start")
    (note,) = [line for line in lines if "stage embedding learned next to nothing: [V] moved" in line][:1]
    assert "Raise model.recipe.stages.embedding.lr=1e-07 or" in note
    assert note.endswith("or model.recipe.stages.embedding.steps=4")
    record = json.loads((tmp_path / "run.json").read_text())
    assert 0 < record["stages"]["embedding"]["v_moved"] < 1e-4
    assert f"note: {record['warnings'][-1]}" == note  # the report shows them
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stages"]["embedding"]["v_moved"] == record["stages"]["embedding"]["v_moved"]
    assert note in result_lines(tmp_path)
    do_run(tmp_path, "stage=both", *overrides)  # another command on the same folder keeps the note, once
    lines = said(capsys)
    assert "stage transformer: 0% of the subject's pictures changed" in lines
    (other,) = {line for line in lines if "stage transformer learned next to nothing" in line}
    assert other.endswith("Raise model.recipe.stages.transformer.lr=1e-12 or "
                          "model.recipe.stages.transformer.steps=4")  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [f"note: {text}" for text in summary["notes"]] == [note, other]
    assert summary["stages"]["transformer"]["pictures_changed"] == 0
    assert summary["stages"]["embedding"]["pictures_changed"] is None


def test_a_run_by_the_recipe_raises_no_alarm(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    stages = summary["stages"]
    assert summary["notes"] == [] and stages["embedding"]["v_moved"] > LEAST_MOVE
    # A random model's two pictures after four steps: one of them changed, which is no alarm yet.
    assert stages["transformer"]["pictures_changed"] >= LEAST_CHANGE and stages["transformer"]["v_moved"] > 0
    assert not any(
        "learned" in text for text in json.loads((finished_run / "run.json").read_text())["warnings"]
    )
