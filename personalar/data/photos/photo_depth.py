"""Convert photos to 8-bit sRGB: higher bit depths, palettes, transparency and colour profiles."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with one channel of 16 bits."""


def plain_mode(image: Image.Image) -> Image.Image:
    """Convert to a mode that can be resized with interpolation; palette indices cannot be averaged."""
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("L") if image.mode == "1" else image


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a picture in one of `SIXTEEN_BITS` to 8 bits; Pillow's own conversion clips at 255 instead."""
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))


def on_white(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Composite a transparent picture on white.

    Returns:
        The picture (L or RGB, still in its own colour profile), and its alpha channel.
    """
    layered = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB"), layered.getchannel("A")


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Convert to sRGB, and return a note about the conversion or None.

    Args:
        image: any 8-bit mode.
        profile: the embedded ICC profile; a damaged one is ignored with a note.
    """
    if image.mode == "P":
        image = image.convert("RGB")
    note = None if image.mode in ("RGB", "L", "1") else f"converted from {image.mode}"
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower():
                return image.convert("RGB"), None
            srgb = ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(source, srgb, image.mode, "RGB")
            return transform.apply(image), "converted from its colour profile"
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            note = "its colour profile is damaged and was ignored"
    return image.convert("RGB"), note
