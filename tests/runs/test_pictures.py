"""Pictures of a run: those that a stage cannot change are the base's."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import personalar
from personalar.core.png import load_sample


@pytest.mark.filterwarnings("ignore:note. .* does not name the subject")
def test_prompts_without_v_give_the_bases_pictures_after_stage_1(finished_run: Path) -> None:
    folder = finished_run / "images"
    paths = sorted((folder / "embedding").glob("class_*.png"))
    assert len(paths) == 2
    concept = personalar.load(finished_run / "stages" / "embedding" / "concept")
    for path in paths:
        sample = load_sample(path)
        (drawn,) = concept.images([sample.prompt], seeds=[sample.seed])
        assert sample.image.tobytes() == drawn.tobytes() == pixels(folder / "base" / path.name)
        assert sample.stage == "embedding"
    assert all("concept" in Image.open(path).text for path in paths)
    changed = [
        pixels(path) != pixels(folder / "base" / path.name)
        for path in (folder / "transformer").glob("class_*.png")
    ]
    assert len(changed) == 2 and any(changed)


def pixels(path: Path) -> bytes:
    return load_sample(path).image.tobytes()
