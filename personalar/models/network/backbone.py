"""The backend of all Llama-like networks with a VQ image tokenizer; families derive from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import choose_bucket
from personalar.models.base import PICTURES_AT_ONCE, Head, Loss
from personalar.models.dropout import Dropout
from personalar.models.image_layout import ImageLayout
from personalar.models.image_transforms import preprocess, to_model_range
from personalar.models.network.cache import CacheWindow, KVCache
from personalar.models.network.llama import Llama
from personalar.models.network.vq import VQModel
from personalar.models.sharding import is_sharded
from personalar.models.text_encoder import TextEncoder


class LlamaBackend(ImageLayout, nn.Module):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`.

    Subclasses add `reserved_ids`, `pad_id`, `trained_rows` and the parts of `ImageLayout`.

    Args:
        codes: the ids of the image codes.

    Raises:
        ValueError: the tokenizer does not fit the transformer or the image tokenizer, or `layout` does not.
    """

    def __init__(
        self, *, transformer: Llama, vq: VQModel, tokenizer: TextEncoder, layout: ProtocolConfig, codes: slice
    ) -> None:
        ids, rows, downsample = tokenizer.vocab_size, transformer.config.vocab_size, vq.config.downsample
        if layout.grid_px % downsample:
            raise ValueError(
                f"grid_px={layout.grid_px} must be a multiple of {downsample}, the pixels per code"
            )
        # Fewer ids than rows are fine: published embedding tables are padded.
        if ids > rows:
            raise ValueError(
                f"the tokenizer has {ids} ids, the model embeds only {rows}: take the tokenizer of the same "
                "repository"
            )
        if codes.stop - codes.start != vq.config.num_embeddings:
            raise ValueError(
                f"the tokenizer names {codes.stop - codes.start} image codes, the image tokenizer has "
                f"{vq.config.num_embeddings}: they belong to different models"
            )
        super().__init__()
        self.transformer, self.vq, self.tokenizer, self.layout = transformer, vq, tokenizer, layout
        self.sizes, self.square, self.known_words = layout.sizes, layout.square, layout.known_words
        self.downsample, self.codes, self.code_offset = downsample, codes, codes.start
        self.endings, self.kept_endings = {}, set()

    @property
    def device(self) -> torch.device:
        return self.word_table.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer; the VQ model is always float32."""
        return self.word_table.dtype

    @property
    def max_tokens(self) -> int:
        return self.transformer.config.max_position_embeddings

    @property
    def word_table(self) -> Tensor:
        return self.transformer.model.embed_tokens.weight

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.model.layers

    @property
    def block_inputs(self) -> nn.ModuleList:
        return self.transformer.block_inputs

    @property
    def separate_ids(self) -> list[Sequence[int]]:
        return self.transformer.separate_ids

    @property
    def has_fixed_addresses(self) -> bool:
        """False if float32 weights are cast in every use (parametrized), or sharded (ZeRO 3)."""
        # A parametrized weight is computed anew in every pass, at another address.
        return not any(map(is_parametrized, self.transformer.modules())) and not self.is_sharded

    @property
    def is_sharded(self) -> bool:
        return any(map(is_sharded, self.transformer.parameters()))

    def preprocess(
        self,
        image: Image.Image,
        *,
        size: tuple[int, int] | None = None,
        crop: str = "center",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        sizes, resize = [size] if size else self.sizes, self.layout.resize
        return preprocess(image, sizes=sizes, resize=resize, crop=crop, generator=generator)

    def best_size(self, image: Image.Image) -> tuple[int, int]:
        return choose_bucket(image.width, image.height, self.sizes)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        pixels = to_model_range(images.to(self.device))
        # In chunks, because the VQ model needs much memory at full resolution.
        at_once = self.vq.config.images_at_once(images.shape[2] * images.shape[3])
        return torch.cat([self.vq.encode(chunk) for chunk in pixels.split(at_once)])

    @torch.no_grad()
    def decode_images(self, codes: Tensor) -> Tensor:
        config = self.vq.config
        at_once = min(PICTURES_AT_ONCE, config.images_at_once(codes[0].numel() * config.downsample**2))
        # All batches have one size: convolutions differ in the last bit between sizes, and conversion to
        # uint8 can make that visible.
        padded = torch.cat((codes, codes[-1:].expand(-len(codes) % at_once, -1, -1)))
        pixels = [self.vq.decode(chunk) for chunk in padded.to(self.device).split(at_once)]
        # From [-1, 1] of the VQ model to [0, 1].
        return (torch.cat(pixels)[: len(codes)] + 1.0) / 2.0

    def decode_bytes(self, images: int, grid: tuple[int, int]) -> int:
        config = self.vq.config
        return config.decode_bytes(images, grid[0] * grid[1] * config.downsample**2)

    def new_cache(self, positions: Tensor) -> KVCache:
        return self.transformer.new_cache(positions)

    def embed(self, ids: Tensor) -> Tensor:
        return self.transformer.embed(ids)

    def forward(
        self,
        embeds: Tensor,
        cache: CacheWindow | None = None,
        dropout: Dropout | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        return self.transformer(embeds, cache, dropout, ids)

    def choices(self, loss: Loss) -> slice:
        everything = slice(0, self.transformer.config.vocab_size)
        return self.codes if loss == "image_tokens" else everything

    def head(self, loss: Loss) -> Head:
        return self.transformer.head(self.choices(loss))

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.head("image_tokens")(hidden)
