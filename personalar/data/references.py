"""A run's photos as pictures in its folder.

references/00.png            the photo, scaled to 512 pixels at most
references/cropped/00.png    its middle, cropped to the best of the base's sizes; only if any photo is cut
references/redrawn/00.png    that, through the image tokenizer and back: about the best it could draw
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import fit
from personalar.core.png import is_whole_png, save_png
from personalar.models.base import Backend
from personalar.models.image_transforms import fill_size, to_uint8

LARGEST_PX = 512
LEAST_CUT = 0.005
"""Share of a photo; less is rounding."""


def save_references(folder: Path, photos: Sequence[Image.Image], layout: ProtocolConfig) -> None:
    """Write the photos and, where a base of `layout` cuts any, the crops to `folder`."""
    cuts = any(fit(photo.size, layout.sizes).cut >= LEAST_CUT for photo in photos)
    for index, photo in enumerate(photos):
        path = folder / f"{index:02d}.png"
        if not is_whole_png(path):
            small = photo.copy()
            small.thumbnail((LARGEST_PX, LARGEST_PX))
            save_png(small, path)
        path = folder / "cropped" / path.name
        if cuts and not is_whole_png(path):
            save_png(fill_size(photo, sizes=layout.sizes, resize=layout.resize), path)


def save_redrawn(folder: Path, photos: Sequence[Image.Image], backend: Backend) -> None:
    """Write each photo, through the image tokenizer of `backend` and back, to `folder`."""
    for index, photo in enumerate(photos):
        codes = backend.encode_images(backend.preprocess(photo).unsqueeze(0))
        pixels = to_uint8(backend.decode_images(codes)[0]).cpu().numpy()
        save_png(Image.fromarray(pixels), folder / "redrawn" / f"{index:02d}.png")
