"""Signs of damage that decoders pass over: a photo is used all the same, and its table says where to look.

An interrupted download or a power cut leaves zeros in the middle of a file, or its end is cut off and an end
marker put there. Decoders then fill the rest with one colour.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

ZEROS = bytes(512)
"""Compressed pixels hardly ever hold as many; a block of a disk is as large."""
FLAT_SHARE, FLAT_ROWS = 0.02, 16
"""Least share of a picture's height, and least number of rows, that are noted as flat."""
NEARLY_BLACK = 16
"""Brightest value, of 255, of a picture that is noted as black."""
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ALONE = (0xD8, 0x01)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xC6, 0xCA, 0xCE)


@dataclass(kw_only=True)
class JpegFacts:
    """What the markers of a JPEG file say, without decoding."""

    scans: int = 0
    zeros: bool = False
    """Its compressed pixels hold a block of zeros."""
    progressive: bool = False
    left: dict[tuple[int, int], int] = field(default_factory=dict)
    """Bits that are still missing of each coefficient (component, number) that some scan has begun."""

    @property
    def unfinished(self) -> bool:
        """The last passes of a progressive file are missing."""
        begun = {component for component, _ in self.left}
        whole = all((component, number) in self.left for component in begun for number in range(64))
        return self.progressive and (not whole or any(self.left.values()))


def jpeg_facts(data: bytes) -> JpegFacts:
    """Walk the markers of a JPEG file up to its end marker."""
    facts, at = JpegFacts(), 2
    while (found := _MARKER.search(data, at)) is not None and data[found.end() - 1] != _END:
        kind, at = data[found.end() - 1], found.end()
        if kind in _ALONE:
            continue
        start, at = at + 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if kind in _FRAMES:
            facts.progressive = kind in _PROGRESSIVE
        if kind == _SCAN:
            facts.scans += 1
            _note_scan(facts, data[start:at])
            after = _MARKER.search(data, at)
            facts.zeros = facts.zeros or data.find(ZEROS, at, after.start() if after else len(data)) >= 0
    return facts


def _note_scan(facts: JpegFacts, header: bytes) -> None:
    """Note the coefficients that a scan brings: the header names components, the first and last, the bits."""
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count:
        return
    first, last, bits = header[1 + 2 * count : 4 + 2 * count]
    for component in header[1 : 1 + 2 * count : 2]:
        facts.left |= {(component, number): bits & 15 for number in range(first, min(last, 63) + 1)}


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the chunks of a WebP file."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, at + 8 + size
        at += 8 + size + size % 2


def without_bad_notes(data: bytes) -> bytes:
    """Return a PNG file without the parts that it can do without and whose checksums are wrong.

    Raises:
        ValueError: the checksum of a part with pixels is wrong, which Pillow does not look at.
    """
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + struct.unpack(">I", data[at : at + 4])[0]
        if end > len(data):  # cut off: Pillow says so
            break
        name, right = data[at + 4 : at + 8], int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(data[at + 4 : end - 4]) == right:
            kept.append(data[at:end])
        elif not name[0] & 32:  # a small first letter marks what others may leave out
            raise ValueError(f"the checksum of {name.decode('ascii', 'replace')} is wrong")
        at = end
    return b"".join([*kept, data[at:]])


def file_notes(data: bytes, kind: str) -> list[str]:
    """Return notes on the bytes of a file of Pillow's format `kind`."""
    zeros, notes = False, []
    if kind in ("JPEG", "MPO"):
        facts = jpeg_facts(data)
        zeros = facts.zeros
        if facts.unfinished:
            notes.append("its last passes are missing: damaged, less sharp than it was")
    if kind == "WEBP":
        pixels = [(start, end) for name, start, end in _chunks(data) if name in (b"VP8 ", b"VP8L")]
        zeros = any(data.find(ZEROS, start, end) >= 0 for start, end in pixels)
    if zeros:
        notes.append("its file holds zeros in the place of pixels: damaged? Look at it")
    return notes


def pixel_notes(image: Image.Image) -> list[str]:
    """Return notes on an RGB picture: rows of one colour, other than white, or nothing but black."""
    pixels = np.asarray(image)
    brightest = int(pixels.max())
    if brightest < NEARLY_BLACK:
        return [f"nearly black: the brightest value is {brightest} of 255"]
    probe = pixels[:, :: max(1, image.width // 16)]
    flat = (probe == probe[:, :1]).all(axis=(1, 2)) & ~(probe == 255).all(axis=(1, 2))
    for row in np.flatnonzero(flat):
        flat[row] = (pixels[row] == pixels[row, :1]).all()
    steps = np.diff(np.concatenate(([0], flat.astype(np.int8), [0])))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if not len(begins) or (ends - begins).max() < max(FLAT_ROWS, FLAT_SHARE * image.height):
        return []
    longest = int((ends - begins).argmax())
    first, last = int(begins[longest]), int(ends[longest])
    share = f"{(last - first) / image.height:.0%}"
    return [f"rows {first} to {last} ({share}) are of one colour each: damaged there? Look at it"]
