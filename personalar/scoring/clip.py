"""CLIP features, for CLIP-I (similarity to the photos) and CLIP-T (similarity to the prompt).

Loads any checkpoint of transformers whose model has `get_image_features` and `get_text_features`: CLIP
(`openai/clip-vit-base-patch32` or the small one in this package) and SigLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from personalar.core.types import image_fingerprint
from personalar.generation.requests import shortened
from personalar.scoring.checkpoints import load_model, resolve_folder, weights_name
from personalar.scoring.features import FeatureCache
from personalar.scoring.image_processor import ImagePreprocessor


class ClipScorer:
    """Image and text features of a CLIP or SigLIP checkpoint.

    Args:
        path: a folder, a hub id ("owner/name@revision") or "package://nano/clip".
        device: such as "cuda"; features are returned on the CPU.
        batch_size: pictures or texts per forward pass.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = resolve_folder(path)
        self.name = weights_name(path, folder)
        self.device = torch.device(device)
        self.preprocess = ImagePreprocessor.from_folder(folder)
        self.preprocessing = self.preprocess.describe()
        self.model = load_model(AutoModel, folder).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.max_tokens = self.model.config.text_config.max_position_embeddings
        self._images = FeatureCache(self._image_batch, lambda image: image_fingerprint([image]), batch_size)
        self._texts = FeatureCache(self._text_batch, str, batch_size)

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Return features (B, D), L2-normalised float32 on the CPU."""
        return self._images(images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (B, D), L2-normalised float32 on the CPU; long texts are cut to CLIP's context."""
        return self._texts(texts)

    def cut_note(self, texts: Sequence[str]) -> str | None:
        """Return a note if some texts are longer than CLIP's context and are cut, or None."""
        lengths = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        long = [text for text, length in zip(texts, lengths, strict=True) if length > self.max_tokens]
        if not long:
            return None
        others = f", and of {len(long) - 1} other prompts" if len(long) > 1 else ""
        return f"CLIP-T reads only the first {self.max_tokens} tokens of {shortened(long[0])!r}{others}"

    def _image_batch(self, images: Sequence[Image]) -> Tensor:
        pixels = self.preprocess(images).to(self.device)  # (B, 3, H, W)
        return normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1).cpu()

    def _text_batch(self, texts: Sequence[str]) -> Tensor:
        # Padded to the whole context without a mask: SigLIP was trained so, and CLIP's text model is causal
        # and pools at the end of the text, so that padding changes nothing. All were trained on lower case.
        tokens = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self.device)  # (B, T)
        return normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=-1).cpu()
