"""The photos of a folder: every entry gets a verdict before any model loads.

All headers are read first; then the pictures are decoded, at a size at which all fit into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from personalar.core.errors import printable
from personalar.core.image_sizes import written
from personalar.core.types import image_fingerprint
from personalar.data.photo_file import MOST_KEPT, SUFFIXES, Header, Unusable, read_header, read_pixels

NEAR_BITS = 3
"""Photos whose 64-bit difference hashes differ in at most so many bits look alike."""
ALL_KEPT, LEAST_KEPT = 400_000_000, 1_000_000
"""Pixels of all photos together, 1.2 GB, and of each where they are very many."""

PICTURE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
CAPTION_SUFFIXES = (".txt", ".caption")
MASK = re.compile(r"(?P<before>.+)[-_. ]mask(label)?|mask[-_. ](?P<after>.+)")
"""Names of masks, without their suffix: x_mask, x-masklabel, mask_x."""


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
        entries = sorted(folder.iterdir())
        beside = companions(entries)
        headers = list(pool.map(lambda path: beside.get(path) or look_at(path), entries))
        count = sum(isinstance(header, Header) for header in headers)
        most = min(MOST_KEPT, max(LEAST_KEPT, ALL_KEPT // max(1, count)))
        photos = list(pool.map(lambda path, header: open_photo(path, header, most), entries, headers))
        return mark_twins(photos, list(pool.map(_looks, photos)))


def companions(entries: Sequence[Path]) -> dict[Path, str]:
    """Return the reason to skip each file that other programs keep beside a photo: masks and captions."""
    pictures = [path for path in entries if path.suffix.lower() in PICTURE_SUFFIXES]
    photos = {name.lower(): path.name for path in pictures for name in (path.stem, path.name)}
    found = {}
    for path in entries:
        if path.suffix.lower() in CAPTION_SUFFIXES and (photo := photos.get(path.stem.lower())):
            found[path] = f"caption of {photo}: not used, set subject.noun"
        mask = MASK.fullmatch(path.stem.lower()) if path in pictures else None
        if mask and (photo := photos.get(mask["before"] or mask["after"])):
            found[path] = f"mask of {photo}: not used, not a photo"
    return found


def look_at(path: Path) -> Header | str:
    """Return the header of a picture, or the reason why the entry cannot be used."""
    try:
        return read_header(path)
    except Unusable as reason:
        return str(reason)


def open_photo(path: Path, header: Header | str, most: int = MOST_KEPT) -> Photo:
    """Return the verdict on one entry with that header, with `most` pixels at most."""
    if isinstance(header, str):
        return Photo(path=path, notes=(header,))
    try:
        image, notes = read_pixels(path, header, most)
    except Unusable as reason:
        return Photo(path=path, notes=(str(reason),))
    return Photo(path=path, notes=notes, image=image)


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
        size = written(photo.image.size) if photo.image else "-"
        cut = [] if not fitted else ["-" if photo.cut is None else f"{photo.cut:.0%}"]
        table.add_row(
            Text(printable(photo.path.name)),
            size,
            *cut,
            photo.verdict,
            Text(printable("; ".join(photo.notes))),
        )
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
    if photo.image is None:
        return None
    return image_fingerprint([photo.image]), difference_hash(photo.image)


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits: is each of 8x8 grey pixels darker than its right neighbour?"""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")
