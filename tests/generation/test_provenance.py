"""Pictures of `personalar.sample`: nothing is replaced, and each can be drawn again from its file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.core.png import read_png_metadata, save_png
from personalar.data.prompts import normalized
from personalar.generation.drawings import resolve_like
from personalar.generation.sample_files import write_samples

PROMPT = "prompts=['a [V] cat']"
PLAIN = '{"_target_": "personalar.generation.decoders.plain.PlainDecoder", %s}'


@pytest.fixture
def draw(finished_run: Path, tiny_model_dir: Path, tmp_path: Path):
    def sample(*words: str) -> list[Path]:
        where = [f"concept={finished_run}", f"model.path={tiny_model_dir}", f"out={tmp_path / 'out'}"]
        return write_samples(resolve_like(compose_config(*where, *words, name="sample")))

    return sample


@pytest.fixture
def other_layout(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The same base with another unconditional context."""
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    file = folder / "protocol.json"
    file.write_text(file.read_text().replace('"unconditional": "image"', '"unconditional": "bos"'))
    return folder


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_what_changes_a_picture_changes_its_name_and_its_facts(draw, other_layout: Path) -> None:
    found = [
        draw(PROMPT, *words)[0]
        for words in (
            ["decoder.cfg_scale=1"],
            ["decoder.cfg_scale=3"],
            ["decoder.top_k=2"],
            ["decoder.temperature=0.5"],
            ["decoder=jacobi"],
            ["model.dtype=bfloat16"],
            ["seeds=[1]"],
            [f"model.path={other_layout}"],
        )
    ]
    assert len({*found}) == len(found) == len({repr(read_png_metadata(path)) for path in found})
    assert len({pixels(path) for path in found}) > 4


def test_the_same_picture_is_drawn_once(draw) -> None:
    (first,) = draw(PROMPT, "seeds=[0,0]")
    before = first.stat().st_mtime_ns
    again = draw("prompts=['a  [V] cat ', ' a [V] cat']")  # blanks make no other prompt
    assert again == [first] and first.stat().st_mtime_ns == before


def test_a_file_of_somebody_else_stays(draw) -> None:
    (first,) = draw(PROMPT)
    own = pixels(first)
    save_png(Image.new("RGB", (4, 4), "red"), first, {"prompt": "mine"})
    (second,) = draw(PROMPT)
    assert second.name == first.name.replace(".png", "-2.png") and pixels(second) == own
    assert read_png_metadata(first) == {"prompt": "mine"}


def test_a_picture_is_drawn_again_from_its_file_alone(draw, tmp_path: Path) -> None:
    (first,) = draw(PROMPT, "decoder=jacobi", "decoder.top_k=5", "decoder.window=4", "model.dtype=bfloat16")
    drawn, facts = pixels(first), read_png_metadata(first)
    moved = first.rename(tmp_path / "moved.png")
    (again,) = draw(f"like={moved}")
    assert again == first and pixels(again) == drawn and read_png_metadata(again) == facts


def test_a_picture_that_names_the_kind_of_attention_is_drawn_again(draw, tmp_path: Path) -> None:
    """There were two, with equal results up to rounding."""
    (first,) = draw(PROMPT)
    with Image.open(first) as image:
        older = save_png(image, tmp_path / "older.png", read_png_metadata(first) | {"attention": "eager"})
    assert draw(f"like={older}") == [first]


def test_a_picture_is_drawn_again_in_its_own_layout(draw, other_layout: Path, tmp_path: Path) -> None:
    (first,) = draw(PROMPT)
    with pytest.raises(ValueError, match=r"sampled with other values of model\.layout"):
        draw(f"like={first}", f"model.path={other_layout}")
    facts = read_png_metadata(first)
    del facts["layout"]  # older pictures have none
    with Image.open(first) as image:
        older = save_png(image, tmp_path / "older.png", facts)
    assert draw(f"like={older}") == [first]


def test_sampling_parameters_beside_like_are_those_of_the_picture_or_refused(draw) -> None:
    (first,) = draw(PROMPT, "decoder.top_k=5", "decoder.cfg_scale=4")
    assert draw(f"like={first}", "decoder.top_k=5") == [first]
    for setting, axis in (("cfg_scale=3.0", "guidance=[3.0]"), ("top_k=6", "top_k=[6]")):
        message = f"decoder.{setting} has no effect with like=: vary it with grid.x.{axis}"
        with pytest.raises(ValueError, match=re.escape(message)):
            draw(f"like={first}", f"decoder.{setting}")


def test_a_grid_and_a_negative_prompt_are_drawn_again_from_each_file(draw, tmp_path: Path) -> None:
    words = ("negative_prompt=a  dog", "grid.x.guidance=[1,3]", "grid.y.seed=[4,5]")
    cells = draw(PROMPT, *words)
    facts = [read_png_metadata(path) for path in cells]
    assert [fact["seed"] for fact in facts] == ["4", "4", "5", "5"]
    assert {fact["negative_prompt"] for fact in facts} == {"a dog"}
    without = draw(PROMPT, "seeds=[4,5]", "decoder.cfg_scale=3")
    assert "negative_prompt" not in read_png_metadata(without[0])
    (alone,) = draw(PROMPT, "seeds=4", "decoder.cfg_scale=1")
    assert pixels(alone) == pixels(cells[0])  # guidance is off there
    assert [pixels(path) for path in without] != [pixels(cells[1]), pixels(cells[3])]
    before, moved = pixels(cells[3]), cells[3].rename(tmp_path / "moved.png")
    (again,) = draw(f"like={moved}")
    assert again == cells[3] and pixels(again) == before and read_png_metadata(again) == facts[3]
    assert draw(f"like={cells[0]}") == [cells[0]]  # whose negative prompt had no effect
    assert len(draw(f"like={cells[0]}", "grid.x.seed=[4,5]")) == 2
    other = draw(f"like={cells[3]}", "grid.x.prompt=['a [V] dog','a [V] cat']")
    assert [read_png_metadata(path)["prompt"] for path in other] == ["a [V] dog", "a [V] cat"]
    assert other[1] == cells[3]


@pytest.mark.parametrize(
    "given",
    [
        "seeds=3",
        "num_images=4",
        "size=32x32",
        "negative_prompt=dog",
        "names=[a]",
        "strength=1.2",
        "wildcards=x",
    ],
)
def test_settings_of_the_picture_are_not_given_beside_it(draw, tmp_path: Path, given: str) -> None:
    name = given.partition("=")[0]
    with pytest.raises(ValueError, match=f"like= uses those of the picture: leave out {name}="):
        draw(f"like={tmp_path / 'any.png'}", given)


def test_an_unusable_folder_is_noticed_before_sampling(
    draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personalar.generation.sample_files.draw_group", None)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(FileExistsError):
        draw(PROMPT)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose_config("concept=x", "out='~/pictures'", name="sample").out == str(tmp_path / "pictures")
    assert compose_config("out='~/table'", name="evaluate").out == str(tmp_path / "table")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decoder": '{"_target_": "os.system", "command": "true"}'},
            "not part of personalar .*os.system.*without like=",
        ),
        ({"decoder": '{"_target_": "x"'}, "damaged decoder"),
        ({"decoder": "[1]"}, "damaged decoder"),
        ({"decoder": '{"_target_": ["x"]}'}, "not part of personalar"),
        ({"decoder": PLAIN % '"cfg_scale": 1e9'}, r"decoder\.cfg_scale=1e\+09|cfg_scale=1000000000.0 is out"),
        ({"decoder": PLAIN % '"top_p": NaN'}, r"decoder\.top_p=nan is out of range"),
        ({"decoder": PLAIN % '"top_k": "5"'}, "damaged decoder"),
        ({"decoder": PLAIN % '"top_k": 3.5'}, "damaged decoder"),
        ({"decoder": PLAIN % '"top_k": true'}, "damaged decoder"),
        ({"decoder": PLAIN % f'"cfg_scale": 1{"0" * 400}'}, "damaged decoder"),
        ({"decoder": PLAIN % '"cfg_scale": "${oc.env:HOME}"'}, "damaged decoder"),
        ({"decoder": PLAIN % '"arguments": {"_target_": "os.system", "command": "true"}'}, "damaged decoder"),
        ({"decoder": PLAIN % '"speed": 3'}, "damaged decoder"),
        ({"decoder": PLAIN % '"top_k": 3'}, "damaged decoder"),  # the others are missing
        ({"seed": "9" * 40}, "does not contain the settings to reproduce it"),
        ({"seed": "9" * 19}, "seeds=9999999999999999999 is out of range"),
        ({"dtype": "int8"}, r"invalid value model\.dtype='int8'"),
        ({"seed": "x"}, "does not contain the settings to reproduce it"),
        ({"concept": "0" * 12}, "sampled from another concept"),
        ({"size": None}, r"\(missing: size\)"),
    ],
)
def test_strange_files_are_one_sentence(draw, tmp_path: Path, change: dict, message: str) -> None:
    (first,) = draw(PROMPT)
    facts = {name: value for name, value in (read_png_metadata(first) | change).items() if value is not None}
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "strange.png", facts)
    with pytest.raises(ValueError, match=message):
        draw(f"like={path}")
    with pytest.raises(ValueError, match="uses those of the picture: leave out prompts="):
        draw(f"like={path}", PROMPT)


def test_prompts_of_a_file(draw, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# mine\r\na [V] cat\r\n\r\n  a [V] dog\r\na [V] cat\r\n".encode())
    found = draw(f"prompts_file={file}")
    assert [read_png_metadata(path)["prompt"] for path in found] == ["a [V] cat", "a [V] dog"]
    with pytest.raises(ValueError, match=f"which is a file: write prompts_file={file}"):
        draw(f"prompts=[{file}]")
    with pytest.raises(FileNotFoundError, match="no such file"):
        draw(f"prompts_file={file}x")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        draw(f"prompts_file={file}")


def test_a_prompt_has_one_form() -> None:
    assert normalized("  a caf\u0065\u0301\r\n [V]\u00a0cat ") == "a caf\u00e9 [V] cat"
