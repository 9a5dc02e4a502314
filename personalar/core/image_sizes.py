"""Image sizes of a base model, and the choice of the size for a photo.

A size is (width, height) in pixels. A bucket is a size of about the model's area, with both sides multiples
of a grid and a ratio of at most 4:1. The buckets are those of Lumina-mGPT and Emu3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
MAX_RATIO = 4.0
LEAST_KEPT = 0.98
"""A crop that keeps more than this share is reported as no crop: it comes from rounding the size to the grid.
(Emu3 resizes such a photo without cropping.)"""
LISTED = 8
"""Maximum number of sizes in a message."""


def bucket_sizes(resolution: int, grid_px: int) -> list[Size]:
    """Return the buckets (width, height) of at most `resolution` ** 2 pixels, widest first.

    With resolution 512 and a grid of 32 pixels there are 49.
    """
    # The walk of Lumina-mGPT's generate_crop_size_list, in units of the grid: the model was trained on
    # exactly these sizes, so the list must not be "improved".
    area = (resolution // grid_px) ** 2
    width, height = area, 1
    sizes = []
    while width > 0:
        if max(width, height) / min(width, height) <= MAX_RATIO:
            sizes.append((width * grid_px, height * grid_px))
        if (height + 1) * width <= area:
            height += 1
        else:
            width -= 1
    return sizes


def area_sizes(resolution: int, grid_px: int) -> list[Size]:
    """Return the sizes of area `resolution` ** 2, with sides rounded to the grid, widest first (Emu3)."""
    side = resolution / grid_px
    shortest, longest = round(side / MAX_RATIO**0.5), round(side * MAX_RATIO**0.5)
    sizes = []
    for width in range(longest, shortest - 1, -1):
        # The heights of all widths that round to this one.
        low, high = (round(side**2 / (width + half)) for half in (0.5, -0.5))
        heights = range(max(low, shortest), min(high, longest) + 1)
        sizes += [(width * grid_px, height * grid_px) for height in heights]
    return sizes


def kept_share(image: Size, size: Size) -> float:
    """Return the share (0 to 1) of a picture's area that remains after scaling and cropping to `size`."""
    # The photo is scaled by the larger factor, so that it fills the size, and the other direction is cropped.
    scales = (size[0] / image[0], size[1] / image[1])
    return min(scales) / max(scales)


def choose_bucket(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """Return the bucket that crops a `width` x `height` image least; of equal ones the widest."""
    return max(sizes, key=lambda size: (kept_share((width, height), size), size))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Result of scaling and cropping a photo to a size of the base."""

    size: Size
    """The size of the base."""
    cut: float
    """Share of the photo's area that is cropped, 0 to 1; 0 if it is less than 2 %, see `LEAST_KEPT`."""
    tall: bool
    """Top and bottom are cropped, not left and right."""
    enlarged: float
    """Scale factor of the photo's sides; below 1 it is scaled down."""


def fit(image: Size, sizes: Sequence[Size]) -> Fit:
    """Return how a photo of size `image` fits into the one of `sizes` that crops it least."""
    size = choose_bucket(*image, sizes)
    scales = (size[0] / image[0], size[1] / image[1])
    kept = kept_share(image, size)
    cut = 0.0 if kept > LEAST_KEPT else 1 - kept
    return Fit(size=size, cut=cut, tall=scales[0] > scales[1], enlarged=max(scales))


def written(size: Size) -> str:
    """Return a size as "608x416", width first, as in prompts and settings."""
    return f"{size[0]}x{size[1]}"


def read_size(text: str, sizes: Sequence[Size]) -> Size:
    """Return the size in `text`, for example "608x416".

    Raises:
        ValueError: not a size, or not one of `sizes`; the message lists the allowed or the nearest ones.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", str(text))
    if found is None:
        example = written(choose_bucket(3, 2, sizes))
        raise ValueError(
            f"size={text!r} is not a size: write width x height in pixels, such as size={example}"
        )
    size = int(found[1]), int(found[2])
    if size in sizes:
        return size
    if len(sizes) == 1:
        raise ValueError(f"size={text}: this base only generates {written(sizes[0])}; omit size")
    near = sorted(sizes, key=lambda one: (kept_share(size, one), one), reverse=True)[:LISTED]
    which = "allowed" if len(sizes) <= LISTED else f"it has {len(sizes)}, nearest in shape"
    raise ValueError(f"size={text} is not one of this base's sizes; {which}: {', '.join(map(written, near))}")
