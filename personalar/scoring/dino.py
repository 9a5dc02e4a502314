"""DINO: is it the same thing? The measure of subject fidelity (DreamBooth, arXiv 2208.12242, section 4.1).

Reads any folder whose model puts a class token first: `facebook/dino-vits16`, `facebook/dinov2-base`, and the
small one that ships with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from personalar.core.types import image_fingerprint
from personalar.scoring.checkpoints import load_model, resolve_folder, weights_name
from personalar.scoring.features import FeatureCache
from personalar.scoring.image_processor import ImagePreprocessor


class DinoScorer:
    """The class token of the last layer, L2-normalised.

    Args:
        path: a folder, a hub id ("owner/name@revision") or "package://nano/dino".
        batch_size: pictures in one forward.
        preprocess: "checkpoint" (its preprocessor_config.json) or "resize256_crop224".
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        batch_size: int = 64,
        preprocess: str = "checkpoint",
    ) -> None:
        from transformers import AutoModel

        folder = resolve_folder(path)
        self.name = weights_name(path, folder)
        self.device = torch.device(device)
        self.preprocess = (
            ImagePreprocessor.from_folder(folder)
            if preprocess == "checkpoint"
            else ImagePreprocessor.resize_256_crop_224()
        )
        self.preprocessing = self.preprocess.describe()
        # The pooler is a head for classification that DINO checkpoints do not have and we do not read.
        self.model = load_model(AutoModel, folder, optional=("pooler.",)).to(self.device)
        self._images = FeatureCache(self._batch, lambda image: image_fingerprint([image]), batch_size)

    def features(self, images: Sequence[Image]) -> Tensor:
        """Return (B, D), L2-normalised float32 on the CPU."""
        return self._images(images)

    def _batch(self, images: Sequence[Image]) -> Tensor:
        pixels = self.preprocess(images).to(self.device)  # (B, 3, H, W)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, 1 + patches, D)
        return normalize(hidden[:, 0], dim=-1).cpu()
