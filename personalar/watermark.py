"""An invisible mark in a picture's pixels, for those who ask: `watermark=TEXT` of personalar.sample.

`python -m personalar.watermark FILE...` reads it. The library invisible-watermark hides 16 bytes (method
dwtDctSvd: singular values of the blocks of a wavelet transform). Whoever wants it gone can remove it: it says
where a picture comes from as long as nobody minds, as metadata does, but it outlives a resize.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST_BYTES = 16
SMALLEST_SIDE = 256
METHOD = "dwtDctSvd"


def library() -> Any:
    """Return the module imwatermark.

    Raises:
        ValueError: it, or what it needs, is not installed.
    """
    try:
        import imwatermark
    except ImportError as error:
        raise ValueError(
            f"watermark needs the library invisible-watermark ({error}): pip install "
            '"personalar[watermark]"; where OpenCV finds no libGL, pip install opencv-python-headless'
        ) from error
    return imwatermark


def check_watermark(text: str, *, side: int) -> None:
    """Look at everything before a picture is made.

    Args:
        side: the shorter side of the pictures, in pixels.

    Raises:
        ValueError: `text` cannot be hidden, the pictures are too small, or the library is missing.
    """
    size = len(text.encode())
    if not 1 <= size <= MOST_BYTES or not text.isprintable():
        raise ValueError(
            f"watermark={text!r} cannot be hidden: allowed are 1 to {MOST_BYTES} bytes of printable text (it "
            f"has {size}), such as watermark=personalar"
        )
    if side < SMALLEST_SIDE:
        raise ValueError(
            f"watermark needs pictures of at least {SMALLEST_SIDE} pixels a side, and this base makes {side}"
            ": leave watermark out (prompt, seed, base and concept are in the metadata)"
        )
    library()


def mark(image: Image.Image, text: str) -> Image.Image:
    """Return RGB `image` with `text` (`check_watermark`) hidden in it."""
    encoder = library().WatermarkEncoder()
    encoder.set_watermark("bytes", text.encode().ljust(MOST_BYTES, b"\0"))
    return Image.fromarray(_swapped(encoder.encode(_swapped(np.asarray(image)), METHOD)))


def read_mark(image: Image.Image) -> str | None:
    """Return the text hidden in `image`; None where there is none, or not enough of it is left."""
    if min(image.size) < SMALLEST_SIDE:
        return None
    decoder = library().WatermarkDecoder("bytes", 8 * MOST_BYTES)
    found = bytes(decoder.decode(_swapped(np.asarray(image.convert("RGB"))), METHOD)).rstrip(b"\0")
    try:
        text = found.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None


def _swapped(pixels: np.ndarray) -> np.ndarray:
    """Turn RGB into the BGR of OpenCV, or back."""
    return np.ascontiguousarray(pixels[:, :, ::-1])


def main() -> None:
    """Entry point: print what each file holds."""
    from personalar.fault import told

    parser = argparse.ArgumentParser(description="Read the invisible mark of pictures.")
    parser.add_argument("files", nargs="+", type=Path)
    with told("personalar.watermark"):
        for path in parser.parse_args().files:
            with Image.open(path) as image:
                print(f"{path}: {read_mark(image) or 'no mark found'}")


if __name__ == "__main__":
    main()
