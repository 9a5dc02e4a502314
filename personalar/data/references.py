"""Save a run's training photos as PNG files in its folder, for the reports.

references/00.png            the photo, scaled to at most 512 pixels
references/cropped/00.png    its center crop to the base's best image size; only if some photo is cropped
references/redrawn/00.png    that crop, encoded and decoded by the image tokenizer: an upper bound on quality
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


def save_references(folder: Path, photos: Sequence[Image.Image], layout: ProtocolConfig) -> None:
    """Write the photos to `folder` and, if the base crops any of them, all crops to `folder`/cropped.

    Args:
        folder: existing intact files in it are kept.
        photos: RGB images.
        layout: the base's image sizes and how it resizes.
    """
    cuts = any(fit(photo.size, layout.sizes).cut > 0 for photo in photos)
    for index, photo in enumerate(photos):
        path = folder / f"{index:02d}.png"
        if not is_whole_png(path):
            # thumbnail() changes an image in place, and the photo is still needed for training.
            small = photo.copy()
            small.thumbnail((LARGEST_PX, LARGEST_PX))
            save_png(small, path)
        path = folder / "cropped" / path.name
        # If one photo is cropped, all crops are written, so that rows of a report are complete.
        if cuts and not is_whole_png(path):
            save_png(fill_size(photo, sizes=layout.sizes, resize=layout.resize), path)


def save_redrawn(folder: Path, photos: Sequence[Image.Image], backend: Backend) -> None:
    """Encode and decode each photo with the image tokenizer of `backend`; write to `folder`/redrawn."""
    for index, photo in enumerate(photos):
        codes = backend.encode_images(backend.preprocess(photo).unsqueeze(0))
        pixels = to_uint8(backend.decode_images(codes)[0]).cpu().numpy()
        save_png(Image.fromarray(pixels), folder / "redrawn" / f"{index:02d}.png")
