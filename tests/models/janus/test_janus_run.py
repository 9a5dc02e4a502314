"""A whole run on a tiny Janus checkpoint: both stages by LoRA, new pictures, and the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest_run import compose_with_stub_tokenizer
from PIL import Image
from safetensors.torch import load

from personalar.concepts.concept import Concept
from personalar.concepts.exchange import read_export, write_export
from personalar.doctor import model_files
from personalar.generation.sample_files import write_samples
from personalar.runs.personalize import personalize, prepare

TINY = ["model.layout.resolution=16", "model.layout.grid_px=4", "model.dtype=float32"]
NUMBERS = ("steps=2", "batch=2", "accumulate=1")
FEW = ['samples.prompts=["a photo of a {}"]', "samples.kinds=[subject]", "samples.grid_every_steps=0"]


@pytest.fixture(scope="module")
def model(janus_dir: Path) -> list[str]:
    return ["model=janus_pro_1b", f"model.path={janus_dir}", *TINY]


@pytest.fixture(scope="module")
def run(model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("janus_run") / "run"
    quick = [f"model.recipe.stages.{s}.{n}" for s in ("embedding", "lora") for n in NUMBERS]
    more = ["trainer.threads=1", "method=lora", "stage=both", "scorer=none", *FEW, *quick]
    prepared = prepare(compose_with_stub_tokenizer("+subject=cat", *model, *more), folder)
    assert prepared is not None
    personalize(*prepared, command="test")
    return folder


def test_a_run_learns_and_draws(run: Path, model: list[str], tmp_path: Path) -> None:
    concept = Concept.load(run / "concept")
    assert concept.base["name"] == "janus_pro_1b" and concept.tokens["[V]"] == 639
    assert concept.lora and not concept.weights and concept.rows.shape[1] == 64
    assert (run / "report.html").is_file()
    words = [f"concept={run}", 'prompts=["a [V] cat"]', f"out={tmp_path}", *model, "trainer.threads=1"]
    (picture,) = write_samples(compose_with_stub_tokenizer(*words, name="sample"))
    assert Image.open(picture).size == (16, 16)


def test_the_export_is_for_transformers_and_comes_back(run: Path, model: list[str], tmp_path: Path) -> None:
    concept, config = Concept.load(run / "concept"), compose_with_stub_tokenizer("+subject=cat", *model).model
    write_export(concept, tmp_path, config, checkpoint=False)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["auto_mapping"]["base_model_class"] == "JanusForConditionalGeneration"
    assert settings["target_modules"].startswith(r"model\.language_model\.layers\.(0|1)\.")
    names = load((tmp_path / "lora" / "adapter_model.safetensors").read_bytes())
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    back = read_export(tmp_path, *model, noun="cat")
    learned, adopted = (load(c.lora["lora/adapter_model.safetensors"]) for c in (concept, back))
    assert learned.keys() == adopted.keys()
    assert all(bool((learned[name] == adopted[name]).all()) for name in learned)


def test_the_doctor_finds_the_parts(model: list[str]) -> None:
    told = "\n".join(model_files(compose_with_stub_tokenizer("+subject=cat", *model).model))
    assert "model=janus_pro_1b: 1 weight file(s)" in told and "guidance 5" in told
