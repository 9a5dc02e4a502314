"""Detect damaged photos that image decoders accept without an error.

An interrupted download or a power cut can leave a block of zeros in a file, or a truncated file with a valid
end marker. Decoders fill the missing part with one colour and report nothing. Such a photo is still used, but
the table of photos warns about it.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

ZEROS = bytes(512)
"""One disk sector. Intact compressed pixel data practically never contains this many zeros in a row."""
FLAT_SHARE, FLAT_ROWS = 0.02, 16
"""Rows of one colour cause a warning from this share of the height, and at least this many rows."""
NEARLY_BLACK = 16
"""A picture causes a warning if its brightest value, of 255, is below this."""
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# JPEG markers (ITU-T T.81, table B.1). FF 00 is a stuffed byte of pixel data, FF FF is padding, and D0 to D7
# are restart markers inside a scan: none of them starts a segment.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ALONE = (0xD8, 0x01)  # markers without a length field
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame; C4, C8 and CC are tables
_HUFFMAN = (0xC0, 0xC1, 0xC2)  # arithmetic coding reads on after the end of a scan
_MORE = bytes(range(255)) * 4  # compressed pixel data of no picture
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xC6, 0xCA, 0xCE)


@dataclass(kw_only=True)
class JpegFacts:
    """Properties of a JPEG file that its markers show without decoding pixels."""

    scans: int = 0
    """Number of scans; more than one per component means a progressive file."""
    zeros: bool = False
    """True if the compressed pixel data contains a block of zeros."""
    frame: int = 0
    """Marker of the frame, which names the kind of coding."""
    end: int | None = None
    """Offset of the end marker; None if it is missing."""
    missing_bits: dict[tuple[int, int], int] = field(default_factory=dict)
    """(component, DCT coefficient 0-63) -> low bits that the scans so far have not delivered."""

    @property
    def unfinished(self) -> bool:
        """True for a progressive file whose last scans are missing."""
        if self.frame not in _PROGRESSIVE:
            return False
        for component in {component for component, _ in self.missing_bits}:
            if any((component, number) not in self.missing_bits for number in range(64)):
                return True
        return any(self.missing_bits.values())


def jpeg_facts(data: bytes) -> JpegFacts:
    """Read the segments of a JPEG file up to its end marker; `data` is the whole file."""
    facts, at = JpegFacts(), 2
    while (found := _MARKER.search(data, at)) is not None and data[found.end() - 1] != _END:
        kind, at = data[found.end() - 1], found.end()
        if kind in _ALONE:
            continue
        # A segment's length includes its own two bytes; max() prevents an endless loop on a damaged length.
        start, at = at + 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if kind in _FRAMES:
            facts.frame = kind
        if kind == _SCAN:
            facts.scans += 1
            _note_scan(facts, data[start:at])
            after = _MARKER.search(data, at)
            facts.zeros = facts.zeros or data.find(ZEROS, at, after.start() if after else len(data)) >= 0
    facts.end = found.start() if found is not None else None
    return facts


def ends_early(data: bytes, facts: JpegFacts) -> bool:
    """Return True if pixels are missing from the last scan of a JPEG file.

    Decoders skip bytes after a complete scan; after an incomplete one they change the picture.
    """
    if facts.end is None or facts.frame not in _HUFFMAN:
        return False
    return _half_size(data) != _half_size(data[: facts.end] + _MORE + data[facts.end :])


def _half_size(data: bytes) -> bytes:
    """Return the pixels of a JPEG file, at half its size to save memory."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.draft(None, (image.width // 2, image.height // 2))
        return image.tobytes()


def _note_scan(facts: JpegFacts, header: bytes) -> None:
    """Record which coefficients a scan delivers, and how many of their low bits it leaves out."""
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count:
        return
    # After the components: first and last coefficient (Ss, Se) and the bit positions (Ah, Al).
    first, last, bits = header[1 + 2 * count : 4 + 2 * count]
    for component in header[1 : 1 + 2 * count : 2]:
        for number in range(first, min(last, 63) + 1):
            facts.missing_bits[component, number] = bits & 15


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) for each chunk of a WebP file."""
    at = 12  # after "RIFF", the size and "WEBP"
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, at + 8 + size
        at += 8 + size + size % 2  # RIFF pads chunks to an even length


def without_damaged_chunks(data: bytes) -> bytes:
    """Return a PNG file without its damaged ancillary chunks (text, colour profile, time and the like).

    Raises:
        ValueError: the checksum of a critical chunk is wrong, which Pillow does not check.
    """
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        # A chunk is length (4 bytes), name (4), data and CRC (4).
        end = at + 12 + struct.unpack(">I", data[at : at + 4])[0]
        if end > len(data):  # truncated: Pillow raises an error for it
            break
        name, checksum = data[at + 4 : at + 8], int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(data[at + 4 : end - 4]) == checksum:
            kept.append(data[at:end])
        elif not name[0] & 32:  # a lower-case first letter marks an ancillary chunk
            raise ValueError(f"the checksum of chunk {name.decode('ascii', 'replace')} is wrong")
        at = end
    return b"".join([*kept, data[at:]])


def file_notes(data: bytes, kind: str) -> list[str]:
    """Return warnings about the bytes of a file; `kind` is Pillow's name of its format."""
    zeros, notes = False, []
    if kind in ("JPEG", "MPO"):
        facts = jpeg_facts(data)
        zeros = facts.zeros
        if facts.unfinished:
            notes.append("the last scans are missing: damaged, and less sharp than the original")
        elif ends_early(data, facts):
            notes.append("the file ends before the last pixels: damaged, check the picture")
    if kind == "WEBP":
        for name, start, end in _chunks(data):
            if name in (b"VP8 ", b"VP8L") and data.find(ZEROS, start, end) >= 0:
                zeros = True
    if zeros:
        notes.append("zeros where pixel data should be: probably damaged, check the picture")
    return notes


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
