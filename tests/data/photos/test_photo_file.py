"""Photos that are huge, damaged, or odd and intact."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_photo_folder import distance, encoded, verdict

from personalar.data.photos import photo_folder
from personalar.data.photos.photo_file import MOST_KEPT, refusals
from personalar.data.photos.photo_folder import inspect_folder, open_photo


def grainy(size: tuple[int, int] = (320, 240), seed: int = 0) -> Image.Image:
    """A picture with the grain of a photograph: no two rows are alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noisy = np.asarray(small, dtype=np.int16) + rng.integers(-6, 7, (size[1], size[0], 1))
    return Image.fromarray(noisy.clip(1, 254).astype(np.uint8))


def test_a_video_and_a_huge_file_are_not_read(tmp_path: Path) -> None:
    """Eight gigabytes, of which the disk holds a few bytes."""
    for name, size, head in (
        ("a.mp4", 8 << 30, b"ftypisom"),
        ("b.mp4", 300 << 20, b"ftypisom"),
        ("c.jpg", 1 << 30, b""),
    ):
        with (tmp_path / name).open("wb") as stream:
            stream.write(b"\0\0\0\x18" + head)
            stream.truncate(size)
    started = time.process_time()
    found = [photo.notes[0] for photo in inspect_folder(tmp_path)]
    assert time.process_time() - started < 5
    assert found[0].startswith("too large for a photo: 8590 MB (allowed: 400 MB)") and found[2].startswith(
        "too large for a photo: 1074 MB"
    )
    assert found[1].startswith("not a picture (allowed: ")


def test_large_photos_take_bounded_memory(tmp_path: Path) -> None:
    """Six of 48 megapixels: whole they are 864 MB."""
    tile = grainy((2000, 1500))
    large = Image.new("RGB", (8000, 6000))
    for left in range(0, 8000, 2000):
        for top in range(0, 6000, 1500):
            large.paste(tile, (left, top))
    data = encoded(large, "JPEG")
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(data + bytes([number]))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from personalar.data.photos.photo_folder import inspect_folder\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = inspect_folder(Path({str(tmp_path)!r}))\n"
        "print(found[0].image.size, found[0].notes, found[1].verdict)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, megabytes = done.stdout.strip().splitlines()
    assert told == "(4000, 3000) ('scaled down from 8000x6000',) skipped"
    assert int(megabytes) < 500


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK"])
def test_large_pictures_are_scaled_down_in_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    grainy().convert(mode).save(path)
    photo = open_photo(path, most=20_000)
    assert photo.image.size == (160, 120) and photo.image.mode == "RGB"
    assert photo.notes[0] == "scaled down from 320x240"
    assert distance(photo.image, grainy().resize((160, 120))) < (60 if mode == "1" else 45)


def test_many_photos_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_folder, "ALL_KEPT", 4 * 20_000)
    monkeypatch.setattr(photo_folder, "LEAST_KEPT", 1000)
    for number in range(4):
        grainy(seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = inspect_folder(tmp_path)
    assert [photo.image.size for photo in found[:4]] == [(160, 120)] * 4  # 19,200 pixels each
    assert MOST_KEPT > 4000 * 3000  # what phones take stays as it is


def pages(count: int) -> bytes:
    """A TIFF of `count` pages that share one strip of 64x48 grey pixels."""
    strip = bytes(range(64)) * 48
    data = bytearray(b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip)
    entries = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 48, 279: len(strip)}
    for number in range(count):
        data += struct.pack("<H", len(entries))
        for tag, value in entries.items():
            data += struct.pack("<HHII", tag, 4, 1, value)
        data += struct.pack("<I", len(data) + 4 if number < count - 1 else 0)
    return bytes(data)


def test_many_pages_are_not_counted(tmp_path: Path) -> None:
    started = time.process_time()
    photo = verdict(tmp_path, "a.tif", pages(20_000))
    assert time.process_time() - started < 3
    assert photo.verdict == "used" and photo.notes == ("has several frames, only the first is used",)


def test_white_studios_are_not_called_damaged(tmp_path: Path) -> None:
    picture = Image.new("RGB", (320, 240), "white")
    picture.paste(grainy((300, 140)), (10, 50))
    assert verdict(tmp_path, "a.png", encoded(picture, "PNG")).notes == ()
    assert (
        "check the picture"
        in verdict(tmp_path, "b.png", encoded(Image.new("RGB", (64, 64), "grey"), "PNG")).notes[0]
    )


UNSUPPORTED_TIFF = "a damaged or unsupported TIFF: save it again with 8 or 16 bits per channel"
RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


def test_a_dark_picture_of_sixteen_bits_is_noted(tmp_path: Path) -> None:
    photo = verdict(tmp_path, "a.png", encoded(Image.fromarray((RAMP * 4095).astype(np.uint16)), "PNG"))
    assert photo.notes == ("converted to 8 bits", "nearly black: the brightest value is 15 of 255")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_fixed_range_are_refused(tmp_path: Path, kind: type) -> None:
    photo = verdict(tmp_path, "a.tif", encoded(Image.fromarray((RAMP * 255).astype(kind)), "TIFF"))
    assert photo.notes == (UNSUPPORTED_TIFF,)


def test_a_tiff_of_three_colours_of_32_bits_is_refused(tmp_path: Path) -> None:
    data = encoded(grainy((64, 48)), "TIFF")
    deep = data.replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 32, 32, 32))
    assert deep != data and verdict(tmp_path, "a.tif", deep).notes == (UNSUPPORTED_TIFF,)
    assert verdict(tmp_path, "b.tif", b"II*\0" + bytes(60)).notes == (UNSUPPORTED_TIFF,)


def test_threads_leave_the_filters_of_warnings_as_they_are(tmp_path: Path) -> None:
    before = list(warnings.filters)
    first, second = refusals(tmp_path), refusals(tmp_path)
    for step in (first.__enter__, second.__enter__):
        step()
    for block in (first, second):  # ends before the block within, as in threads
        block.__exit__(None, None, None)
    assert warnings.filters == before


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_orientation_of_a_tiff_is_applied_once_and_noted(tmp_path: Path, orientation: int) -> None:
    upright = grainy((64, 48))
    undone = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(undone[orientation])
    photo = verdict(tmp_path, "a.tif", encoded(stored, "TIFF", tiffinfo={0x0112: orientation}))
    assert photo.image.tobytes() == upright.tobytes() and photo.notes == ("rotated upright",)


def test_odd_tags_beside_an_orientation(tmp_path: Path) -> None:
    """A camera's own tags of wrong types: they matter to nobody."""
    entries = sorted([
        (0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x010F, 2, 1, b"\xff\0\0\0"), (0x011A, 7, 4, b"abcd"),
        (0x9286, 12, 3, struct.pack("<I", 4)), (0x9000, 5, 1, struct.pack("<I", 9999)),
        (0x8827, 13, 1, b"\1\0\0\0"),
    ])  # fmt: skip
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    exif += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    upright = grainy((64, 48))
    photo = verdict(
        tmp_path, "a.png", encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    )
    assert photo.notes == ("rotated upright",) and photo.image.tobytes() == upright.tobytes()


def test_a_damaged_png_is_skipped(tmp_path: Path) -> None:
    whole = encoded(grainy((64, 48)), "PNG")
    text = struct.pack(">I", 6) + b"tEXta\0bcde" + b"\0\0\0\0"
    behind = whole.index(b"IEND") - 4
    photo = verdict(tmp_path, "a.png", whole[:behind] + text + whole[behind:])
    assert photo.image.tobytes() == grainy((64, 48)).tobytes()
    photo = verdict(tmp_path, "b.png", whole[:33] + text + whole[33:])
    assert photo.notes == ("a damaged or unsupported PNG: save it again with 8 or 16 bits per channel",)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    assert verdict(tmp_path, "c.png", bytes(broken)).verdict == "skipped"


def test_a_png_full_of_text_is_one_sentence(tmp_path: Path) -> None:
    """Seventy megabytes of text in 70 kB."""
    whole = encoded(grainy((64, 48)), "PNG")
    packed = b"zTXta\0\0" + zlib.compress(bytes(70 << 20))
    chunk = struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    photo = verdict(tmp_path, "a.png", whole[:33] + chunk + whole[33:])
    assert photo.verdict == "skipped" and photo.notes[0].startswith(
        "damaged or truncated (ValueError: Decompressed data too"
    )
