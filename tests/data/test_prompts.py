"""Subjects and the words about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from personalar.concepts import validation
from personalar.config.run_config import SamplesConfig, SubjectConfig
from personalar.core.types import PromptSpec, image_fingerprint
from personalar.data.prompts import (
    UNRELATED,
    class_prompt,
    fill,
    is_live,
    plain_prompts,
    prior_prompt,
    row_names,
    sample_prompt,
    spell,
    training_prompt,
    unrelated_prompts,
    word_of,
)
from personalar.data.subject import load_subject, validation_prompts

SPEC = PromptSpec(text="a {} in the snow", category="recontext")
STYLED = PromptSpec(text="a cat in the style of {}, at night", category="style")


def test_training_prompts_follow_the_paper() -> None:
    assert training_prompt("a photo of {}", "cat") == "a photo of [V] cat"
    assert training_prompt("a photo of {}", "cat", image_token="[S2]") == "a photo of [V] cat [S2]"


def test_words_are_spelled_as_the_names_of_their_tokens() -> None:
    assert row_names("[V]", 1) == ("[V]",) and row_names("[cat]", 3) == ("[cat]", "[cat:2]", "[cat:3]")
    words = {"[V]": row_names("[V]", 2), "[cat]": ("[V]",)}
    assert spell("a [V] cat, [cat]: cat [S1]", words) == "a [V][V:2] cat, [V]: cat [S1]"
    assert spell("a [V] cat", {}) == "a [V] cat"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cat", "[cat]"),
        ("my cat (2)", "[my_cat_2]"),
        ("V", "[my_V]"),
        ("S12", "[my_S12]"),
        ("I", "[my_I]"),
        ("T2", "[my_T2]"),
        ("V8x", "[V8x]"),
        ("\u732b", "[unnamed]"),
    ],
)
def test_a_name_gives_a_word_that_no_learned_token_has(name: str, word: str) -> None:
    assert word_of(name) == word and validation.WORD.fullmatch(word) and not validation.NAME.fullmatch(word)


def test_validation_prompts_by_kind() -> None:
    words = {"noun": "cat", "description": "orange cat"}
    assert sample_prompt(SPEC, kind="subject", learned=True, **words) == "a [V] cat in the snow"
    assert sample_prompt(SPEC, kind="subject", learned=False, **words) == "a cat in the snow"
    assert sample_prompt(SPEC, kind="class", learned=True, **words) == "a cat in the snow"
    assert sample_prompt(SPEC, kind="description", learned=False, **words) == "an orange cat in the snow"


def test_a_style_has_no_class_and_the_base_is_asked_without_it() -> None:
    def prompt(kind, learned, noun="style") -> str:
        words = {"noun": noun, "description": "an ink drawing"}
        return sample_prompt(STYLED, kind=kind, learned=learned, **words)

    assert training_prompt("a painting in the style of {}", "style") == "a painting in the style of [V]"
    assert prompt("subject", learned=True) == "a cat in the style of [V], at night"
    assert prompt("subject", learned=False) == prompt("class", learned=True) == "a cat, at night"
    assert prompt("description", learned=False) == "a cat in the style of an ink drawing, at night"
    assert prompt("class", learned=True, noun="painter") == "a cat in the style of painter, at night"
    assert class_prompt("in the style of {}, a cat", "style") == class_prompt("a cat", "style") == "a cat"
    assert class_prompt(prior_prompt("style").text, "style") == "a painting"
    assert len(unrelated_prompts("style")) == len(UNRELATED)


@pytest.mark.parametrize(
    ("text", "phrase", "result"),
    [
        ("a {} on a table", "owl", "an owl on a table"),
        ("a photo of a {}", "orange cat", "a photo of an orange cat"),
        ("A {}", "owl", "An owl"),
        ("the {}", "owl", "the owl"),
        ("a red {}", "owl", "a red owl"),
    ],
)
def test_articles(text: str, phrase: str, result: str) -> None:
    assert fill(text, phrase) == result


def test_prompts_from_the_configuration() -> None:
    assert validation_prompts("cat", SamplesConfig(prompts=["a {}"]), live=True) == plain_prompts(["a {}"])
    with pytest.raises(ValueError, match=r"no \{\} for the subject: write 'a \{\} in the snow'"):
        plain_prompts(["a cat"])


def test_benchmark_prompts_fit_any_noun() -> None:
    nouns = {"corgi dog": True, "sofa": False}
    cat, sofa = (validation_prompts(noun, SamplesConfig(), live=live) for noun, live in nouns.items())
    assert len(cat) > len(sofa) >= 12
    assert {"recontext", "accessory"} <= {spec.category for spec in cat}


@pytest.mark.parametrize(
    "noun", ["dog", "Dog", "man", "woman", "child", "girl", "lion", "corgi dog", "person"]
)
def test_animals_and_people_are_live(noun: str) -> None:
    assert is_live(noun)


@pytest.mark.parametrize("noun", ["sofa", "duck toy", "teddy bear", "Rubber duck", "hot dog", "dog bowl"])
def test_things_are_not_live(noun: str) -> None:
    assert not is_live(noun)


def test_unrelated_prompts_leave_out_the_class_in_capitals() -> None:
    assert unrelated_prompts("Dog") == unrelated_prompts("dog") != unrelated_prompts("sofa")


def config(path: Path | None, **changes) -> SubjectConfig:
    values = {"kind": "folder", "name": "mine", "noun": "dog", "path": str(path) if path else None}
    return SubjectConfig(**(values | changes))


def test_a_folder_of_photos(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "b.JPG", format="JPEG")
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / ".hidden.png").write_bytes(b"")
    subject = load_subject(config(tmp_path))
    assert [image.size for image in subject.images] == [(40, 40), (60, 40)]
    assert subject.images[0].getpixel((0, 0)) == (255, 255, 255)  # transparency lies on white
    assert subject.live and subject.holdout == () and subject.description is None
    assert subject.fingerprint == image_fingerprint(subject.images)
    assert not load_subject(config(tmp_path, noun="sofa")).live
    assert load_subject(config(tmp_path, noun="sofa", live=True)).live


def test_a_folder_subject_needs_its_path() -> None:
    with pytest.raises(ValueError, match=r"needs subject.path=DIR"):
        load_subject(config(None))


def test_a_style_is_a_folder_of_pictures(tmp_path: Path, capsys) -> None:
    style = config(tmp_path, kind="style", noun="style")
    with pytest.raises(FileNotFoundError, match="put 1 to 10 pictures in one style there"):
        load_subject(style)
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a style icon on a sofa.")
    subject = load_subject(style)
    assert subject.captions == ("a style icon on a sofa in the style of {}",) and not subject.live
    shown = " ".join(capsys.readouterr().out.split())
    assert 'prompt "a style icon on a sofa in the style of [V]" (the style appended)' in shown
    assert "note: only one picture: its motif can become part of the style" in shown
