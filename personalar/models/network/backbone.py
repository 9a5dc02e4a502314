"""The backend of all Llama-like networks with a VQ image tokenizer; families derive from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from personalar.core.image_sizes import choose_bucket
from personalar.models.base import PICTURES_AT_ONCE, Head, Loss, TrainingSequence
from personalar.models.dropout import Dropout
from personalar.models.image_layout import ImageLayout
from personalar.models.image_transforms import preprocess, to_model_range
from personalar.models.network.cache import CacheWindow, KVCache
from personalar.models.network.llama import Llama
from personalar.models.network.vq import VQModel
from personalar.models.sharding import is_sharded


class LlamaBackend(nn.Module):
    """Transformer, image tokenizer and layout of one base model; see `base.Backend`.

    Subclasses add `reserved_ids`, `pad_id` and `trained_rows`.

    Raises:
        ValueError: the tokenizer does not fit the transformer or the image tokenizer.
    """

    def __init__(self, *, transformer: Llama, vq: VQModel, layout: ImageLayout) -> None:
        ids, rows = layout.encoder.vocab_size, transformer.config.vocab_size
        # Fewer ids than rows are fine: published embedding tables are padded.
        if ids > rows:
            raise ValueError(
                f"the tokenizer has {ids} ids, the model embeds only {rows}: take the tokenizer of the same "
                "repository"
            )
        codes = layout.codes.stop - layout.codes.start
        if codes != vq.config.num_embeddings:
            raise ValueError(
                f"the tokenizer names {codes} image codes, the image tokenizer has "
                f"{vq.config.num_embeddings}: they belong to different models"
            )
        super().__init__()
        self.transformer, self.vq, self.protocol = transformer, vq, layout
        self.sizes = layout.config.sizes
        self.code_offset = layout.codes.start
        self.endings, self.kept_endings = layout.endings, layout.kept_endings

    @property
    def device(self) -> torch.device:
        return self.word_table.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer; the VQ model is always float32."""
        return self.word_table.dtype

    @property
    def square(self) -> tuple[int, int]:
        return self.protocol.config.square

    @property
    def known_words(self) -> list[str] | None:
        return self.protocol.config.known_words

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
        sizes, resize = [size] if size else self.sizes, self.protocol.config.resize
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

    def code_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        return self.protocol.code_shape(*(size or self.square))

    def encode_text(self, text: str) -> list[int]:
        return self.protocol.encoder.encode_text(text)

    def prompt_ids(
        self, prompt: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        return self.protocol.prompt_ids(prompt, *(size or self.square), tokens)

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        return self.protocol.without_prompt(prompt)

    def negative_prompt(
        self, text: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        return self.protocol.negative_prompt(text, *(size or self.square), tokens)

    def training_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        return self.protocol.training_ids(prompt, codes, tokens, loss=loss)

    def unconditional_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        return self.protocol.unconditional_ids(prompt, codes, tokens, loss=loss)

    def grammar(self, h: int, w: int) -> list[int | None]:
        return self.protocol.grammar(h, w)

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
        return self.protocol.codes if loss == "image_tokens" else everything

    def head(self, loss: Loss) -> Head:
        return self.transformer.head(self.choices(loss))

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.head("image_tokens")(hidden)
