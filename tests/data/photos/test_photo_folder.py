"""Every entry of a folder of photos gets a verdict, whatever it is."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from personalar.data.photos.photo_folder import difference_hash, inspect_folder, open_photo, print_table
from personalar.data.subject import read_folder


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth random picture: what survives JPEG."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def verdict(tmp_path: Path, name: str, data: bytes):
    path = tmp_path / name
    path.write_bytes(data)
    return open_photo(path)


def distance(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(other.convert("RGB"), float)).mean())


@pytest.mark.parametrize(
    ("name", "kind", "mode", "tolerance"),
    [
        ("a.png", "PNG", "RGB", 0),
        ("a.png", "PNG", "P", 12),
        ("a.png", "PNG", "L", 0),
        ("a.png", "PNG", "1", 0),
        ("a.bmp", "BMP", "RGB", 0),
        ("a.tif", "TIFF", "RGB", 0),
        ("a.tif", "TIFF", "CMYK", 3),
        ("a.jpg", "JPEG", "RGB", 8),
        ("a.jpg", "JPEG", "CMYK", 8),
        ("a.jpg", "JPEG", "L", 8),
        ("a.webp", "WEBP", "RGB", 8),
        ("a.gif", "GIF", "P", 12),
    ],
)
def test_formats_and_modes(tmp_path, name, kind, mode, tolerance):
    source = picture().convert(mode)
    photo = verdict(tmp_path, name, encoded(source, kind))
    assert photo.verdict == "used" and photo.image.mode == "RGB" and photo.image.size == (64, 48)
    assert distance(photo.image, source) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_come_out_upright(tmp_path, orientation):
    upright = picture()
    stored = {  # how the camera's sensor saw it: what undoes each orientation
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = verdict(tmp_path, "a.png", encoded(stored, "PNG", exif=exif))
    assert photo.image.tobytes() == upright.tobytes()
    assert ("rotated upright" in photo.notes) == (orientation > 1)


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    photo = verdict(tmp_path, "a.png", encoded(Image.fromarray(ramp), "PNG"))
    assert photo.notes == ("converted to 8 bits",)
    assert distance(photo.image, Image.fromarray((ramp / 257).astype(np.uint8))) <= 1


def test_transparency_lies_on_white(tmp_path):
    for mode, options in (("RGBA", {}), ("LA", {}), ("P", {"transparency": 0})):
        photo = verdict(tmp_path, "a.png", encoded(Image.new(mode, (40, 40), 0), "PNG", **options))
        assert photo.image.getpixel((5, 5)) == (255, 255, 255)
        assert photo.notes == ("transparency replaced by white",)


def test_colour_profiles(tmp_path):
    image = picture()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert verdict(tmp_path, "a.png", encoded(image, "PNG", icc_profile=srgb)).notes == ()
    assert verdict(tmp_path, "b.png", encoded(image, "PNG", icc_profile=b"x" * 200)).notes == (
        "its colour profile is damaged and was ignored",
    )
    assert verdict(tmp_path, "c.png", encoded(image, "PNG", icc_profile=lab)).verdict == "used"


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue and whose blue is its red."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, other in ((b"rXYZ", b"?XYZ"), (b"bXYZ", b"rXYZ"), (b"?XYZ", b"bXYZ")):
        data = data.replace(name, other, 1)  # in the table of tags
    return data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def grey_profile() -> bytes:
    """A profile of one channel whose numbers are the light itself, gamma 1."""
    white = struct.pack(">4s4xiii", b"XYZ ", 63190, 65536, 54061)
    curve = struct.pack(">4s4xI", b"curv", 0)
    name = struct.pack(">4s4xI5s79x", b"desc", 5, b"grey\0")
    table = struct.pack(">I", 3)
    for tag, at, data in ((b"wtpt", 168, white), (b"kTRC", 188, curve), (b"desc", 200, name)):
        table += struct.pack(">4sII", tag, at, len(data))
    body = table + white + curve + name
    kind = struct.pack(">I4xI4s4s4s12x4s", 128 + len(body), 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return kind + struct.pack(">28xiii48x", 63190, 65536, 54061) + body


@pytest.mark.parametrize(
    ("mode", "options"), [("RGB", {}), ("RGBA", {}), ("P", {}), ("P", {"transparency": 255})]
)
def test_a_colour_profile_counts_with_transparency_too(tmp_path, mode, options):
    image = Image.new("RGB", (40, 40), (204, 51, 51)).convert(mode)
    photo = verdict(tmp_path, "a.png", encoded(image, "PNG", icc_profile=swapped_profile(), **options))
    assert np.abs(np.subtract(photo.image.getpixel((5, 5)), (51, 51, 204))).max() <= 2
    put = ("transparency replaced by white",) if mode == "RGBA" or options else ()
    assert photo.notes[:-1] == (*put, "converted from its colour profile")  # the last: all of one colour


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_counts_with_transparency_too(tmp_path, mode):
    image = (
        Image.new("L", (40, 40), 128).convert(mode) if mode != "I;16" else Image.new(mode, (40, 40), 32896)
    )
    photo = verdict(tmp_path, "a.png", encoded(image, "PNG", icc_profile=grey_profile()))
    assert np.abs(np.subtract(photo.image.getpixel((5, 5)), 188)).max() <= 2  # half the light
    assert photo.notes[-2] == "converted from its colour profile"  # the last: all of one colour


def test_frames_and_wrong_names(tmp_path):
    frames = [picture(1), picture(2), picture(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert verdict(tmp_path, "a.gif", data).notes == ("has several frames, only the first is used",)
    assert verdict(tmp_path, "a.jpg", encoded(picture(), "PNG")).notes == (
        "is a PNG file despite its suffix",
    )


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few zeros: a decompression bomb needs no more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"not a picture at all", "not a picture (allowed: JPEG, PNG, WEBP, GIF, TIFF, BMP"),
        ("tiny.png", encoded(picture(size=(1, 1)), "PNG"), "too small: 1x1 pixels, each side needs 32"),
        ("bomb.png", png_header(20_000, 20_000), "too many pixels"),
        (
            "large.png",
            png_header(10_001, 10_000),
            "too large: 10001x10000 pixels (allowed: 100 megapixels)",
        ),
        ("cut.jpg", encoded(picture(), "JPEG")[:400], "damaged or truncated"),
        ("cut.png", encoded(picture(), "PNG")[:300], "damaged or truncated"),
        (".hidden.png", encoded(picture(), "PNG"), "hidden or system file"),
        ("Thumbs.db", b"x", "hidden or system file"),
        ("drawing.svg", b"<svg/>", "not a picture"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, name, data, reason):
    photo = verdict(tmp_path, name, data)
    assert photo.verdict == "skipped" and photo.image is None
    assert photo.notes[0].startswith(reason)


def test_heic_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    photo = verdict(tmp_path, "phone.heic", b"\0\0\0\x18ftypheic" + b"\0" * 99)
    assert photo.notes == ('HEIC needs one more package: pip install "personalar[heic]"',)


def test_heic_with_its_package(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="the extra [heic] is not installed")
    heif.register_heif_opener()
    photo = verdict(tmp_path, "phone.heic", encoded(picture(), "HEIF", quality=95))
    assert photo.verdict == "used" and distance(photo.image, picture()) < 8


def test_entries_that_are_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    picture().save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    found = {photo.path.name: photo for photo in inspect_folder(tmp_path)}
    assert found["link.png"].verdict == "used"
    assert found["real.png"].notes == ("the same picture as link.png",)
    assert found["folder"].notes == ("a folder: only pictures directly in the given one are read",)
    assert found["dangling.jpg"].notes == ("broken link",)
    assert found["pipe.jpg"].notes == ("not a regular file",)
    assert found["loop.jpg"].notes[0].startswith("cannot be read")


def test_no_permission(tmp_path, monkeypatch):
    def refuse(self, mode="r"):
        raise PermissionError(13, "Permission denied")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Path, "open", refuse)
    photo = open_photo(tmp_path / "a.png")
    assert photo.notes == ("no permission to read it",)


def test_copies_are_skipped_and_lookalikes_noted(tmp_path):
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.bmp")
    picture().save(tmp_path / "c.jpg", quality=80)
    picture(7).save(tmp_path / "d.png")
    found = {photo.path.name: photo for photo in inspect_folder(tmp_path)}
    assert found["b.bmp"].verdict == "skipped" and found["b.bmp"].notes == ("the same picture as a.png",)
    assert found["c.jpg"].verdict == "used" and found["c.jpg"].notes == ("looks like a.png",)
    assert found["d.png"].notes == ()
    assert (difference_hash(picture()) ^ difference_hash(picture(7))).bit_count() > 3


def test_names_in_any_script(tmp_path, capsys):
    names = ["mein Hund.png", "犬.png", "كلب.png", "a\nb.png", "🐶.png"]
    for seed, name in enumerate(names):
        picture(seed).save(tmp_path / name)
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(picture(9), "PNG"))
    photos = inspect_folder(tmp_path)
    print_table(photos)
    assert [photo.verdict for photo in photos] == ["used"] * 6
    assert "犬.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist: give a folder with pictures of one thing"),
        (lambda folder: folder.write_text(""), r"contains no usable picture \(photos: empty file\)"),
        (lambda folder: folder.mkdir(), r"contains no usable picture \(it is empty\): put 3 to 6 photos"),
        (
            lambda folder: (folder.mkdir(), (folder / "x.txt").write_text("word")),
            r"contains no usable picture \(x.txt: not a picture",
        ),
    ],
)
def test_a_folder_that_cannot_be_used(tmp_path, make, message):
    make(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match=message):
        read_folder(tmp_path / "photos")


def test_one_picture_can_stand_for_a_folder(tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        picture(seed).save(tmp_path / name)
    assert [photo.path.name for photo in read_folder(tmp_path / "b.png")] == ["b.png"]


def test_one_process_of_a_run_shows_the_table(tmp_path, monkeypatch, capsys):
    picture().save(tmp_path / "a.png")
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert len(read_folder(tmp_path)) == 1
        out = capsys.readouterr().out
        assert out.count("a.png") == told and out.count("note: only one photo") == told


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flip, overwrite or stretch a file somewhere."""
    spoilt, at = bytearray(data), int(rng.integers(len(data)))
    kind = rng.integers(4)
    if kind == 0:
        return bytes(spoilt[:at])
    if kind == 1:
        spoilt[at] ^= 1 << int(rng.integers(8))
    if kind == 2:
        spoilt[at : at + 40] = rng.bytes(40)
    if kind == 3:
        spoilt[at:at] = rng.bytes(200)
    return bytes(spoilt)


def test_hundreds_of_bad_files_never_stop_a_run(tmp_path):
    """Each of 400 damaged files is used or skipped with a reason; none raises, none is missing."""
    rng = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
    good = {kind: [encoded(picture(seed), kind) for seed in range(3)] for kind in kinds}
    for number in range(400):
        kind = kinds[number % len(kinds)]
        data = damage(good[kind][number % 3], rng)
        (tmp_path / f"{number:03d}.{kind.lower()}").write_bytes(data)
    photos = inspect_folder(tmp_path)
    assert [photo.path.name[:3] for photo in photos] == [f"{number:03d}" for number in range(400)]
    skipped = [photo for photo in photos if photo.image is None]
    assert len(skipped) > 100 and all(photo.notes and photo.notes[0] for photo in skipped)
    assert all(photo.image.mode == "RGB" for photo in photos if photo.image is not None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0"]),
)
def test_any_bytes_get_a_verdict(tmp_path, data, head):
    photo = verdict(tmp_path, "x.jpg", head + data)
    assert photo.verdict in ("used", "skipped") and (photo.image is not None or photo.notes)


def test_masks_and_captions_beside_a_photo_are_named(tmp_path: Path, capsys) -> None:
    photos = {"a.jpg": 1, "b.PNG": 2, "c_mask.png": 3, "mask.png": 4, "unmasked a.png": 5}
    masks = {"a_mask.png": "a.jpg", "a-masklabel.png": "a.jpg", "mask_a.webp": "a.jpg", "B.mask.png": "b.PNG"}
    masks["a.jpg_mask.png"] = "a.jpg"
    captions = {"a.txt": "a.jpg", "b.caption": "b.PNG", "a.jpg.txt": "a.jpg"}
    for name, seed in photos.items():
        (tmp_path / name).write_bytes(encoded(picture(seed), "PNG"))
    for place, name in enumerate(masks):
        mask = picture(10 + place).convert("L").point(lambda value: 255 * (value > 128))
        (tmp_path / name).write_bytes(encoded(mask, "PNG"))
    for name in (*captions, "notes.txt"):
        (tmp_path / name).write_text("a photo of sks dog")
    found = {photo.path.name: photo for photo in inspect_folder(tmp_path)}
    kinds = {"used": set(photos), "mask": {"a-masklabel.png", "B.mask.png"}}
    kinds["caption"] = {"a.jpg.txt", "b.caption"}
    for verdict, names in kinds.items():
        assert {name for name, photo in found.items() if photo.verdict == verdict} == names
    for kind, files in (("mask", masks), ("caption", captions)):
        for name, photo in files.items():
            other = ", not used: the photo has another one" if found[name].verdict == "skipped" else ""
            assert found[name].notes == (f"{kind} of {photo}{other}",)
    assert "not a picture" in found["notes.txt"].notes[0]
    assert found["c_mask.png"].notes == ("named like a mask, but without its photo: used as a photo",)
    assert len(read_folder(tmp_path, noun="dog")) == len(photos)
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "of it: a-masklabel.png" in shown
        and 'prompt "a photo of sks [V] dog" ([V] before the class)' in shown
    )
