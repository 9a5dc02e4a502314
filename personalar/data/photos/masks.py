"""The mask of a photo: white on the subject, from a file beside it or from the photo's own transparency.

Masks limit the training loss to the subject, and give its box to the scorers.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageStat

from personalar.core.image_sizes import Size, written
from personalar.core.types import Box
from personalar.data.photos.photo_file import Unusable, read_photo

WHITE = 128
"""Smallest value, of 0 to 255, that belongs to the subject in a mask or an alpha channel."""
SAME_SHAPE = 0.02
"""Largest relative difference of the proportions of a mask and its photo."""


def read_mask(path: Path, size: Size) -> Image.Image:
    """Return the mask in a file: a grey picture of 0 and 255, scaled to `size`, that of its photo.

    Raises:
        Unusable: the file cannot be read, has another shape than the photo, or is all black or all white.
    """
    drawn = read_photo(path)[0]
    first, second = drawn.width / drawn.height, size[0] / size[1]
    if abs(first / second - 1) > SAME_SHAPE:
        raise Unusable(f"its shape {written(drawn.size)} is not that of the photo, {written(size)}")
    mask = black_and_white(drawn.convert("L"), size)
    if mask.getbbox() is None:
        raise Unusable("it is all black: paint the subject white")
    if covered(mask) == 1:
        raise Unusable(
            "it is all white (transparent counts as white), so it limits nothing: paint the background black"
        )
    return mask


def alpha_mask(alpha: Image.Image | None) -> Image.Image | None:
    """Return what is not transparent, as `read_mask`; None if it is all or nothing."""
    if alpha is None:
        return None
    mask = black_and_white(alpha, alpha.size)
    return mask if 0 < covered(mask) < 1 else None


def black_and_white(image: Image.Image, size: Size) -> Image.Image:
    """Return a grey picture with values of 0 and 255 alone, scaled to `size`."""
    # The threshold before the scaling, and NEAREST: another filter would make grey values again.
    mask = image.point(lambda value: 255 * (value >= WHITE))
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def covered(mask: Image.Image) -> float:
    """Return the share of a mask that is white."""
    return ImageStat.Stat(mask).sum[0] / (255 * mask.width * mask.height)


def mask_box(mask: Image.Image | None) -> Box | None:
    """Return the box of the white part of a mask; None without one."""
    found = None if mask is None else mask.getbbox()
    if mask is None or found is None:
        return None
    left, top, right, bottom = found
    return left / mask.width, top / mask.height, right / mask.width, bottom / mask.height
