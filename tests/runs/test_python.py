"""Runs from Python: the same folders and results as the command, also with your own Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
from conftest_run import QUICK
from PIL import Image
from test_cli import command

import personalar
from personalar.core.png import read_png_metadata
from personalar.core.run_lock import locked
from personalar.runs.personalize import from_settings

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
    done = command(tmp_path, "personalar.run", *settings, "hydra.run.dir=command")
    assert done.returncode == 0, done.stderr
    for name in ("concept/learned_embeds.safetensors", "concept/weights.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    where = [settings[-1], "decoder.cfg_scale=1"]
    prompts = ['it\'s a [V] cat, "here"', "a [V] cat"]
    files = personalar.sample_files(folder, prompts, [0, 1], *where, "out=drawn")
    assert len(files) == 4 and all(file.is_file() for file in files)
    pictures = personalar.load(folder, settings[-1], "decoder.cfg_scale=1").images(["a [V] cat"], [0])
    assert pictures[0].size == (32, 32)


@pytest.mark.filterwarnings("ignore:.*eval mode at the start", "ignore:.*does not have many workers")
def test_a_trainer_of_ones_own_learns_the_same(settings: list[str], tmp_path: Path) -> None:
    """The script of docs/python.md."""
    accumulated = "model.recipe.stages.transformer.accumulate=2"
    folder = personalar.personalize(*settings, accumulated, folder="command")

    context, stages = personalar.open_run(*settings, accumulated, folder="mine")
    for stage in stages:
        module = personalar.PersonalizationModule(context, stage)
        data = personalar.SubjectDataModule(context, stage)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=stage.numbers.steps,
            accumulate_grad_batches=stage.numbers.accumulate,
            gradient_clip_val=stage.numbers.gradient_clip,
            limit_val_batches=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, data)
        module.concept(module.learned()).save(context.folder.concept(stage.name))
    personalar.open_run(*settings, accumulated, folder="mine")  # the script can be run again
    for name in ("learned_embeds.safetensors", "weights.safetensors"):
        mine = (context.folder.concept(stage.name) / name).read_bytes()
        assert mine == (folder / "concept" / name).read_bytes()


def test_a_finished_run_cannot_be_opened_for_training(settings: list[str], tmp_path: Path) -> None:
    personalar.personalize(*settings, folder="run")
    with pytest.raises(ValueError, match="contains a finished run: choose another folder"):
        personalar.open_run(*settings, folder="run")
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="is in use by process"):
        personalar.open_run(*settings, "overwrite=true", folder="run")


def test_a_refused_call_leaves_no_folder(settings: list[str], tmp_path: Path) -> None:
    for start in (personalar.personalize, personalar.open_run):
        with pytest.raises(ValueError, match="stage=transformer starts from the result of"):
            start(*settings, "stage=transformer", folder="run")
        assert not (tmp_path / "run").exists()


def test_mistakes_are_those_of_the_command() -> None:
    with pytest.raises(ValueError, match="did you mean cat"):
        personalar.personalize("subject=catt")
    with pytest.raises(ValueError, match=r"hydra\.run\.dir=x is for the command line: .* folder=DIR"):
        personalar.personalize("subject=cat", "hydra.run.dir=x")
    own, folder = from_settings(["subject=cat", f"hydra.searchpath=[file://{Path.cwd()}]"], "~/runs/cat")
    assert (own.subject.name, folder) == ("cat", Path.home() / "runs/cat")
    with pytest.raises(ValueError, match=r"prompts=\[a\]: pass it as an argument, sample_files\("):
        personalar.sample_files("outputs", ["a [V] cat"], [0], "prompts=[a]")
    with pytest.raises(ValueError, match="both must be lists"):
        personalar.sample_files("outputs", "a [V] cat")
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        personalar.Nothing  # noqa: B018


def test_pictures_from_anywhere_are_scored_as_in_a_run(finished_run: Path, tiny_scorer_dir: Path) -> None:
    judges = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    files = sorted((finished_run / "images" / "embedding").glob("subject_*.png"))
    photos = sorted((finished_run / "references").glob("*.png"))
    lines = [json.loads(line) for line in (finished_run / "scores.jsonl").read_text().splitlines()]
    wanted = [line for line in lines if (line["stage"], line["kind"]) == ("embedding", "subject")]
    prompts = [read_png_metadata(file)["prompt"] for file in files]
    pictures = [Image.open(file).convert("RGB") for file in files]
    found = personalar.score(pictures, prompts, *judges, photos=[Image.open(p) for p in photos], noun="cat")
    for measure in ("dino", "clip_i", "clip_t"):
        values = [line["value"] for line in wanted if line["scorer"] == measure]
        assert found[measure] == pytest.approx(sum(values) / len(values), abs=2e-6)
    with pytest.raises(ValueError, match="got 2 pictures, 1 prompts and 1 photos: give one prompt per"):
        personalar.score(pictures[:2], prompts[:1], photos=pictures[:1], noun="cat")
