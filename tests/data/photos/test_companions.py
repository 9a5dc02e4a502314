"""Captions beside photos: the prompts that they become."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.core.types import Subject, image_fingerprint
from personalar.data.photos.companions import caption_template, read_caption
from personalar.data.photos.photo_file import Unusable
from personalar.data.photos.photo_folder import inspect_folder
from personalar.data.prompts import training_prompt
from personalar.data.subject import load_subject


@pytest.mark.parametrize(
    ("caption", "noun", "prompt", "where"),
    [
        ("a [V] dog on a sofa", "dog", "a [V] dog on a sofa", "[V] as written"),
        ("[V] asleep", "dog", "[V] asleep", "[V] as written"),
        ("a Dog and a dog, no hotdog", "dog", "a [V] dog and a dog, no hotdog", "[V] before the class"),
        ("hotdogs, a dog's bed", "dog", "hotdogs, a [V] dog's bed", "[V] before the class"),
        ("a duck toy in water", "duck toy", "a [V] duck toy in water", "[V] before the class"),
        ("two dogs on a sofa.", "dog", "two dogs on a sofa, [V] dog", "[V] and the class appended"),
        ("a style icon.", "style", "a style icon in the style of [V]", "the style appended"),
        ("[V], a cat", "style", "[V], a cat", "[V] as written"),
    ],
)
def test_the_subject_in_a_caption(caption: str, noun: str, prompt: str, where: str) -> None:
    template, found = caption_template(caption, noun)
    assert (training_prompt(template, noun), found) == (prompt, where)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b" \r\n ", "it is empty"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"a" * 1001, "it must have 1 to 1000 printable characters"),
        (b"a\x00b", "it must have 1 to 1000 printable characters"),
    ],
)
def test_a_bad_caption_is_one_sentence(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(Unusable, match=reason):
        read_caption(file)
    file.write_bytes("\ufeffa  dog\r\non a sofa\r\n".encode())
    assert read_caption(file) == "a dog on a sofa"


def test_a_named_pipe_and_a_huge_file_are_not_read_as_captions(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(Unusable, match="not a regular file"):
        read_caption(tmp_path / "a.txt")
    with (tmp_path / "b.txt").open("wb") as stream:
        stream.truncate(100 << 20)
    tracemalloc.start()
    with pytest.raises(Unusable, match="it must have 1 to 1000 printable characters"):
        read_caption(tmp_path / "b.txt")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_caption_that_comes_before_its_mask_is_skipped(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "a.webp", lossless=True)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    mask.save(tmp_path / "a_mask.webp", lossless=True)
    (tmp_path / "a_mask.txt").write_text("a dog")
    photo, caption, used = inspect_folder(tmp_path)
    assert photo.mask is not None and photo.caption is None and used.verdict == "mask"
    assert caption.notes == ("caption of a_mask.webp, not used: the photo is skipped",)


@pytest.mark.parametrize("second", ["copy", "damaged"])
def test_of_two_files_of_one_name_the_used_one_has_the_caption(tmp_path: Path, second: str) -> None:
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    picture.save(tmp_path / "a.bmp")
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    if second == "damaged":
        (tmp_path / "a.bmp").write_bytes(b"damaged")
    found = {photo.verdict: photo for photo in inspect_folder(tmp_path)}
    assert found["used"].caption == "a dog" and found["caption"].notes == (
        f"caption of {found['used'].path.name}",
    )


def test_a_subject_has_captions_and_masks_and_another_fingerprint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / f"{name}.png")
    words = ("+subject=folder", f"subject.path={tmp_path}", "subject.noun=dog")

    def load() -> Subject:
        return load_subject(compose_config(*words).subject)

    plain = load()
    assert plain.captions == plain.masks == () and plain.fingerprint == image_fingerprint(plain.images)
    (tmp_path / "b.txt").write_text("a dog")
    captioned = load()
    assert captioned.captions == (None, "a {}") and captioned.masks == ()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    mask.save(tmp_path / "a_mask.png")
    masked = load()
    assert (
        masked.masks[0] is not None and masked.masks[1] is None and masked.boxes == ((0, 0, 0.5, 0.5), None)
    )
    assert len({subject.fingerprint for subject in (plain, captioned, masked)}) == 3
