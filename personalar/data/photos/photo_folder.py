"""Read a folder of photos and decide for every entry whether it is used, before any model is loaded.

The number of pictures determines the size at which they are decoded, so that all of them fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from personalar.core.errors import printable
from personalar.core.image_sizes import written
from personalar.core.types import image_fingerprint
from personalar.data.photos.companions import MASK, PICTURE_SUFFIXES, companions, read_caption
from personalar.data.photos.masks import alpha_mask, covered, read_mask
from personalar.data.photos.photo_file import MOST_KEPT, Unusable, read_photo

NEAR_BITS = 3
"""Two photos look alike if their 64-bit difference hashes differ in at most this many bits."""
ALL_KEPT, LEAST_KEPT = 400_000_000, 1024 * 1024
"""Largest number of pixels kept of all photos together (1.2 GB of RGB). With very many photos each still
keeps `LEAST_KEPT` pixels, the size of a typical generated picture (1024 x 1024)."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One entry of the folder, used or skipped."""

    path: Path
    notes: tuple[str, ...] = ()
    """Changes made to the picture, or the reason why it was skipped."""
    image: Image.Image | None = None
    """The RGB picture; None if the entry was skipped."""
    cut: float | None = None
    """Share of the area, 0 to 1, that cropping to the base's image size removes; None without a base."""
    mask: Image.Image | None = None
    """Grey picture of the size of `image`, 255 on the subject and 0 elsewhere; None: unknown."""
    alpha: Image.Image | None = None
    """The same from its transparency, which counts if there is no mask beside it."""
    caption: str | None = None
    """Text of its caption."""
    kind: str | None = None
    """"mask" or "caption" if the entry itself is that of a photo, and used."""

    @property
    def verdict(self) -> str:
        """Return "used", "skipped", "mask" or "caption"."""
        return "used" if self.image is not None else self.kind or "skipped"


def inspect_folder(folder: Path, setting: str = "subject.path") -> list[Photo]:
    """Read every entry of `folder`, sorted by name, without its subfolders.

    Args:
        folder: what the user gave with `setting`; it can also be a single picture.
        setting: for error messages.

    Raises:
        FileNotFoundError: the folder is missing.
        PermissionError: the folder cannot be listed.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{setting}={folder} does not exist: give a folder with pictures of one thing"
        )
    try:
        from pillow_heif import register_heif_opener  # the extra [heic]

        register_heif_opener()
    except ImportError:
        pass  # HEIC photos are then skipped, with a note that names the package
    with ThreadPoolExecutor(max_workers=4) as pool:  # decoding and hashing release the GIL
        entries = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        beside = companions(entries)
        entries = [path for path in entries if path not in beside]
        # The content decides what is a picture: a file without a suffix can be one.
        count = sum(path.suffix.lower() in (*PICTURE_SUFFIXES, "") for path in entries)
        most = min(MOST_KEPT, max(LEAST_KEPT, ALL_KEPT // max(1, count)))
        photos = list(pool.map(lambda path: open_photo(path, most), entries))
        photos = mark_duplicates(photos, list(pool.map(_image_hashes, photos)))
    # Of x.jpg and x.png, which can be copies of one picture, x.txt belongs to the one that is used.
    beside |= companions([*(photo.path for photo in photos if photo.image is not None), *beside])
    return with_companions(photos, beside)


def usable(photos: Sequence[Photo], setting: str, advice: str) -> list[Photo]:
    """Return those of `photos` that can be used.

    Args:
        photos: the entries of a folder.
        setting: the setting of the folder with its value, for the message.
        advice: what the folder should contain.

    Raises:
        FileNotFoundError: none can be used.
    """
    used = [photo for photo in photos if photo.image is not None]
    if not used:
        seen = [f"{photo.path.name}: {'; '.join(photo.notes)}" for photo in photos[:5]]
        more = [f"and {len(photos) - 5} more"] if len(photos) > 5 else []
        raise FileNotFoundError(
            f"{setting} contains no usable picture ({', '.join(seen + more) or 'it is empty'}): {advice}"
        )
    return used


def with_companions(photos: Sequence[Photo], beside: Mapping[Path, tuple[str, Path]]) -> list[Photo]:
    """Return all entries, sorted by name, with the masks and captions of the photos.

    Args:
        photos: the entries that are no companions.
        beside: kind and photo of each companion.
    """
    found = {photo.path: photo for photo in photos}
    for path, (kind, of) in beside.items():
        try:
            found[of] = with_companion(found.get(of), kind, path)
            found[path] = Photo(path=path, notes=(f"{kind} of {of.name}",), kind=kind)
        except Unusable as reason:
            found[path] = Photo(path=path, notes=(f"{kind} of {of.name}, not used: {reason}",))
    for path, photo in found.items():
        if photo.image is not None and MASK.fullmatch(path.stem.lower()):
            note = "named like a mask, but without its photo: used as a photo"
            photo = replace(photo, notes=(*photo.notes, note))
        found[path] = photo if photo.mask else limited(photo, photo.alpha, "what is not transparent")
    return [found[path] for path in sorted(found)]


def with_companion(photo: Photo | None, kind: str, path: Path) -> Photo:
    """Return `photo` with the mask or caption in `path`; raises Unusable if it cannot be used."""
    if photo is None or photo.image is None:  # None: a caption of a mask that is read later
        raise Unusable("the photo is skipped")
    if getattr(photo, kind) is not None:
        raise Unusable("the photo has another one")
    if kind == "caption":
        return replace(photo, caption=read_caption(path))
    return limited(photo, read_mask(path, photo.image.size), path.name)


def limited(photo: Photo, mask: Image.Image | None, source: str) -> Photo:
    """Return `photo` with `mask`, and a note about it; unchanged if there is none."""
    if mask is None:
        return photo
    note = f"trained on {covered(mask):.0%} of it: {source}"
    return replace(photo, mask=mask, notes=(*photo.notes, note))


def open_photo(path: Path, most: int = MOST_KEPT) -> Photo:
    """Decode one entry; a file that cannot be used is a photo without an image.

    Args:
        path: the file.
        most: the picture is scaled down to at most this number of pixels.
    """
    try:
        image, alpha, notes = read_photo(path, most)
    except Unusable as reason:
        return Photo(path=path, notes=(str(reason),))
    return Photo(path=path, notes=notes, image=image, alpha=alpha_mask(alpha))


def print_table(photos: Iterable[Photo]) -> None:
    """Print every entry with its verdict, its notes and, if the base is known, the share that is cropped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    photos = list(photos)
    with_cut = any(photo.cut is not None for photo in photos)
    table = Table(box=None, pad_edge=False)
    for title in ("photo", "pixels", *(["cut off"] if with_cut else []), "verdict", ""):
        table.add_column(title, overflow="fold")
    for photo in photos:
        cells: list[Text | str] = [
            Text(printable(photo.path.name)),  # Text: a name such as "[red].png" must not become markup
            written(photo.image.size) if photo.image else "-",
            photo.verdict,
            Text(printable("; ".join(photo.notes))),
        ]
        if with_cut:
            cells.insert(2, "-" if photo.cut is None else f"{photo.cut:.0%}")
        table.add_row(*cells)
    Console().print(table)


def mark_duplicates(photos: Sequence[Photo], hashes: Sequence[tuple[str, int] | None]) -> list[Photo]:
    """Skip exact copies of an earlier photo, and add a note to photos that look alike.

    Args:
        photos: in the order of the folder.
        hashes: per photo the hash of its pixels and its `difference_hash`; None for a skipped entry.
    """
    seen: dict[str, Path] = {}
    earlier: list[tuple[int, Path]] = []
    marked = []
    for photo, pair in zip(photos, hashes, strict=True):
        if pair is not None:
            pixels, own = pair
            near = next((path for other, path in earlier if (own ^ other).bit_count() <= NEAR_BITS), None)
            if pixels in seen:
                photo = replace(photo, notes=(f"the same picture as {seen[pixels].name}",), image=None)
            elif near is not None:
                photo = replace(photo, notes=(*photo.notes, f"looks like {near.name}"))
            seen.setdefault(pixels, photo.path)
            earlier.append((own, photo.path))
        marked.append(photo)
    return marked


def _image_hashes(photo: Photo) -> tuple[str, int] | None:
    if photo.image is None:
        return None
    return image_fingerprint([photo.image]), difference_hash(photo.image)


def difference_hash(image: Image.Image) -> int:
    """Return a 64-bit perceptual hash (dHash) that survives scaling and recompression.

    Each bit compares a pixel of the picture, reduced to 9 x 8 grey pixels, with its right neighbour.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")
