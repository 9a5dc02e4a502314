"""The contract between a base model and everything above it.

The rest of the package works with token ids, image codes and images in [0, 1]. It does not depend on a VQ
model, a vocabulary or a checkpoint format. A backend does not sample, does not read the configuration and has
no inference state: the cache is an argument. Shapes: B batch, T tokens, D width, K image codes, (h, w) codes
of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from personalar.models.dropout import Dropout
from personalar.models.network.cache import CacheWindow, KVCache

Loss = str
"""The tokens with a loss: "image_tokens" (arXiv 2504.13162), or "answer", every token after the prompt
(Lumina-mGPT, arXiv 2408.02657)."""
PICTURES_AT_ONCE = 4
"""Images that are decoded together, or fewer if a base's image tokenizer needs too much memory for them."""
Head = Callable[[Tensor], Tensor]
"""Maps hidden states (..., D) to float32 logits (..., K)."""


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """One training example; `loss_mask[i]` is true where `ids[i]` is predicted from the ids before it."""

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    key: int = 0
    """Seed of everything random in a pass over this example (dropout); 63 bits."""
    is_class: bool = False
    """A class image of the base, and no photo."""
    frozen: Tensor | None = field(default=None, compare=False)
    """Logits (number of codes, K) of the frozen base for the codes in order, to distill from."""


class Backend(Protocol):
    """A base model. The attributes may be properties; only `transformer` is trained."""

    transformer: nn.Module
    """The network that can be trained, with the parameter names of the published checkpoints."""
    device: torch.device
    """The device of token ids and codes."""
    dtype: torch.dtype
    """Precision of the transformer."""
    sizes: Sequence[tuple[int, int]]
    """Supported image sizes (width, height) in pixels."""
    square: tuple[int, int]
    """The default size of a picture."""
    known_words: Sequence[str] | None
    """Every word of the captions the model was trained on; None: unknown."""
    max_tokens: int
    """Number of positions that the model was trained with."""
    reserved_ids: Sequence[int]
    """Ids that no text uses; learned identifiers take them."""
    pad_id: int
    """The id for padding."""
    word_table: Tensor
    """The embedding table (V, D)."""
    trained_rows: slice
    """The rows of `word_table` that pretraining changed. Rows of unused ids are still at random values."""
    code_offset: int
    """The id of image code 0; codes are one block of ids in order."""
    blocks: Sequence[nn.Module]
    """The layers of the network, all of one class: `decoder=compiled` compiles its `forward`."""
    block_inputs: nn.ModuleList
    """Modules of `transformer` that change what a block reads, in order; adapters append theirs. Each is
    called before every block with its index, ids (N,) and hidden states (N, D), and returns hidden states."""
    separate_ids: list[Sequence[int]]
    """Groups of ids; tokens of one group do not attend to those of another. Adapters add theirs."""
    endings: dict[int, int]
    """If a prompt contains a key of this dict, the value is appended as its last token (D-CoAR: [V] -> [I]).
    Adapters add entries."""
    kept_endings: set[int]
    """The values of `endings` that also end the unconditional context."""
    has_fixed_addresses: bool
    """True if every call of `forward` reads each weight at the same address, as CUDA graphs need."""
    is_sharded: bool
    """True if the weights are sharded (ZeRO 3): all processes must then run every pass together."""

    def preprocess(
        self,
        image: Image.Image,
        *,
        size: tuple[int, int] | None = None,
        crop: str = "center",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scale and crop a photo; return (3, H, W) float32 in [0, 1].

        Args:
            size: (width, height); by default `best_size`.
            crop: "center", or "random" for training.
            generator: source of the random crop.
        """

    def encode_images(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to codes (B, h, w) int64."""

    def decode_images(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to images (B, 3, H, W) in [0, 1]; each has the same bits in any batch."""

    def decode_bytes(self, images: int, grid: tuple[int, int]) -> int:
        """Return the bytes, without weights, that decoding `images` images of (h, w) codes needs."""

    def best_size(self, image: Image.Image) -> tuple[int, int]:
        """Return the one of `sizes` (width, height) that crops an upright `image` least."""

    def code_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the codes (h, w) of an image of `size` (width, height), by default of `square`."""

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text`; names of special tokens in it are plain text."""

    def prompt_ids(
        self, prompt: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before an image of `size` (width, height), by default of `square`.

        An id that is a value of `endings` comes last, wherever its name is in the prompt.

        Args:
            tokens: names that are one token each in this prompt, such as {"[V]": id}.
        """

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids before the image in the unconditional context of classifier-free guidance.

        Args:
            prompt: ids of the conditional context; a family may need their number.
        """

    def negative_prompt(
        self, text: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before the image in a context of guidance that asks for `text`, to avoid it.

        `size` and `tokens` are as for `prompt_ids`.

        Raises:
            ValueError: the guidance of this base has no words in its context.
        """

    def training_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        """Return `prompt` and the image of codes (h, w) as one training example."""

    def unconditional_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        """Return the training example of prompt dropout: the image of codes (h, w) without its prompt."""

    def choices(self, loss: Loss) -> slice:
        """Return the ids over which the softmax of `loss` is taken."""

    def grammar(self, h: int, w: int) -> Sequence[int | None]:
        """Return the tokens of an image of (h, w) codes in order: fixed ids, and None for a sampled code."""

    def new_cache(self, positions: Tensor) -> KVCache:
        """Allocate a cache for tokens at `positions` (B, L) int64; -1 for an empty slot."""

    def embed(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to embeddings (B, T, D)."""

    def forward(
        self,
        embeds: Tensor,
        cache: CacheWindow | None = None,
        dropout: Dropout | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D) with causal attention.

        Args:
            cache: earlier keys and values; the new ones are added.
            dropout: for a training pass.
            ids: (B, T), for `block_inputs` and `separate_ids`; None leaves them out, as in a step that feeds
                codes only.
        """

    def head(self, loss: Loss) -> Head:
        """Return the function from hidden states to logits of `choices(loss)`.

        The weights are read in this call. ZeRO 3 may have released them when the function is used.
        """

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to float32 logits of the image codes (..., K)."""
