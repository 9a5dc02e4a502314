"""The subject's box in a photo, from a mask beside it (`x_mask.png`) or from the photo's own transparency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from personalar.core.types import Box
from personalar.data.photo_file import Unusable, refusals
from personalar.data.photos import Photo, inspect_file, masks_beside

WHITE = 128
"""Smallest value, of 0 to 255, that belongs to the subject in a mask or an alpha channel."""
SAME_SHAPE = 0.02
"""Largest relative difference of the proportions of a mask and its photo."""


def find_boxes(photos: Sequence[Photo]) -> tuple[Box | None, ...]:
    """Return the box of each photo; None where neither a mask nor transparency shows one."""
    entries = [
        path for folder in {photo.path.parent for photo in photos} for path in sorted(folder.iterdir())
    ]
    masks = {photo: mask for mask, photo in masks_beside(entries).items()}
    return tuple(_box_of(photo, masks) for photo in photos)


def _box_of(photo: Photo, masks: Mapping[Path, Path]) -> Box | None:
    if photo.image is None:
        return None
    if (mask := masks.get(photo.path)) is None:
        return alpha_box(photo.path)
    drawn = inspect_file(mask).image
    if drawn is None or not _same_shape(drawn.size, photo.image.size):
        return None
    return bright_box(drawn.convert("L"))


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    first, second = one[0] / one[1], other[0] / other[1]
    return abs(first / second - 1) <= SAME_SHAPE


def alpha_box(path: Path) -> Box | None:
    """Return the box of what is not transparent; None where nothing is, or where all is opaque."""
    try:
        with refusals(path), Image.open(path) as image:
            if not image.has_transparency_data:
                return None
            return bright_box(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))
    except Unusable:
        return None


def bright_box(image: Image.Image) -> Box | None:
    """Return the box of the bright pixels of a grey picture; None where there are none."""
    found = image.point(lambda value: 255 * (value >= WHITE)).getbbox()
    if found is None:
        return None
    left, top, right, bottom = found
    return left / image.width, top / image.height, right / image.width, bottom / image.height
