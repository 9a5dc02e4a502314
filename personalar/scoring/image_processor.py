"""Convert pictures to pixel tensors as described in a checkpoint's `preprocessor_config.json`.

The result equals that of transformers' own image processors for CLIP and ViT (tested), but needs Pillow only
and no torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from personalar.core.files import read_json
from personalar.core.types import Box

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters."""


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessor:
    """Resize, crop, rescale, normalise."""

    shortest_edge: int | None
    """Pixels of the shorter side after resizing; None: resize to `size`."""
    size: tuple[int, int] | None
    """(height, width) to resize to if `shortest_edge` is None; None: no resizing."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop; None: no crop."""
    resample: int
    """Pillow's number of the filter: 2 bilinear, 3 bicubic."""
    scale: float
    """Factor for pixel values of 0 to 255."""
    mean: tuple[float, ...]
    """Subtracted per channel, after scaling."""
    std: tuple[float, ...]
    """Divisor per channel."""

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
            return cls._from_values(read_json(path))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({error!s:.200}): copy it again") from error

    @classmethod
    def _from_values(cls, found: dict[str, Any]) -> ImagePreprocessor:
        crops = found.get("do_center_crop", False)
        shortest_edge, size = _resize_rule(found, crops)
        return cls(
            shortest_edge=shortest_edge,
            size=size,
            crop=_height_width(found["crop_size"]) if crops else None,
            resample=int(found.get("resample", 3)),
            scale=float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0,
            mean=tuple(found["image_mean"]) if found.get("do_normalize", True) else (0.0, 0.0, 0.0),
            std=tuple(found["image_std"]) if found.get("do_normalize", True) else (1.0, 1.0, 1.0),
        )

    @classmethod
    def resize_256_crop_224(cls) -> ImagePreprocessor:
        """Return the evaluation transform of DINO's authors, which is the usual one of ImageNet."""
        return cls(
            shortest_edge=256,
            size=None,
            crop=(224, 224),
            resample=3,
            scale=1 / 255,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )

    def describe(self) -> str:
        """Return a description of all steps in one line, to be recorded with results."""
        steps = []
        if self.shortest_edge is not None:
            steps.append(f"shorter side {self.shortest_edge}")
        elif self.size is not None:
            steps.append(f"resize {self.size[0]}x{self.size[1]}")
        if steps:
            steps.append(RESAMPLING.get(self.resample, f"resample {self.resample}"))
        if self.crop is not None:
            steps.append(f"centre crop {self.crop[0]}x{self.crop[1]}")
        steps.append(f"times {self.scale:.6g}")
        steps.append("mean " + " ".join(f"{value:g}" for value in self.mean))
        steps.append("std " + " ".join(f"{value:g}" for value in self.std))
        return ", ".join(steps)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return normalised pixels (B, 3, H, W) in float32."""
        fitted = [self._fit(image.convert("RGB")) for image in images]
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in fitted])
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        # In float32 and in this order, as transformers does: another order differs in the last bit.
        normalised = (pixels * self.scale - mean) / std  # (B, H, W, 3)
        return torch.from_numpy(normalised.astype(np.float32)).permute(0, 3, 1, 2).contiguous()

    def view(self, size: tuple[int, int]) -> Box:
        """Return the part of a picture of `size` (width, height) that remains, as fractions of its sides.

        A crop can be larger than the picture, and the part then extends beyond it.
        """
        width, height = self._resized(size)
        if self.crop is None:
            return 0.0, 0.0, 1.0, 1.0
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        return left / width, top / height, (left + self.crop[1]) / width, (top + self.crop[0]) / height

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that a picture of `size` is resized to."""
        if self.shortest_edge is not None:
            short, long = sorted(size)
            longer = int(self.shortest_edge * long / short)  # truncated, as transformers does
            return (self.shortest_edge, longer) if size[0] <= size[1] else (longer, self.shortest_edge)
        return size if self.size is None else (self.size[1], self.size[0])

    def _fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop one RGB picture."""
        if self.shortest_edge is not None or self.size is not None:
            image = image.resize(self._resized(image.size), self.resample)
        if self.crop is None:
            return image
        height, width = self.crop
        # Rounded down, as transformers does; rounding up would shift the crop by a pixel.
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def _height_width(value: int | dict[str, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value["height"], value["width"])


def _resize_rule(found: dict, crops: bool) -> tuple[int | None, tuple[int, int] | None]:
    """Return (shortest_edge, (height, width)), one of which is None.

    A single number means the shorter side for CLIP's processor, which crops, but a square for ViT's, which
    does not crop.
    """
    if not found.get("do_resize", True):
        return None, None
    size = found["size"]
    # Old files of transformers contain one number instead of a dict.
    if isinstance(size, int):
        return (size, None) if crops else (None, (size, size))
    if "shortest_edge" in size:
        return size["shortest_edge"], None
    return None, _height_width(size)
