"""A run on a style: its prompts, scores, concept and page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

import personalar
from personalar.core.png import read_png_metadata
from personalar.generation.sample_files import write_samples

PROMPTS = "samples.prompts=['a cat in the style of {}','a dog in the snow in the style of {}']"


@pytest.fixture(scope="module")
def style_run(do_run: Callable[..., bool], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on two pictures, one with a caption; read only."""
    folder = tmp_path_factory.mktemp("style")
    pictures = folder / "ink"
    pictures.mkdir()
    for index, colour in enumerate(("navy", "olive")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{index}.png")
    (pictures / "0.txt").write_text("a cat on a sofa")
    words = (f"subject.path={pictures}", PROMPTS, "samples.kinds=[subject,class,prior]", "method=lora")
    assert do_run(folder / "run", *words, "samples.prior_images=2", subject="+subject=style")
    assert not do_run(folder / "run", *words, "samples.prior_images=2", subject="+subject=style")
    return folder / "run"


def test_every_stage_is_asked_for_the_same_things_with_and_without_the_style(style_run: Path) -> None:
    def prompts(stage: str) -> set[tuple[str, str]]:
        found = map(read_png_metadata, (style_run / "images" / stage).glob("*.png"))
        return {(facts["kind"], facts["prompt"]) for facts in found}

    plain = {("class", "a cat"), ("class", "a dog in the snow"), ("prior", "a painting")}
    assert prompts("base") == plain | {("subject", "a cat"), ("subject", "a dog in the snow")}
    for stage in ("embedding", "transformer"):
        subject = {("subject", "a cat in the style of [V]"),
                   ("subject", "a dog in the snow in the style of [V]")}  # fmt: skip
        assert prompts(stage) == plain | subject


def test_it_has_scores_of_a_style_and_a_page_about_one(style_run: Path) -> None:
    stages = json.loads((style_run / "summary.json").read_text())["stages"]
    assert stages["base"]["style_drift"] is None and stages["base"]["style_text"] is not None
    assert stages["transformer"]["style_drift"] is not None and stages["transformer"]["class_drift"] is None
    lines = (style_run / "scores.jsonl").read_text().splitlines()
    read = {line["clip_text"] for line in map(json.loads, lines) if line["scorer"] == "clip_t"}
    assert read == {"a cat", "a dog in the snow", "a painting"}
    page = (style_run / "report.html").read_text()
    for text in ("Things in this style", "The same prompts without the style", "Style drift",
                 "a cat in the snow in the style of [V]", "The 2 pictures that"):  # fmt: skip
        assert text in page, text
    assert "another style" not in page and "[V] style" not in page


def test_its_concept_is_used_in_the_style_of(style_run: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    record = json.loads((style_run / "concept" / "concept.json").read_text())
    assert (record["subject"]["noun"], record["subject"]["word"]) == ("style", "[ink]")
    card = (style_run / "concept" / "README.md").read_text()
    assert "instance_prompt: a painting in the style of [V]" in card and "of one style" in card
    assert "Images in this style, by people" in card and 'prompts=["a cat in the snow in the style of' in card
    where = [f"model.path={tiny_model_dir}", f"out={tmp_path}", f"concept={style_run}"]
    prompts = "prompts=['a dog in the style of [ink]','a dog']"
    paths = write_samples(compose_config(*where, prompts, "strength=0.5", name="sample"))
    styled, plain = (Image.open(path).tobytes() for path in paths)
    assert styled != plain
    with pytest.warns(UserWarning, match=r"'a dog' does not name .* for a style 'in the style of \[V\]'"):
        personalar.load(style_run, f"model.path={tiny_model_dir}").images(["a dog"], seeds=[0])


def test_it_is_combined_with_a_subject(
    style_run: Path, finished_run: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    cat = finished_run / "stages" / "embedding" / "concept"
    where = [f"model.path={tiny_model_dir}", f"out={tmp_path}", f"concept=[{cat},{style_run}]"]
    (path,) = write_samples(
        compose_config(*where, "prompts=['a [cat] cat in the style of [ink]']", name="sample")
    )
    assert re.fullmatch(r"cat-ink.*\.png", path.name)
