"""Pictures on disk: metadata survive a round trip, file names are safe, writes are atomic."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from personalar.core.png import load_sample, read_png_metadata, sample_filename, save_png, save_sample
from personalar.core.types import PromptSpec, Sample
from personalar.reports.picture_grid import draw_grid

RED = Image.new("RGB", (8, 6), "red")


def sample(prompt: str = "a [V] cat in the snow") -> Sample:
    facts = {"context": "snow", "accessory": "hat", "colour": "red", "style": "watercolour"}
    assert {"text", "category", *facts} == {field.name for field in dataclasses.fields(PromptSpec)}
    spec = PromptSpec(text="a {} in the snow", category="recontext", **facts)
    return Sample(stage="embedding", prompt=prompt, kind="subject", seed=7, spec=spec, image=RED)


def test_a_sample_comes_back_whole(tmp_path):
    saved = save_sample(sample(), tmp_path, provenance={"base": "nano", "concept": "abc"})
    assert saved.path.parent == tmp_path / "images" / "embedding"
    back = load_sample(saved.path)
    assert back.image.tobytes() == RED.tobytes()
    assert (back.stage, back.prompt, back.kind, back.seed, back.spec) == (
        saved.stage,
        saved.prompt,
        saved.kind,
        saved.seed,
        saved.spec,
    )
    assert read_png_metadata(saved.path)["base"] == "nano"
    assert [file.name for file in saved.path.parent.iterdir()] == [saved.path.name]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300))
def test_any_prompt_survives(prompt, tmp_path):
    saved = save_sample(sample(prompt), tmp_path)
    assert len(saved.path.name) < 120 and saved.path.parent == tmp_path / "images" / "embedding"
    assert load_sample(saved.path).prompt == prompt


def test_names_differ_where_the_words_do_not():
    names = {
        sample_filename("subject", prompt, 0)
        for prompt in ("a cat", "a cat!", "A CAT", "猫", "犬", "", "x" * 99)
    }
    assert len(names) == 7


def test_a_foreign_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a sample of personalar: stage, prompt"):
        load_sample(save_png(RED, tmp_path / "photo.png", {"seed": "1"}))


def test_grid_places_pictures_and_leaves_gaps_empty():
    grid = draw_grid([[RED, None], [RED, RED]], cell_px=40, gap_px=4)
    assert grid.size == (2 * 44 + 4, 2 * 44 + 4)
    assert grid.getpixel((4 + 20, 4 + 20)) == (255, 0, 0) and grid.getpixel((48 + 20, 4 + 20)) == (
        238,
        239,
        242,
    )
    titled = draw_grid(
        [[RED]], column_titles=["base"], row_titles=["word " * 40 + "x" * 200], title="t" * 300
    )
    assert titled.width > titled.height
