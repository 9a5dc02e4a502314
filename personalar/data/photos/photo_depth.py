"""Convert photos to 8-bit sRGB: higher bit depths, palettes, transparency and colour profiles."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes with one channel of more than 8 bits."""


def plain_mode(image: Image.Image) -> Image.Image:
    """Convert to a mode that can be resized with interpolation; palette indices cannot be averaged."""
    if image.mode in DEEP[:4]:
        return image.convert("I")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("L") if image.mode == "1" else image


def to_8_bits(image: Image.Image, *, sixteen: bool) -> tuple[Image.Image, str]:
    """Scale a single-channel picture to 8 bits, and return a note about it.

    Pillow's own conversion clips at 255 instead of scaling.

    Args:
        image: in one of the `DEEP` modes.
        sixteen: the value range is 0 to 65535; otherwise it is estimated from the values.
    """
    values, note = scaled(np.asarray(image, dtype=np.float64), top=65535.0 if sixteen else None)
    return Image.fromarray(values, "L"), "converted to 8 bits" if sixteen else note


def scaled(values: np.ndarray, *, top: float | None = None) -> tuple[np.ndarray, str]:
    """Scale `values` from [0, top] to uint8, and return a note about their range.

    Without `top`, it is the smallest of 1, 255 and 65535 that covers the values, or else their maximum.
    """
    finite = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    least, most = float(finite.min()), float(finite.max())
    if top is None:
        top = next((one for one in (1.0, 255.0, 65535.0) if most <= one), most)
    note = f"converted to 8 bits from values of {least:.4g} to {most:.4g}"
    return np.clip(finite * (255.0 / top), 0, 255).astype(np.uint8), note


def on_white(image: Image.Image) -> Image.Image:
    """Composite a transparent picture on white; return L or RGB, still in its own colour profile."""
    layered = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB")


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
