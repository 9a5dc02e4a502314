"""The photos of a folder: every entry gets a verdict before any model loads.

The content of a file counts, not its name. A file that cannot be used is skipped with the reason; the others
are turned upright (EXIF), put on white where transparent, converted to sRGB and 8 bits, and noted so.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from personalar.core.image_sizes import written
from personalar.core.types import image_fingerprint

SMALLEST_SIDE = 32
"""Pixels; below it there is nothing to learn from."""
MOST_PIXELS = 100_000_000
"""Largest picture that is opened: 100 megapixels take 300 MB as RGB."""
NEAR_BITS = 3
"""Photos whose 64-bit difference hashes differ in at most so many bits look alike."""
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
_PATIENT = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # one channel of more than 8 bits


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One entry of the folder. `image` is RGB, or None when the entry was skipped."""

    path: Path
    notes: tuple[str, ...] = ()
    """Changes to it, or the reason why it was skipped."""
    image: Image.Image | None = None
    cut: float | None = None
    """Share of its area, 0 to 1, that a base cuts off; None without a base."""

    @property
    def verdict(self) -> str:
        """Return "used" or "skipped"."""
        return "skipped" if self.image is None else "used"


class Unusable(Exception):
    """The reason why a file is skipped; stays inside this module."""


def inspect_folder(folder: Path) -> list[Photo]:
    """Look at every entry of `folder` (not below it), by name; several at a time.

    Raises:
        FileNotFoundError: the folder is missing.
        PermissionError: it cannot be listed.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"subject.path={folder} {what}: give a folder with a few photos of one thing")
    try:
        from pillow_heif import register_heif_opener  # the extra [heic]

        register_heif_opener()
    except ImportError:
        pass
    with ThreadPoolExecutor(max_workers=4) as pool:  # decoding and hashing release Python's lock
        photos = list(pool.map(inspect_file, sorted(folder.iterdir())))
        return mark_twins(photos, list(pool.map(_looks, photos)))


def inspect_file(path: Path) -> Photo:
    """Return the verdict on one entry; never raises for the content of the file."""
    try:
        image, notes = read_photo(path)
    except Unusable as reason:
        return Photo(path=path, notes=(str(reason),))
    return Photo(path=path, notes=notes, image=image)


def read_photo(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture in RGB and the changes to it. Raises `Unusable`."""
    _check_entry(path)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on bombs and odd metadata: our own limits decide
            formats = [name for name in SUFFIXES if name in Image.OPEN]
            with Image.open(io.BytesIO(path.read_bytes()), formats=formats) as image:
                return _convert(image, path)
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


def print_table(photos: Iterable[Photo]) -> None:
    """Show every entry with its verdict and, where a base is known, how much of it is cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    photos = list(photos)
    fitted = any(photo.cut is not None for photo in photos)
    table = Table(box=None, pad_edge=False)
    for title in ("photo", "pixels", *(["cut off"] if fitted else []), "verdict", ""):
        table.add_column(title, overflow="fold")
    for photo in photos:
        name = photo.path.name.encode(errors="replace").decode()  # a name need not be valid text
        size = written(photo.image.size) if photo.image else "-"
        cut = [] if not fitted else ["-" if photo.cut is None else f"{photo.cut:.0%}"]
        table.add_row(Text(name), size, *cut, photo.verdict, Text("; ".join(photo.notes)))
    Console().print(table)


def mark_twins(photos: Sequence[Photo], looks: Sequence[tuple[str, int] | None]) -> list[Photo]:
    """Skip exact copies of an earlier photo; note those that look alike.

    Args:
        looks: per photo a hash of its pixels and its `difference_hash`; None where it is skipped.
    """
    seen: dict[str, Path] = {}
    hashes: list[tuple[int, Path]] = []
    marked = []
    for photo, look in zip(photos, looks, strict=True):
        if look is not None:
            pixels, own = look
            near = next((path for other, path in hashes if (own ^ other).bit_count() <= NEAR_BITS), None)
            if pixels in seen:
                photo = replace(photo, notes=(f"the same picture as {seen[pixels].name}",), image=None)
            elif near is not None:
                photo = replace(photo, notes=(*photo.notes, f"looks like {near.name}"))
            seen.setdefault(pixels, photo.path)
            hashes.append((own, photo.path))
        marked.append(photo)
    return marked


def _looks(photo: Photo) -> tuple[str, int] | None:
    return photo.image and (image_fingerprint([photo.image]), difference_hash(photo.image))


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits: is each of 8x8 grey pixels darker than its right neighbour?"""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _check_entry(path: Path) -> None:
    """Refuse everything that is not an ordinary file with something in it."""
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


def _convert(image: Image.Image, path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Turn a picture upright, to sRGB and 8 bits, transparency on white; return it and the changes."""
    if image.width * image.height > MOST_PIXELS:
        raise Unusable(
            f"{written(image.size)} pixels are too many (allowed: {MOST_PIXELS // 10**6} megapixels): "
            "scale it down"
        )
    if min(image.size) < SMALLEST_SIDE:
        raise Unusable(f"too small: {written(image.size)} pixels, at least {SMALLEST_SIDE} a side")
    notes = []
    if path.suffix.lower() not in SUFFIXES[image.format or ""]:
        notes.append(f"is {image.format}, in spite of its name")
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        notes.append(f"first of {frames} frames")
    image.seek(0)
    image.load()
    profile = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) in range(2, 9):
        notes.append("turned upright")
    if upright.mode in _PATIENT:
        upright = _to_8_bits(upright)
        notes.append("brought to 8 bits")
    if upright.has_transparency_data:
        upright = _on_white(upright)
        notes.append("transparency put on white")
    rgb, note = _to_srgb(upright, profile)
    return rgb, (*notes, note) if note else tuple(notes)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale one channel of 16 or 32 bits (or float) to 8; Pillow's own conversion clips at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    top = 65535.0 if image.mode != "F" or values.max() > 1 else 1.0
    return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8), "L")


def _on_white(image: Image.Image) -> Image.Image:
    """Return L or RGB on white, in the numbers of its own colour profile."""
    layered = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Return RGB through the embedded colour profile, if there is a usable one."""
    if image.mode == "P":
        image = image.convert("RGB")
    note = None if image.mode in ("RGB", "L", "1") else f"converted from {image.mode}"
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower():
                return image.convert("RGB"), None
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            return converted, "converted from its colour profile"
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            note = "its colour profile is damaged and was ignored"
    return image.convert("RGB"), note


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return 'HEIC needs one more package: pip install "personalar[heic]"'
    return f"no picture (allowed: {', '.join(name for name in SUFFIXES if name != 'MPO')})"
