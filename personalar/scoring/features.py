"""Features of pictures and texts, by CLIP and DINO; none is computed twice.

All features are L2-normalised float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from personalar.core.types import image_fingerprint
from personalar.generation.requests import shortened
from personalar.scoring.checkpoints import load_model, resolve_folder, weights_name
from personalar.scoring.image_processor import ImagePreprocessor


class FeatureCache:
    """Computes features in batches and keeps them; 8192 of width 768 need 25 MB.

    References, bounds, diversity, drift and repeated prompts need features of the same pictures and texts.

    Args:
        forward: maps up to `batch_size` items to features (B, D), float32 on the CPU.
        key: returns equal keys for items with the same content.
        batch_size: items per forward pass.
    """

    def __init__(
        self, forward: Callable[[Sequence[Any]], Tensor], key: Callable[[Any], Hashable], batch_size: int
    ) -> None:
        self.forward, self.key, self.batch_size = forward, key, batch_size
        self.known: dict[Hashable, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Return features (B, D) of B items; shape (0, 0) without items."""
        keys = [self.key(item) for item in items]
        unknown = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        places = list(unknown)
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            rows = self.forward([unknown[key] for key in part])
            self.known.update(zip(part, rows, strict=True))
        return torch.stack([self.known[key] for key in keys]) if keys else torch.empty(0, 0)


class _Scorer:
    """A frozen checkpoint of transformers with its preprocessing.

    Args:
        path: a folder, a hub id ("owner/name@revision") or "package://nano/clip".
        device: such as "cuda".
        preprocess: "checkpoint" (its preprocessor_config.json) or "resize256_crop224" (the transform of
            DINO's authors).
    """

    def __init__(self, path: str | Path, *, device: str, preprocess: str = "checkpoint") -> None:
        from transformers import AutoModel

        self.folder = resolve_folder(path)
        self.name = weights_name(path, self.folder)
        self.preprocess = (
            ImagePreprocessor.from_folder(self.folder)
            if preprocess == "checkpoint"
            else ImagePreprocessor.resize_256_crop_224()
        )
        self.preprocessing = self.preprocess.describe()
        # DINO's pooler is a classification head, which its checkpoints do not contain and which is not used.
        self.model = load_model(AutoModel, self.folder, optional=("pooler.",)).to(device)

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Return the input of the network (B, 3, H, W)."""
        return self.preprocess(images).to(self.model.device)


class ClipScorer(_Scorer):
    """CLIP, for CLIP-I (similarity to the photos) and CLIP-T (similarity to the prompt).

    The checkpoint can be any whose model has `get_image_features` and `get_text_features`: CLIP
    (`openai/clip-vit-base-patch32` or the small one in this package) and SigLIP.

    Attributes:
        image_features: returns features (B, D) of pictures.
        text_features: returns features (B, D) of texts; long texts are cut to CLIP's context.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import AutoTokenizer

        super().__init__(path, device=device)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        self.max_tokens = self.model.config.text_config.max_position_embeddings
        self.image_features = FeatureCache(self._image_batch, _content, batch_size)
        self.text_features = FeatureCache(self._text_batch, str, batch_size)

    def cut_note(self, texts: Sequence[str]) -> str | None:
        """Return a note if some texts are longer than CLIP's context and are cut, or None."""
        lengths = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        long = [text for text, length in zip(texts, lengths, strict=True) if length > self.max_tokens]
        if not long:
            return None
        others = f", and of {len(long) - 1} other prompts" if len(long) > 1 else ""
        return f"CLIP-T reads only the first {self.max_tokens} tokens of {shortened(long[0])!r}{others}"

    def _image_batch(self, images: Sequence[Image]) -> Tensor:
        found = self.model.get_image_features(pixel_values=self.pixels(images))
        return normalize(found.pooler_output, dim=-1).cpu()

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
        ids = tokens["input_ids"].to(self.model.device)  # (B, T)
        return normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=-1).cpu()


class DinoScorer(_Scorer):
    """DINO, for subject fidelity (DreamBooth, arXiv 2208.12242, section 4.1).

    The checkpoint can be any vision transformer with a class token, such as `facebook/dino-vits16`,
    `facebook/dinov2-base` or the small one in this package.

    Attributes:
        features: returns features (B, D) of pictures: the class token of the last layer.
    """

    def __init__(
        self, path: str | Path, *, device: str = "cpu", batch_size: int = 64, preprocess: str = "checkpoint"
    ) -> None:
        super().__init__(path, device=device, preprocess=preprocess)
        self.features = FeatureCache(self._batch, _content, batch_size)

    @torch.inference_mode()
    def patches(self, images: Sequence[Image]) -> Tensor:
        """Return the features of each patch (B, h, w, D)."""
        pixels = self.pixels(images)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, class and other tokens + h w, D)
        side = self.model.config.patch_size
        height, width = pixels.shape[2] // side, pixels.shape[3] // side
        # From the end, because the number of other tokens differs: DINOv2 can have registers.
        return normalize(hidden[:, -height * width :], dim=-1).unflatten(1, (height, width)).cpu()

    def _batch(self, images: Sequence[Image]) -> Tensor:
        pixels = self.pixels(images)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, 1 + patches, D)
        return normalize(hidden[:, 0], dim=-1).cpu()


def _content(image: Image) -> str:
    return image_fingerprint([image])
