"""Picture sizes of a base, and the one that suits a photo.

A size is (width, height) in pixels. A bucket is one of about the model's area, both sides multiples of one
grid, at most 4:1 (Lumina-mGPT's and Emu3's).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
MAX_RATIO = 4.0
LISTED = 8
"""Sizes that a message names."""


def bucket_sizes(resolution: int, grid_px: int) -> list[Size]:
    """Return the (width, height) buckets of area `resolution` ** 2, widest first: 49 of them at 512."""
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


def area_size(ratio: float, resolution: int, grid_px: int) -> Size:
    """Return the (width, height) of area about `resolution` ** 2 for width : height, sides rounded (Emu3)."""
    ratio = min(max(ratio, 1 / MAX_RATIO), MAX_RATIO)
    width, height = resolution * ratio**0.5, resolution / ratio**0.5
    return round(width / grid_px) * grid_px, round(height / grid_px) * grid_px


def area_sizes(resolution: int, grid_px: int) -> list[Size]:
    """Return every size that `area_size` gives, widest first."""
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
    """Return the share of a picture's area, 0 to 1, that stays when it fills `size` and the rest is cut."""
    scales = (size[0] / image[0], size[1] / image[1])
    return min(scales) / max(scales)


def choose_bucket(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """Return the bucket that loses least of a `width` x `height` image; of equals the widest."""
    return max(sizes, key=lambda size: (kept_share((width, height), size), size))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The fit of a photo into a size of the base."""

    size: Size
    """Size of the base that the photo fills."""
    cut: float
    """Share of the photo's area that is cut off, 0 to 1."""
    tall: bool
    """The cut is at top and bottom, not at left and right."""
    enlarged: float
    """Factor on the photo's sides; below 1 it is scaled down."""


def fit(image: Size, sizes: Sequence[Size]) -> Fit:
    """Return the fit of a photo into the one of `sizes` that loses least of it."""
    size = choose_bucket(*image, sizes)
    scales = (size[0] / image[0], size[1] / image[1])
    return Fit(size=size, cut=1 - kept_share(image, size), tall=scales[0] > scales[1], enlarged=max(scales))


def written(size: Size) -> str:
    """Return a size as "608x416", width first, as in prompts and settings."""
    return f"{size[0]}x{size[1]}"


def read_size(text: str, sizes: Sequence[Size]) -> Size:
    """Return the one of a base's `sizes` that `text` ("608x416") names.

    Raises:
        ValueError: unknown size; with the known ones, or the nearest in shape.
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
        raise ValueError(f"size={text}: this base draws {written(sizes[0])} only; leave size out")
    near = sorted(sizes, key=lambda one: (kept_share(size, one), one), reverse=True)[:LISTED]
    which = "allowed" if len(sizes) <= LISTED else f"it has {len(sizes)}, nearest in shape"
    raise ValueError(f"size={text} is not one of this base's sizes; {which}: {', '.join(map(written, near))}")
