"""Convert pictures to pixel tensors as described in a checkpoint's `preprocessor_config.json`.

It uses transformers' image processors for Pillow, which need no torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from personalar.core.files import read_json
from personalar.core.types import Box

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters."""
READ = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
)  # fmt: skip
"""Entries of the file that are used, whatever the class of the checkpoint's own processor."""


class ImagePreprocessor:
    """Resize, crop, rescale, normalise."""

    def __init__(self, **settings: Any) -> None:
        """Create it from the entries of a preprocessor_config.json (see `READ`)."""
        from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

        # A single number as "size" means the shorter side for CLIP's processor, and a square for ViT's.
        kind = CLIPImageProcessorPil if settings.get("do_center_crop") else ViTImageProcessorPil
        self.processor: Any = kind(**{"resample": 3, **settings})

    @classmethod
    def from_folder(cls, folder: Path) -> ImagePreprocessor:
        """Read `folder`/preprocessor_config.json.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the file is damaged.
        """
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; a scorer's folder needs it beside config.json")
        try:
            found = read_json(path)
            return cls(**{name: found[name] for name in READ if found.get(name) is not None})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({error!s:.200}): copy it again") from error

    @classmethod
    def resize_256_crop_224(cls) -> ImagePreprocessor:
        """Return the evaluation transform of DINO's authors, which is the usual one of ImageNet."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return cls(size=256, do_center_crop=True, crop_size=224, image_mean=mean, image_std=std)

    def describe(self) -> str:
        """Return a description of all steps in one line, to be recorded with results."""
        made, steps = self.processor, []
        if made.do_resize:
            edge, whole = made.size.shortest_edge, f"resize {made.size.height}x{made.size.width}"
            steps.append(f"shorter side {edge}" if edge else whole)
            steps.append(RESAMPLING.get(made.resample, f"resample {made.resample}"))
        if made.do_center_crop:
            steps.append(f"centre crop {made.crop_size.height}x{made.crop_size.width}")
        normal = made.do_normalize
        steps.append(f"times {made.rescale_factor if made.do_rescale else 1:.6g}")
        steps.append("mean " + " ".join(f"{value:g}" for value in (made.image_mean if normal else (0, 0, 0))))
        steps.append("std " + " ".join(f"{value:g}" for value in (made.image_std if normal else (1, 1, 1))))
        return ", ".join(steps)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return normalised pixels (B, 3, H, W) in float32."""
        pixels: torch.Tensor = self.processor(
            [image.convert("RGB") for image in images], return_tensors="pt"
        )["pixel_values"]
        return pixels

    def view(self, size: tuple[int, int]) -> Box:
        """Return the part of a picture of `size` (width, height) that remains, as fractions of its sides.

        A crop can be larger than the picture, and the part then extends beyond it.
        """
        if not self.processor.do_center_crop:
            return 0.0, 0.0, 1.0, 1.0
        width, height = self._resized(size)
        across, down = self.processor.crop_size.width, self.processor.crop_size.height
        left, top = (width - across) // 2, (height - down) // 2
        return left / width, top / height, (left + across) / width, (top + down) / height

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that a picture of `size` is resized to."""
        if not self.processor.do_resize:
            return size
        target, short, long = self.processor.size, min(size), max(size)
        if not target.shortest_edge:
            return target.width, target.height
        longer = int(target.shortest_edge * long / short)  # truncated, as transformers does
        return (target.shortest_edge, longer) if size[0] <= size[1] else (longer, target.shortest_edge)
