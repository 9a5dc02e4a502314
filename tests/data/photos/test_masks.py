"""Masks beside photos and transparency: the subject's box, and one sentence about a bad mask."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.core.types import Box
from personalar.data.photos.masks import mask_box
from personalar.data.photos.photo_folder import inspect_folder
from personalar.data.subject import load_subject, read_folder

SIZE = (80, 40)
ALL_WHITE = "it is all white (transparent counts as white), so it limits nothing: paint the background black"


def spot(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    image = Image.new(mode, size, "black")
    image.paste("white", box)
    return image


def photo(seed: int) -> Image.Image:
    return Image.effect_noise(SIZE, 10 + 20 * seed).convert("RGB")


def boxes(folder: Path) -> dict[str, Box | None]:
    photos = read_folder(folder)
    return {photo.path.name: mask_box(photo.mask) for photo in photos}


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


def test_what_has_no_mask(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    for seed, (name, alpha) in enumerate((("opaque", 255), ("clear", 0)), start=2):
        seen = photo(seed).convert("RGBA")
        seen.putalpha(Image.new("L", SIZE, alpha))
        seen.save(tmp_path / f"{name}.png")
    assert boxes(tmp_path) == dict.fromkeys(("a.png", "clear.png", "opaque.png"))


def test_a_mask_has_the_size_of_its_photo_and_two_values(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    Image.linear_gradient("L").rotate(90).resize((160, 80)).save(tmp_path / "a_mask.png")
    (found,) = read_folder(tmp_path)
    assert found.mask is not None and found.mask.size == SIZE
    assert sorted(value for _, value in found.mask.getcolors()) == [0, 255]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (50, 50), 255), "its shape 50x50 is not that of the photo, 80x40"),
        (Image.new("L", SIZE, 127), "it is all black: paint the subject white"),
        (Image.new("L", SIZE, 255), ALL_WHITE),
        (Image.new("RGBA", SIZE, (255, 255, 255, 0)), ALL_WHITE),
        (b"damaged", "not a picture (allowed: JPEG, PNG, WEBP, GIF, TIFF, BMP, HEIF, AVIF)"),
    ],
)
def test_a_bad_mask_is_one_sentence(tmp_path: Path, mask: Image.Image | bytes, reason: str) -> None:
    photo(1).save(tmp_path / "a.png")
    file = tmp_path / "a_mask.png"
    file.write_bytes(mask) if isinstance(mask, bytes) else mask.save(file)
    used, skipped = inspect_folder(tmp_path)
    assert used.verdict == "used" and used.mask is None
    assert skipped.verdict == "skipped" and skipped.notes == (f"mask of a.png, not used: {reason}",)


@pytest.mark.parametrize("noun", ["cat", "car"])
def test_a_rendered_thing_fills_its_box(noun: str) -> None:
    rendered = load_subject(compose_config(f"+subject={noun}").subject)
    assert rendered.box_source == "truth" and len(rendered.boxes) == len(rendered.images)
    for left, top, right, bottom in rendered.boxes:
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert max(right - left, bottom - top) > 0.4  # zoom 0.9 to 1.08 of about 80 %
