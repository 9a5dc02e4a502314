"""Read one photo within limits, at the size to keep.

The format is detected from the content, not from the file's name. A file that cannot be used raises
`Unusable` with the reason. The others are rotated upright (EXIF), composited on white if transparent, and
converted to 8-bit sRGB; each change is returned as a note.
"""

from __future__ import annotations

import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from personalar.core.image_sizes import Size, written
from personalar.data.photos.photo_damage import pixel_notes
from personalar.data.photos.photo_depth import SIXTEEN_BITS, on_white, plain_mode, to_8_bits, to_srgb

# Pillow warns of large pictures and odd metadata; our own limits replace these warnings. Not with
# `warnings.catch_warnings`, which is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

SMALLEST_SIDE = 32
"""Pixels; a smaller picture has too little detail to learn from."""
MOST_PIXELS = 100_000_000
"""Pixels of the largest picture that is opened."""
MOST_BYTES = 400_000_000
"""Bytes of the largest file that is opened: `MOST_PIXELS` of uncompressed RGBA."""
MOST_KEPT = 16_000_000
"""Larger pictures are scaled down to this number of pixels (more than any base generates), one at a time."""
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
"""Pillow's names of the supported formats, with their usual file suffixes."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_HEADS = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\x89PNG": "PNG"}
_UNSUPPORTED = "a damaged or unsupported {}: save it again with 8 or 16 bits per channel"
_ORIENTATION = 0x0112  # EXIF tag; its values 2 to 8 are undone by these transforms
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
    """The reason why a file is skipped. Callers turn it into a note; it never leaves this package."""


def check_entry(path: Path) -> None:
    """Raise `Unusable` unless `path` is a regular, visible file of a photo's size."""
    if path.name.startswith((".", "~$")) or path.name.lower() in SYSTEM_FILES:
        raise Unusable("hidden or system file")
    try:
        found = path.stat()  # follows links
    except FileNotFoundError as error:
        raise Unusable("broken link") from error
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(found.st_mode):
        raise Unusable("a folder: only pictures directly in the given one are read")
    if not stat.S_ISREG(found.st_mode):  # opening a named pipe would block forever
        raise Unusable("not a regular file")
    if found.st_size == 0:
        raise Unusable("empty file")
    if found.st_size > MOST_BYTES:
        raise Unusable(
            f"too large for a photo: {found.st_size / 1e6:.0f} MB (allowed: {MOST_BYTES // 10**6} MB); "
            "if it is not a video, save it smaller"
        )


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn every exception that Pillow raises for a bad file into `Unusable`."""
    try:
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
    except Exception as error:  # Pillow's plugins raise many types of errors for damaged files
        raise Unusable(f"damaged or truncated ({type(error).__name__}: {str(error)[:80]})") from error


def _open(stream: IO[bytes]) -> Image.Image:
    Image.init()  # fills Image.OPEN; without it only the most common formats are registered
    return Image.open(stream, formats=[name for name in SUFFIXES if name in Image.OPEN])


def read_photo(path: Path, most: int = MOST_KEPT) -> tuple[Image.Image, Image.Image | None, tuple[str, ...]]:
    """Return a picture in 8-bit sRGB on white, the transparency that it had or None, and notes.

    The notes name every change to the picture, and signs of damage.

    Args:
        path: the file.
        most: the picture is scaled down to at most this number of pixels.

    Raises:
        Unusable: not a picture, damaged, or outside the limits of this module.
    """
    check_entry(path)
    with refusals(path), path.open("rb") as stream, _open(stream) as image:
        _check_size(image.size)
        notes, kind = [], image.format or ""
        if path.suffix.lower() not in SUFFIXES[kind]:
            notes.append(f"is a {kind} file despite its suffix")
        if getattr(image, "is_animated", False) and kind != "MPO":
            notes.append("has several frames, only the first is used")
        # One large picture at a time: four decoded side by side would need gigabytes of memory.
        with _one_large if image.width * image.height > MOST_KEPT else nullcontext():
            rgb, alpha = _decode(image, most, notes)
        return rgb, alpha, (*notes, *pixel_notes(rgb))


def _check_size(size: Size) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise Unusable(
            f"too large: {written(size)} pixels (allowed: {MOST_PIXELS // 10**6} megapixels): scale it down"
        )
    if min(size) < SMALLEST_SIDE:
        raise Unusable(f"too small: {written(size)} pixels, each side needs {SMALLEST_SIDE}")


def _decode(image: Image.Image, most: int, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return an opened picture upright, in 8-bit sRGB and composited on white, and its alpha channel.

    A note on each change is added to `notes`.
    """
    whole = width, height = image.size
    # The smallest whole factor that brings the picture down to `most` pixels.
    times = next(n for n in range(1, MOST_PIXELS) if width * height <= most * n * n)
    if times > 1:
        # JPEG can decode at a reduced size; for other formats draft() does nothing.
        image.draft(None, (width // times, height // times))
    profile = image.info.get("icc_profile")
    # Tags are read after the pixels, because those of a PNG can come behind them. But the load() of a TIFF
    # rotates it and removes the orientation tag.
    if image.format != "TIFF":
        image.load()
    orientation = _orientation(image)
    image.load()
    if image.mode in ("I", "F"):  # values without a fixed range
        raise Unusable(_UNSUPPORTED.format(image.format))
    picture = image
    if image.mode in SIXTEEN_BITS:
        picture = to_8_bits(image)
        notes.append("converted to 8 bits")
    if times > 1:
        size = (-(-width // times), -(-height // times))
        picture = plain_mode(picture)
        picture = picture.resize(size, Image.Resampling.BICUBIC) if picture.size != size else picture
        notes.append(f"scaled down from {written(whole)}")
    if orientation in _UPRIGHT:
        notes.append("rotated upright")
        if image.format != "TIFF":  # load() has already rotated a TIFF
            picture = picture.transpose(_UPRIGHT[orientation])
    alpha = None
    if picture.has_transparency_data:
        picture, alpha = on_white(picture)
        notes.append("transparency replaced by white")
    rgb, note = to_srgb(picture, profile)
    notes += [note] if note else []
    return rgb, alpha


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 (upright) if the tags cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many types of errors for malformed tags
        return 1


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return 'HEIC needs one more package: pip install "personalar[heic]"'
    if kind := _HEADS.get(head[:4]):
        return _UNSUPPORTED.format(kind)
    return f"not a picture (allowed: {', '.join(name for name in SUFFIXES if name != 'MPO')})"
