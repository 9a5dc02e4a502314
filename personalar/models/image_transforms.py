"""Resizing and cropping of photos exactly as in the training code of each base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from personalar.core.image_sizes import LEAST_KEPT, Size, choose_bucket, kept_share


def fill_size(
    image: Image.Image,
    *,
    sizes: Sequence[Size],
    resize: str = "halving",
    crop: str = "center",
    generator: torch.Generator | None = None,
) -> Image.Image:
    """Scale `image` so that it fills the best of `sizes`, and crop the rest; return RGB.

    Args:
        image: upright and without transparency, of any size.
        sizes: allowed (width, height) in pixels.
        resize: "halving" (Lumina-mGPT: a box filter halves the sides while possible, then one bicubic step),
            "lanczos" (Chameleon), "cover" (bicubic: Janus) or "area" (Emu3: as "cover", but stretched without
            a crop if that changes the shape by less than 2 %).
        crop: "center" for evaluation, "random" for training as upstream.
        generator: source of the random crop.
    """
    image = image.convert("RGB")
    width, height = choose_bucket(image.width, image.height, sizes)
    last_step = Image.Resampling.LANCZOS if resize == "lanczos" else Image.Resampling.BICUBIC
    if resize == "halving":
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if resize == "area" and kept_share(image.size, (width, height)) > LEAST_KEPT:
        return image.resize((width, height), last_step)
    # The larger factor, so that no side is shorter than the target.
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), last_step)
    spare = (image.width - width, image.height - height)
    left, top = spare[0] // 2, spare[1] // 2
    if crop == "random":
        left, top = (int(torch.randint(room + 1, (), generator=generator)) for room in spare)
    return image.crop((left, top, left + width, top + height))


def preprocess(image: Image.Image, **how: Any) -> Tensor:
    """Return `fill_size(image, **how)` as (3, H, W) float32 in [0, 1]."""
    # Divided in float64, so that `to_model_range` can recover the 8-bit levels.
    levels = torch.from_numpy(np.array(fill_size(image, **how), dtype=np.float64))
    return (levels / 255.0).permute(2, 0, 1).float().contiguous()


def to_model_range(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]; for 8-bit levels x exactly as upstream, x / 255 * 2 - 1 in float64."""
    levels = images.double() * 255.0
    whole = levels.round()
    # Values between levels, such as generated pictures, are not rounded.
    exact = torch.where((levels - whole).abs() < 1e-4, whole, levels)
    return (exact / 255.0 * 2.0 - 1.0).float()


def to_uint8(images: Tensor) -> Tensor:
    """Clamp (..., 3, H, W) to [0, 1] and map it to uint8 (..., H, W, 3), truncated as upstream."""
    return (images.float().clamp(0.0, 1.0) * 255.0).to(torch.uint8).movedim(-3, -1)
