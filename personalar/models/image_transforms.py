"""From a photograph to the pixels that a model was trained on: sizes, resize and crop, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from personalar.core.image_sizes import Size, choose_bucket, kept_share

LEAST_KEPT = 0.98
"""Of a photo that fills a size whose sides were rounded; it is stretched where a crop would keep more."""


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Return RGB with transparency blended on white, truncated to 8 bit as upstream does."""
    if image.mode == "RGB":
        return image
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255.0
    if alpha.min() == 1.0:
        return image.convert("RGB")
    return Image.fromarray(((1.0 - alpha) * 255.0 + alpha * rgba[..., :3]).astype(np.uint8))


def fill_size(
    image: Image.Image,
    *,
    sizes: Sequence[Size],
    resize: str = "halving",
    crop: str = "center",
    generator: torch.Generator | None = None,
) -> Image.Image:
    """Return `image` in RGB, filling the best of `sizes`; the rest is cropped.

    Args:
        image: any mode and size; turned upright by its EXIF orientation.
        resize: "halving" (Lumina-mGPT: halvings by box filter, then one bicubic step), or one step after the
            transparency: "lanczos" (Chameleon), "cover" (bicubic: Janus) or "area" (the same, or a stretch
            without a crop where that changes the shape by less than 2 %: Emu3).
        crop: "center" for evaluation; "random" for training, as upstream trained.
        generator: source of the random crop.
    """
    if crop not in ("center", "random"):
        raise ValueError(f"crop={crop!r} is unknown; use 'center' or 'random'")
    if crop == "random" and generator is None:
        raise ValueError("crop='random' needs a torch.Generator, so that the crop can be repeated")
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("RGB", "RGBA"):  # palettes and the like cannot be interpolated
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    width, height = choose_bucket(image.width, image.height, sizes)
    last_step = Image.Resampling.BICUBIC
    if resize != "halving":
        image = flatten_alpha(image)
        last_step = Image.Resampling.LANCZOS if resize == "lanczos" else last_step
    else:
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if resize == "area" and kept_share(image.size, (width, height)) > LEAST_KEPT:
        return image.resize((width, height), last_step)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), last_step)
    spare = (image.width - width, image.height - height)
    left, top = spare[0] // 2, spare[1] // 2
    if crop == "random":
        left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in spare)
    return flatten_alpha(image.crop((left, top, left + width, top + height)))


def preprocess(image: Image.Image, **how: Any) -> Tensor:
    """Return (3, H, W) float32 in [0, 1], H and W those of the best of `sizes`; arguments as `fill_size`."""
    levels = torch.from_numpy(np.array(fill_size(image, **how), dtype=np.float64))
    return (levels / 255.0).permute(2, 0, 1).float().contiguous()


def to_model_range(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1] with the bits of x / 255 * 2 - 1 in float64 where x was an 8-bit level."""
    levels = images.double() * 255.0
    whole = levels.round()
    exact = torch.where((levels - whole).abs() < 1e-4, whole, levels)
    return (exact / 255.0 * 2.0 - 1.0).float()


def to_uint8(images: Tensor) -> Tensor:
    """Map (..., 3, H, W), clamped to [0, 1], to 8-bit (..., H, W, 3), truncating as upstream does."""
    return (images.float().clamp(0.0, 1.0) * 255.0).to(torch.uint8).movedim(-3, -1)
