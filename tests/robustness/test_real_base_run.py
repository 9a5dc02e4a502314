"""A user's command on a checkpoint in the published format, from mixed photos to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest_run import compose_config
from PIL import Image

from personalar.concepts.concept import Concept
from personalar.generation.sample_files import write_samples


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
    few = ['samples.prompts=["a photo of a {}"]', "samples.kinds=[subject]", "samples.grid_every_steps=0"]
    run = tmp_path / "run"
    assert do_run(run, *model, *stages, *photos, *few, "stage=both", subject="+subject=folder")
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
    assert not do_run(run, *model, *stages, *photos, *few, "stage=both", subject="+subject=folder")
