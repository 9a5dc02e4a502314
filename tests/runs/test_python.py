"""Runs from Python: the same folders and results as the command, also with a Trainer of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest_run import QUICK

import personalar
from personalar.concepts.concept import Concept

LOOK = ("scorer=none", "samples.kinds=[subject]", "samples.grid_every_steps=0")


@pytest.fixture
def settings(tiny_model_dir: Path) -> list[str]:
    return ["subject=cat", *QUICK, *LOOK, f"model.path={tiny_model_dir}"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_is_the_commands(settings: list[str], tmp_path: Path) -> None:
    folder = personalar.personalize(*settings)
    assert folder == tmp_path / "outputs" / "nano" / "cat" and (folder / "report.html").is_file()
    command = [sys.executable, "-m", "personalar.run", *settings, "hydra.run.dir=command"]
    subprocess.run(command, check=True)
    for name in ("concept/learned_embeds.safetensors", "concept/weights.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    pictures = personalar.load(folder, settings[-1], "decoder.cfg_scale=1").images(["a [V] cat"], [0])
    assert pictures[0].size == (32, 32)


@pytest.mark.filterwarnings("ignore:.*eval mode at the start", "ignore:.*does not have many workers")
def test_a_trainer_of_ones_own_learns_the_same(settings: list[str], tmp_path: Path) -> None:
    """The script of docs/python.md."""
    folder = personalar.personalize(*settings, "stage=embedding", folder="command")

    context, stages = personalar.open_run(*settings, "stage=embedding", folder="mine")
    (stage,) = stages
    module = personalar.PersonalizationModule(context, stage)
    data = personalar.SubjectDataModule(context, stage)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=stage.numbers.steps,
        gradient_clip_val=stage.numbers.gradient_clip,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    assert torch.equal(module.identifier.rows.detach(), Concept.load(folder / "concept").rows)


def test_a_finished_run_cannot_be_opened_for_training(settings: list[str]) -> None:
    personalar.personalize(*settings, folder="run")
    with pytest.raises(ValueError, match="holds a finished run: choose another folder"):
        personalar.open_run(*settings, folder="run")


def test_mistakes_are_those_of_the_command() -> None:
    with pytest.raises(ValueError, match="did you mean cat"):
        personalar.personalize("subject=catt")
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        personalar.Nothing  # noqa: B018
