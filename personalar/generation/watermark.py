"""An invisible mark in a picture's pixels, for those who ask: `watermark=TEXT` of personalar.sample.

`python -m personalar.generation.watermark FILE...` reads it. The text and its checksum are one tile of 160 bits, laid
over the whole picture: each bit decides whether a coefficient of the coarse wavelet band (two levels,
PyWavelets) is a whole or a half multiple of a step (quantisation index modulation, Chen and Wornell 2001).
Reading adds up all copies of the tile, and tries every place that a crop may have moved it to. Whoever wants
the mark gone can remove it: it says where a picture comes from as long as nobody minds, as metadata does, but
it outlives JPEG.
"""

from __future__ import annotations

import argparse
import hashlib
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST_BYTES = 16
TILE = (10, 16)  # bits: those of the text and four bytes of checksum
LEVELS = 2
CELL = 2**LEVELS  # pixels a side of one coefficient
SMALLEST_SIDE = CELL * max(TILE)
STEP = 16.0  # pixels change by about two levels of 255 at most
WAVELET = {"wavelet": "bior4.4", "mode": "periodization"}  # smooth: no blocks to be seen
_LUMA = np.array([0.299, 0.587, 0.114])
_WHITEST = 255.0 * CELL  # a coefficient of a white picture
_KEY = hashlib.sha256(b"personalar").digest()[: TILE[0] * TILE[1] // 8]
_SCRAMBLE = np.unpackbits(np.frombuffer(_KEY, np.uint8)).reshape(TILE)  # a run of equal bits would show


def library() -> Any:
    """Return the module pywt.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pywt
    except ImportError as error:
        raise ValueError('watermark needs PyWavelets: pip install "personalar[watermark]"') from error
    return pywt


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
    """Return RGB `image` with `text` (`check_watermark`) hidden in its brightness."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    luma = _whole_cells(pixels) @ _LUMA
    coarse, *fine = library().wavedec2(luma, level=LEVELS, **WAVELET)
    halves = _spread(_encode(text), coarse.shape) / 2
    wanted = (np.round(coarse / STEP - halves) + halves) * STEP
    wanted = np.where(wanted > _WHITEST - STEP / 4, wanted - STEP, wanted)  # what no pixel could show
    wanted = np.where(wanted < STEP / 4, wanted + STEP, wanted)
    change = library().waverec2([wanted, *fine], **WAVELET) - luma
    pixels[: change.shape[0], : change.shape[1]] += change[..., None]
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def read_mark(image: Image.Image) -> str | None:
    """Return the text hidden in `image`; None where there is none, or not enough of it is left."""
    if min(image.size) < SMALLEST_SIDE:
        return None
    luma = np.asarray(image.convert("RGB")).astype(np.float64) @ _LUMA
    for top, left in product(range(CELL), range(CELL)):
        circle = _circle(luma[top:, left:])
        brighter = np.angle((circle**2).sum()) / 2  # a lighter picture turns all votes by one angle
        for angle in (0.0, brighter, brighter + np.pi):
            bits = (circle * np.exp(-1j * angle)).real < 0
            for down, right in product(range(TILE[0]), range(TILE[1])):
                text = _decode(np.roll(bits, (down, right), (0, 1)))
                if text is not None:
                    return text
    return None


def _whole_cells(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, ...) without the rows and columns that fill no cell."""
    height, width = (side // CELL * CELL for side in pixels.shape[:2])
    return pixels[:height, :width]


def _spread(tile: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return copies of a tile laid over `shape`."""
    copies = [-(-side // length) for side, length in zip(shape, TILE, strict=True)]
    return np.tile(tile, copies)[: shape[0], : shape[1]]


def _circle(luma: np.ndarray) -> np.ndarray:
    """Return for every bit of the tile the sum of its copies' votes: 1 for a 0, -1 for a 1, i between."""
    coarse = library().wavedec2(_whole_cells(luma), level=LEVELS, **WAVELET)[0]
    full = [-(-side // length) * length for side, length in zip(coarse.shape, TILE, strict=True)]
    votes = np.zeros(full, dtype=np.complex128)
    votes[: coarse.shape[0], : coarse.shape[1]] = np.exp(2j * np.pi * coarse / STEP)
    return votes.reshape(-1, TILE[0], votes.shape[1] // TILE[1], TILE[1]).sum((0, 2))


def _encode(text: str) -> np.ndarray:
    data = text.encode().ljust(MOST_BYTES, b"\0")
    data += zlib.crc32(data).to_bytes(4, "big")
    return np.unpackbits(np.frombuffer(data, np.uint8)).reshape(TILE) ^ _SCRAMBLE


def _decode(bits: np.ndarray) -> str | None:
    data = np.packbits(bits.astype(np.uint8) ^ _SCRAMBLE).tobytes()
    if zlib.crc32(data[:MOST_BYTES]).to_bytes(4, "big") != data[MOST_BYTES:]:
        return None
    try:
        return data[:MOST_BYTES].rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None


def main() -> None:
    """Entry point: print what each file holds."""
    from personalar.core.errors import told

    parser = argparse.ArgumentParser(description="Read the invisible mark of pictures.")
    parser.add_argument("files", nargs="+", type=Path)
    with told("personalar.generation.watermark"):
        for path in parser.parse_args().files:
            with Image.open(path) as image:
                print(f"{path}: {read_mark(image) or 'no mark found'}")


if __name__ == "__main__":
    main()
