"""DINO features, for subject fidelity (DreamBooth, arXiv 2208.12242, section 4.1).

Loads any vision transformer with a class token, such as `facebook/dino-vits16`, `facebook/dinov2-base` or the
small one in this package.
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
        device: such as "cuda"; features are returned on the CPU.
        batch_size: pictures per forward pass.
        preprocess: "checkpoint" (its preprocessor_config.json) or "resize256_crop224" (the transform of
            DINO's authors).
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
        # The pooler is a classification head, which DINO checkpoints do not contain and which is not used.
        self.model = load_model(AutoModel, folder, optional=("pooler.",)).to(self.device)
        self._images = FeatureCache(self._batch, lambda image: image_fingerprint([image]), batch_size)

    def features(self, images: Sequence[Image]) -> Tensor:
        """Return features (B, D), L2-normalised float32 on the CPU."""
        return self._images(images)

    @torch.inference_mode()
    def patches(self, images: Sequence[Image]) -> Tensor:
        """Return (B, h, w, D): the features of each patch, L2-normalised float32 on the CPU."""
        pixels = self.preprocess(images).to(self.device)  # (B, 3, H, W)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, class and other tokens + h w, D)
        side = self.model.config.patch_size
        height, width = pixels.shape[2] // side, pixels.shape[3] // side
        # From the end, because the number of other tokens differs: DINOv2 can have registers.
        return normalize(hidden[:, -height * width :], dim=-1).unflatten(1, (height, width)).cpu()

    def _batch(self, images: Sequence[Image]) -> Tensor:
        pixels = self.preprocess(images).to(self.device)  # (B, 3, H, W)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, 1 + patches, D)
        return normalize(hidden[:, 0], dim=-1).cpu()
