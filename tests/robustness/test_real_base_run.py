"""A user's commands on checkpoints in the published formats, from photos to report, pictures and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_emu3 import save_original
from conftest_run import compose_config, compose_with_stub_tokenizer
from PIL import Image
from safetensors.torch import load

from personalar.concepts.concept import Concept
from personalar.concepts.exchange import read_export, write_export
from personalar.doctor import model_files
from personalar.generation.sample_files import write_samples
from personalar.runs.personalize import personalize, prepare

FEW = ['samples.prompts=["a photo of a {}"]', "samples.kinds=[subject]", "samples.grid_every_steps=0"]


def mixed_photos(folder: Path) -> Path:
    folder.mkdir()
    for index, size in enumerate([(300, 100), (120, 130), (90, 300)]):
        Image.radial_gradient("L").rotate(70 * index).convert("RGB").resize(size).save(
            folder / f"{index}.png"
        )
    return folder


def test_photos_to_report_and_new_pictures(
    do_run: Callable[..., bool], lumina_dir: Path, vqgan_dir: Path, tmp_path: Path
) -> None:
    model = [
        "model=lumina_mgpt_7b_512", f"model.path={lumina_dir}", f"model.vq_path={vqgan_dir}",
        "model.layout.resolution=64", "model.dtype=float32",
    ]  # fmt: skip
    stages = [
        f"model.recipe.stages.{s}.{k}"
        for s in ("embedding", "transformer")
        for k in ("steps=2", "accumulate=1")
    ]
    photos = ["subject.noun=dog", f"subject.path={mixed_photos(tmp_path / 'rex')}"]
    run = tmp_path / "run"
    assert do_run(run, *model, *stages, *photos, *FEW, "stage=both", subject="+subject=folder")
    concept = Concept.load(run / "concept")
    assert concept.base["name"] == "lumina_mgpt_7b_512" and concept.tokens["[V]"] == 9008
    assert len(concept.tokens) == 4 and len(concept.weights) == 6
    assert (run / "report.html").is_file() and set(json.loads((run / "summary.json").read_text())["stages"])
    assert {
        len(list((run / "images" / stage).iterdir())) for stage in ("base", "embedding", "transformer")
    } == {1}
    words = [
        f"concept={run}",
        'prompts=["a [V] dog"]',
        f"out={tmp_path / 'new'}",
        *model,
        "trainer.threads=1",
    ]
    config = compose_config(*words, name="sample")
    (picture,) = write_samples(config)
    assert Image.open(picture).size == (64, 64)
    assert not do_run(run, *model, *stages, *photos, *FEW, "stage=both", subject="+subject=folder")


@pytest.mark.parametrize(
    ("name", "first", "size", "theirs", "stack", "told"),
    [
        ("janus_pro_1b", 639, "16x16", "Janus", "language_model", ("1 weight file(s)", "guidance 5")),
        ("emu3_gen", 309, "20x12", "Emu3", "text_model", ("2 weight file(s)", "guidance 3")),  # BAAI's format
    ],
)
def test_a_run_by_lora_draws_and_is_exported(
    name: str,
    first: int,
    size: str,
    theirs: str,
    stack: str,
    told: tuple[str, str],
    janus_dir: Path,
    tmp_path: Path,
) -> None:
    base = janus_dir if name.startswith("janus") else save_original(tmp_path / "base")
    model = [f"model={name}", f"model.path={base}", "model.dtype=float32"]
    model += ["model.layout.resolution=16", "model.layout.grid_px=4"]
    if name == "emu3_gen":
        model += ["model.layout.negative_prompt=a boot", "model.recipe.data.prompt_dropout=0.5"]
    numbers = ("steps=2", "batch=2", "accumulate=1")
    quick = [f"model.recipe.stages.{s}.{n}" for s in ("embedding", "lora") for n in numbers]
    more = ["trainer.threads=1", "method=lora", "stage=both", "scorer=none", *FEW, *quick]
    run, out = tmp_path / "run", tmp_path / "out"
    prepared = prepare(compose_with_stub_tokenizer("+subject=cat", *model, *more), run)
    assert prepared is not None
    personalize(*prepared, command="test")
    concept = Concept.load(run / "concept")
    assert concept.base["name"] == name and concept.tokens["[V]"] == first
    assert concept.lora and not concept.weights and (run / "report.html").is_file()
    words = [f"concept={run}", 'prompts=["a [V] cat"]', f"out={tmp_path / 'drawn'}", f"size={size}"]
    (picture,) = write_samples(compose_with_stub_tokenizer(*words, *model, name="sample"))
    assert "{}x{}".format(*Image.open(picture).size) == size
    config = compose_with_stub_tokenizer("+subject=cat", *model).model
    write_export(concept, out, config, checkpoint=False)
    settings = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert settings["auto_mapping"]["base_model_class"] == f"{theirs}ForConditionalGeneration"
    names = load((out / "lora" / "adapter_model.safetensors").read_bytes())
    assert all(key.startswith(f"base_model.model.model.{stack}.layers.") for key in names)
    back = read_export(out, *model, noun="cat")
    learned, adopted = (load(c.lora["lora/adapter_model.safetensors"]) for c in (concept, back))
    assert learned.keys() == adopted.keys()
    assert all(bool((learned[key] == adopted[key]).all()) for key in learned)
    doctor = "\n".join(model_files(config))
    assert all(words in doctor for words in (f"model={name}: {told[0]}", told[1]))
