"""The subject's box from masks and transparency, whatever else is in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.core.types import Box
from personalar.data.subject import load_subject, read_folder
from personalar.data.subject_box import alpha_box, bright_box, find_boxes

SIZE = (80, 40)


def spot(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    image = Image.new(mode, size, "black")
    image.paste("white", box)
    return image


def photo(seed: int) -> Image.Image:
    return Image.effect_noise(SIZE, 10 + 20 * seed).convert("RGB")


def boxes(folder: Path) -> dict[str, Box | None]:
    photos = read_folder(folder)
    return dict(zip([photo.path.name for photo in photos], find_boxes(photos), strict=True))


def test_masks_and_transparency_give_boxes(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c", "e", "f")):
        photo(number).save(tmp_path / f"{name}.png")
    spot(SIZE, (20, 10, 40, 30)).save(tmp_path / "a_mask.png")
    spot((160, 80), (0, 0, 160, 20), "RGB").save(tmp_path / "b_mask.png")  # another size, the same shape
    spot((50, 50), (0, 0, 9, 9)).save(tmp_path / "c_mask.png")  # another shape
    clear = photo(9).convert("RGBA")
    clear.putalpha(spot(SIZE, (0, 20, 60, 40)))
    clear.save(tmp_path / "d.png")
    spot(SIZE, (0, 0, 0, 0)).save(tmp_path / "e_mask.png")  # empty
    (tmp_path / "f_mask.png").write_bytes(b"damaged")
    assert boxes(tmp_path) == {
        "a.png": (0.25, 0.25, 0.5, 0.75), "b.png": (0, 0, 1, 0.25), "c.png": None,
        "d.png": (0, 0.5, 0.75, 1), "e.png": None, "f.png": None,
    }  # fmt: skip
    words = ("+subject=folder", f"subject.path={tmp_path}", "subject.noun=cat")
    found = load_subject(compose_config(*words).subject)
    assert found.boxes[0] == (0.25, 0.25, 0.5, 0.75) and found.box_source == "mask"


def test_a_photo_that_is_turned_upright_has_its_box_turned(tmp_path: Path) -> None:
    clear = photo(1).convert("RGBA")
    clear.putalpha(spot(SIZE, (0, 0, 20, 40)))  # the left quarter
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    clear.save(tmp_path / "a.png", exif=exif)
    assert boxes(tmp_path) == {"a.png": (0, 0, 1, 0.25)}


def test_what_has_no_box(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    assert alpha_box(tmp_path / "a.png") is None and alpha_box(tmp_path / "nowhere.png") is None
    assert bright_box(Image.new("L", (4, 4), 127)) is None


@pytest.mark.parametrize("noun", ["cat", "car"])
def test_a_rendered_thing_fills_its_box(noun: str) -> None:
    rendered = load_subject(compose_config(f"+subject={noun}").subject)
    assert rendered.box_source == "truth" and len(rendered.boxes) == len(rendered.images)
    for left, top, right, bottom in rendered.boxes:
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert max(right - left, bottom - top) > 0.4  # zoom 0.9 to 1.08 of about 80 %
