"""One file of a folder of photos: its header first, within bounds, then its pixels at the size to keep.

The content of a file counts, not its name. A picture that cannot be used is refused with the reason; the
others are turned upright (EXIF), put on white where transparent, converted to sRGB and 8 bits, and noted so.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from personalar.core.image_sizes import Size, written
from personalar.data.photo_damage import PNG_HEAD, file_notes, jpeg_facts, pixel_notes, without_bad_notes
from personalar.data.photo_depth import DEEP, on_white, plain_mode, read_deep_tiff, to_8_bits, to_srgb

SMALLEST_SIDE = 32
"""Pixels; below it there is nothing to learn from."""
MOST_PIXELS = 100_000_000
"""Largest picture that is opened."""
MOST_BYTES = 400_000_000
"""Largest file that is opened: a picture of the most pixels, uncompressed with transparency."""
MOST_WORK = 10 * MOST_PIXELS
"""Pixels times scans of a JPEG, about ten seconds: its decoder passes over the picture for each scan."""
MOST_KEPT = 16_000_000
"""Pixels of a picture that are kept: more than any base draws. Larger ones are decoded one at a time."""
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""Formats that are read (Pillow's names) and the usual suffixes of their files."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_TIFF_HEADS = (b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_large = threading.Lock()


class Unusable(Exception):
    """The reason why a file is skipped; stays inside this package."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a picture's header says."""

    kind: str
    """Pillow's name of the format; "deep" for a TIFF that only we read."""
    size: Size
    several: bool
    """It holds more frames than the first."""

    @property
    def pixels(self) -> int:
        """Its number of pixels."""
        return self.size[0] * self.size[1]


def check_entry(path: Path) -> None:
    """Refuse everything that is not an ordinary file of a photo's size."""
    if path.name.startswith((".", "~$")) or path.name.lower() in SYSTEM_FILES:
        raise Unusable("hidden or system file")
    try:
        found = path.stat()  # follows links
    except FileNotFoundError as error:
        raise Unusable("a link that leads nowhere") from error
    except OSError as error:
        raise Unusable(f"cannot be looked at ({error.strerror})") from error
    if stat.S_ISDIR(found.st_mode):
        raise Unusable("a folder: photos must lie directly in subject.path")
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise Unusable("not an ordinary file")
    if found.st_size == 0:
        raise Unusable("empty file")
    if found.st_size > MOST_BYTES:
        raise Unusable(
            f"{found.st_size / 1e6:.0f} MB are no photo (allowed: {MOST_BYTES // 10**6} MB): a video? Save "
            "the picture smaller"
        )


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Raise `Unusable` for whatever Pillow raises over a damaged file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on bombs and odd metadata: our own limits decide
            yield
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(
            f"too many pixels (allowed: {MOST_PIXELS // 10**6} megapixels): scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise Unusable(_what_else(path)) from error
    except PermissionError as error:
        raise Unusable("no permission to read it") from error
    except MemoryError as error:
        raise Unusable("not enough memory to open it: scale it down") from error
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
        raise Unusable(f"damaged or cut off ({type(error).__name__}: {str(error)[:80]})") from error


def _open(stream: IO[bytes]) -> Image.Image:
    Image.init()
    return Image.open(stream, formats=[name for name in SUFFIXES if name in Image.OPEN])


def read_header(path: Path) -> Header:
    """Return what the header of `path` says, within our bounds; no pixel is read. Raises `Unusable`."""
    check_entry(path)
    with refusals(path), path.open("rb") as stream:
        try:
            with _open(stream) as image:
                several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
                header = Header(kind=image.format or "", size=image.size, several=several)
        except UnidentifiedImageError:
            odd = _odd_header(path)
            if odd is None:
                raise
            header = odd
    if header.pixels > MOST_PIXELS:
        raise Unusable(
            f"{written(header.size)} pixels are too many (allowed: {MOST_PIXELS // 10**6} megapixels): "
            "scale it down"
        )
    if min(header.size) < SMALLEST_SIDE:
        raise Unusable(f"too small: {written(header.size)} pixels, at least {SMALLEST_SIDE} a side")
    return header


def _odd_header(path: Path) -> Header | None:
    """Return the header of a file that Pillow does not open, though it is whole."""
    if (deep := read_deep_tiff(path, MOST_PIXELS)) is not None:
        return Header(kind="deep", size=deep[0].size, several=False)
    with path.open("rb") as stream:
        if stream.read(8) != PNG_HEAD:
            return None
    with _open(io.BytesIO(without_bad_notes(path.read_bytes()))) as image:
        return Header(kind="PNG", size=image.size, several=False)


def read_pixels(path: Path, header: Header, most: int = MOST_KEPT) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture in RGB, of `most` pixels at most, and the changes to it. Raises `Unusable`."""
    with refusals(path), _one_large if header.pixels > MOST_KEPT else nullcontext():
        notes = []
        if header.kind != "deep" and path.suffix.lower() not in SUFFIXES[header.kind]:
            notes.append(f"is {header.kind}, in spite of its name")
        if header.several:
            notes.append("first of several frames")
        if header.kind == "deep":
            deep = read_deep_tiff(path, MOST_PIXELS)
            if deep is None:
                raise Unusable("damaged or cut off (it changed while it was read)")
            return deep[0], (*notes, deep[1], *pixel_notes(deep[0]))
        data = path.read_bytes()
        if header.kind in ("JPEG", "MPO"):
            _check_scans(data, header)
        whole = without_bad_notes(data) if header.kind == "PNG" else data
        if len(whole) < len(data):
            notes.append("a damaged note inside it was left out")
        rgb, changes = _decode(io.BytesIO(whole), header, most)
        return rgb, (*notes, *changes, *file_notes(data, header.kind), *pixel_notes(rgb))


def _check_scans(data: bytes, header: Header) -> None:
    scans = jpeg_facts(data).scans
    if scans * header.pixels > MOST_WORK:
        raise Unusable(
            f"a JPEG of {scans} scans takes too long (allowed at this size: {MOST_WORK // header.pixels}): "
            "save it again"
        )


def _decode(stream: IO[bytes], header: Header, most: int) -> tuple[Image.Image, list[str]]:
    """Return the picture upright, in sRGB and 8 bits, transparency on white, and the changes."""
    notes: list[str] = []
    with _open(stream) as image:
        times = next(n for n in range(1, MOST_PIXELS) if header.pixels <= most * n * n)
        if times > 1:
            image.draft(None, (image.width // times, image.height // times))  # only JPEG can
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        image.load()
        sixteen, picture = image.mode in DEEP[:4], image
        if times > 1:
            width, height = header.size
            size = (-(-width // times), -(-height // times))
            picture = plain_mode(image)
            picture = picture.resize(size, Image.Resampling.BICUBIC) if picture.size != size else picture
            notes.append(f"scaled down from {written(header.size)}")
        if orientation in _UPRIGHT:
            notes.append("turned upright")
            if image.format != "TIFF":  # which Pillow has turned
                picture = picture.transpose(_UPRIGHT[orientation])
        if picture.mode in DEEP:
            picture, scale = to_8_bits(picture, sixteen=sixteen)
            notes.append(scale)
        if picture.has_transparency_data:
            picture = on_white(picture)
            notes.append("transparency put on white")
        rgb, note = to_srgb(picture, profile)
        return rgb, [*notes, note] if note else notes


def _orientation(image: Image.Image) -> int:
    """Return the number of EXIF's orientation; 1, upright, where the tags cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly everything on odd tags
        return 1


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return 'HEIC needs one more package: pip install "personalar[heic]"'
    if head[:4] in _TIFF_HEADS:
        return "a TIFF that is damaged, or of a rare kind: save it again, with 8 or 16 bits a colour"
    return f"no picture (allowed: {', '.join(name for name in SUFFIXES if name != 'MPO')})"
