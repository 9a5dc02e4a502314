"""Concepts of `personalar.sample`: folders, words and strengths, and their record in a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest_run import compose_config
from PIL import Image

import personalar
from personalar.core.png import read_png_metadata, save_png
from personalar.generation.chosen_concepts import check_unambiguous, check_words, choose
from personalar.generation.drawings import resolve_like
from personalar.generation.sample_files import write_samples

TWO = "prompts=['a [cat] cat and a [rex] cat']"


@pytest.fixture(scope="session")
def two(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A concept of embeddings alone, twice, the second under another name."""
    first = finished_run / "stages" / "embedding" / "concept"
    second = Path(shutil.copytree(first, tmp_path_factory.mktemp("two") / "rex"))
    record = json.loads((second / "concept.json").read_text())
    record["subject"] |= {"name": "Rex (2)", "word": "[rex]"}
    (second / "concept.json").write_text(json.dumps(record))
    return [first, second]


@pytest.fixture
def draw(two: list[Path], tiny_model_dir: Path, tmp_path: Path):
    def sample(*words: str, concepts: str = ",".join(map(str, two))) -> Path:
        where = [f"concept=[{concepts}]", f"model.path={tiny_model_dir}", f"out={tmp_path / 'out'}"]
        config = resolve_like(compose_config(*where, *words, name="sample"))
        (path,) = write_samples(config)
        return path

    return sample


def pixels(path: Path) -> bytes:
    return np.asarray(Image.open(path)).tobytes()


def test_a_picture_of_several_concepts_is_drawn_again_from_its_file(
    draw, two: list[Path], tmp_path: Path
) -> None:
    first = draw(TWO, "strength=[0.5,1.25]")
    drawn, facts = pixels(first), read_png_metadata(first)
    assert facts["words"] == "[cat] [rex]" and facts["strength"] == "0.5 1.25"
    assert len(facts["concept"].split()) == 2 and first.name.startswith("cat-rex")
    moved = first.rename(tmp_path / "moved.png")
    again = draw(f"like={moved}")
    assert pixels(again) == drawn and read_png_metadata(again) == facts
    with pytest.raises(ValueError, match=r"another concept .*give the concept folders .* in the same order"):
        draw(f"like={moved}", concepts=f"{two[1]},{two[0]}")


@pytest.mark.parametrize("strength", ["x", "7", "nan"])
def test_a_strange_strength_in_a_picture_is_refused(draw, tmp_path: Path, strength: str) -> None:
    facts = read_png_metadata(draw(TWO, "strength=0.5")) | {"strength": strength}
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "strange.png", facts)
    with pytest.raises(ValueError, match=r"damaged strength|strength=.* is out of range"):
        draw(f"like={path}")


def test_names_of_ones_own(draw, two: list[Path]) -> None:
    path = draw("names=[a,b]", "prompts=['a [a] cat and a [b] cat']")
    assert pixels(path) == pixels(draw(TWO)) and read_png_metadata(path)["words"] == "[a] [b]"
    with pytest.raises(
        ValueError, match=r"2 concepts have the word \[cat\].*: give each its own with names=\[cat1"
    ):
        draw(TWO, concepts=f"{two[0]},{two[0]}")


def test_a_note_on_a_prompt_is_printed_once_for_all_strengths(
    two: list[Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("personalar.generation.requests.words_note", lambda *_: "an unknown word")
    words = [f"concept={two[0]}", f"model.path={tiny_model_dir}", f"out={tmp_path}"]
    words += ["prompts=['a [cat] cat']", "grid.x.strength=[0.5,1]"]
    assert len(write_samples(compose_config(*words, name="sample"))) == 2
    assert capsys.readouterr().out.count("an unknown word") == 1


def test_python_draws_the_same(draw, two: list[Path], tiny_model_dir: Path) -> None:
    pipeline = personalar.load(two, f"model.path={tiny_model_dir}", "strength=[0.5,1]")
    (picture,) = pipeline.images(["a [cat] cat and a [rex] cat"], [0])
    assert picture.tobytes() == pixels(draw(TWO, "strength=[0.5,1]"))
    with pytest.raises(
        ValueError, match=r"contains \[V\], which could be any of the concepts: write \[cat\] or"
    ):
        pipeline.images(["a [V] cat"], [0])


def test_a_concept_without_a_word_is_called_by_its_name(two: list[Path], tmp_path: Path) -> None:
    """Concepts of older versions contain none."""
    folder = Path(shutil.copytree(two[1], tmp_path / "old"))
    record = json.loads((folder / "concept.json").read_text())
    del record["subject"]["word"]
    (folder / "concept.json").write_text(json.dumps(record))
    (chosen,) = choose(compose_config(f"concept={folder}", "prompts=[x]", name="sample"))
    assert (chosen.word, chosen.strength) == ("[Rex_2]", 1.0)
    assert not check_words(["a [Rex_2] cat", "a [V] cat"], ["[V]", chosen.word])
    with pytest.raises(ValueError, match=r"which could be any of the concepts: write \[a\] or \[b\]"):
        check_unambiguous([None, "a [V] cat"], ["[a]", "[b]"])


def test_a_damaged_record_is_reported_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "concept.json").write_text("[" * 100_000)
    (chosen,) = choose(compose_config(f"concept={tmp_path}", "prompts=[x]", name="sample"))
    assert chosen.name == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["concept=[]"], r"concept=\[\]: give a folder, or a list such as concept=\[cat,hat\]"),
        (["concept=3"], r"concept=3: give a folder"),
        (["concept=[a,b]", "strength=[1]"], r"strength=\[1\] has 1 values for 2 concepts"),
        (["concept=a", "names=[x,y]"], r"names=\['x', 'y'\] has 2 values for 1 concepts"),
        (["concept=a", "names=[S1]"], r"'S1' cannot be a name in prompts; allowed: letters, digits, _"),
        (["concept=a", "names=['a b']"], "'a b' cannot be a name in prompts"),
        (["concept=a", "strength=1.6"], "strength=1.6 is out of range; allowed: 0 to 1.5"),
        (["concept=[a,b]", "strength=[1,-1]"], "strength=-1 is out of range"),
        (["concept=a", "strength=much"], "strength='much'; allowed: numbers from 0 to 1.5"),
        (["concept=a", "strength=true"], "strength=True; allowed: numbers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config(*words, "prompts=[x]", name="sample")
