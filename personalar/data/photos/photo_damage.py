"""Warnings about pictures that decode without an error, but look damaged."""

from __future__ import annotations

import numpy as np
from PIL import Image

FLAT_SHARE, FLAT_ROWS = 0.02, 16
"""Rows of one colour cause a warning from this share of the height, and at least this many rows."""
NEARLY_BLACK = 16
"""A picture causes a warning if its brightest value, of 255, is below this."""


def pixel_notes(image: Image.Image) -> list[str]:
    """Return warnings about a decoded RGB picture: nearly black, or a band of rows of one colour.

    White rows cause no warning: they are common in photos of products.
    """
    pixels = np.asarray(image)
    brightest = int(pixels.max())
    if brightest < NEARLY_BLACK:
        return [f"nearly black: the brightest value is {brightest} of 255"]
    # Test 16 columns first; only the few rows that pass are compared in full.
    probe = pixels[:, :: max(1, image.width // 16)]
    flat = (probe == probe[:, :1]).all(axis=(1, 2)) & ~(probe == 255).all(axis=(1, 2))
    for row in np.flatnonzero(flat):
        flat[row] = (pixels[row] == pixels[row, :1]).all()
    # Runs of flat rows: the padded difference is 1 where a run begins and -1 after its end.
    steps = np.diff(np.concatenate(([0], flat.astype(np.int8), [0])))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if not len(begins) or (ends - begins).max() < max(FLAT_ROWS, FLAT_SHARE * image.height):
        return []
    longest = int((ends - begins).argmax())
    first, last = int(begins[longest]), int(ends[longest])
    share = f"{(last - first) / image.height:.0%}"
    return [f"rows {first} to {last} ({share}) have a single colour: probably damaged, check the picture"]
