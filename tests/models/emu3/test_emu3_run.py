"""A whole run on a tiny Emu3 checkpoint in BAAI's format: both stages by LoRA, a picture, and the export."""

from __future__ import annotations

import json
from pathlib import Path

from conftest_emu3 import save_original
from conftest_run import compose_with_stub_tokenizer
from PIL import Image
from safetensors.torch import load

from personalar.concepts.concept import Concept
from personalar.concepts.exchange import read_export, write_export
from personalar.doctor import model_files
from personalar.generation.sample_files import write_samples
from personalar.runs.personalize import personalize, prepare

NUMBERS = ("steps=2", "batch=2", "accumulate=1")
FEW = ['samples.prompts=["a photo of a {}"]', "samples.kinds=[subject]", "samples.grid_every_steps=0"]


def test_a_run_learns_draws_and_is_exported(tmp_path: Path) -> None:
    base = save_original(tmp_path / "base")
    model = ["model=emu3_gen", f"model.path={base}", "model.layout.resolution=16", "model.layout.grid_px=4"]
    model += [
        "model.dtype=float32",
        "model.layout.negative_prompt=a boot",
        "model.recipe.data.prompt_dropout=0.5",
    ]
    quick = [f"model.recipe.stages.{s}.{n}" for s in ("embedding", "lora") for n in NUMBERS]
    more = ["trainer.threads=1", "method=lora", "stage=both", "scorer=none", *FEW, *quick]
    prepared = prepare(compose_with_stub_tokenizer("+subject=cat", *model, *more), tmp_path / "run")
    assert prepared is not None
    personalize(*prepared, command="test")
    concept = Concept.load(tmp_path / "run" / "concept")
    assert concept.base["name"] == "emu3_gen" and concept.tokens["[V]"] == 309  # <|extra_1|>
    assert concept.lora and (tmp_path / "run" / "report.html").is_file()

    words = [
        f"concept={tmp_path / 'run'}",
        'prompts=["a [V] cat"]',
        f"out={tmp_path / 'drawn'}",
        "size=20x12",
    ]
    (picture,) = write_samples(compose_with_stub_tokenizer(*words, *model, name="sample"))
    assert Image.open(picture).size == (20, 12)

    config = compose_with_stub_tokenizer("+subject=cat", *model).model
    write_export(concept, tmp_path / "out", config, checkpoint=False)
    settings = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert settings["auto_mapping"]["base_model_class"] == "Emu3ForConditionalGeneration"
    names = load((tmp_path / "out" / "lora" / "adapter_model.safetensors").read_bytes())
    assert all(name.startswith("base_model.model.model.text_model.layers.") for name in names)
    back = read_export(tmp_path / "out", *model, noun="cat")
    learned, adopted = (load(c.lora["lora/adapter_model.safetensors"]) for c in (concept, back))
    assert all(bool((learned[name] == adopted[name]).all()) for name in learned)
    told = "\n".join(model_files(config))
    assert "model=emu3_gen: 2 weight file(s)" in told and "guidance 3" in told
