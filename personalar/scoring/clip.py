"""CLIP: does the picture look like the references (CLIP-I), does it show what the prompt says (CLIP-T)?

Reads any `CLIPModel` folder: `openai/clip-vit-base-patch32` and the small one that ships with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from personalar.generation.requests import shortened
from personalar.scoring.checkpoints import load_model, resolve_folder, weights_name
from personalar.scoring.image_processor import ImagePreprocessor


class ClipScorer:
    """Image and text features of a CLIP checkpoint.

    Args:
        path: a folder, a hub id ("owner/name@revision") or "package://nano/clip".
        batch_size: pictures or texts in one forward.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = resolve_folder(path)
        self.name = weights_name(path, folder)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.preprocess = ImagePreprocessor.from_folder(folder)
        self.preprocessing = self.preprocess.describe()
        self.model = load_model(CLIPModel, folder).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.max_tokens = self.model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Return (B, D), L2-normalised float32 on the CPU."""
        parts = [
            self._image_batch(images[i : i + self.batch_size]) for i in range(0, len(images), self.batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.projection_dim)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return (B, D), L2-normalised float32 on the CPU; texts longer than CLIP's context are cut."""
        parts = [
            self._text_batch(texts[i : i + self.batch_size]) for i in range(0, len(texts), self.batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.projection_dim)

    def cut_note(self, texts: Sequence[str]) -> str | None:
        """Return a sentence on those of `texts` that are longer than what CLIP reads, or None."""
        lengths = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        long = [text for text, length in zip(texts, lengths, strict=True) if length > self.max_tokens]
        if not long:
            return None
        others = f", and of {len(long) - 1} other prompts" if len(long) > 1 else ""
        return f"CLIP-T judges the first {self.max_tokens} tokens alone of {shortened(long[0])!r}{others}"

    def _image_batch(self, images: Sequence[Image]) -> Tensor:
        pixels = self.preprocess(images).to(self.device)  # (B, 3, H, W)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(pooled), dim=-1).float().cpu()

    def _text_batch(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)  # (B, T)
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return normalize(self.model.text_projection(pooled), dim=-1).float().cpu()
