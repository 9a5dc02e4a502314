"""The Janus transformer: a Llama with an embedding table and a head for image codes, and no text head.

Published checkpoints embed an image code by a narrow table and an MLP. Both are frozen here, so the
embeddings of all codes are computed once, when the model is loaded. Ids from `vocab_size` on are image codes.
Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from personalar.config.fields import limits
from personalar.models.base import Head
from personalar.models.network.llama import Llama, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class JanusConfig(LlamaConfig):
    """Sizes of the transformer."""

    num_codes: int = field(default=16384, metadata=limits(1, 2**20))
    """Size of the codebook."""
    code_dim: int = field(default=8, metadata=limits(1, 2**14))
    """Width of the narrow table of codes."""
    head_size: int = field(default=2048, metadata=limits(1, 2**16))
    """Width of the hidden layer of the image head."""

    def build(self) -> JanusTransformer:
        """Return a transformer of this shape, on torch's default device."""
        return JanusTransformer(self)

    def mlp_config(self, width: int) -> Any:
        """Return transformers' configuration of the image head or aligner, whose layers have `width`."""
        from transformers import JanusVQVAEConfig

        return JanusVQVAEConfig(
            embed_dim=self.code_dim,
            num_embeddings=self.num_codes,
            projection_dim=width,
            image_token_embed_dim=self.hidden_size,
        )


class JanusTransformer(Llama):
    """Maps ids of words and codes to hidden states, and these to logits of codes."""

    config: JanusConfig

    def __init__(self, config: JanusConfig) -> None:
        from transformers.models.janus.modeling_janus import JanusVQVAEHead

        super().__init__(config)
        # Filled by `janus_weights.network_tensors`; no file contains it.
        self.code_table = nn.Embedding(config.num_codes, config.hidden_size)
        self.generation_head = JanusVQVAEHead(config.mlp_config(config.head_size))

    def embed(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) of words and codes to embeddings (B, T, D)."""
        first = self.config.vocab_size
        # Both tables are read at every position, which needs no sync with the device.
        words = self.model.embed_tokens(ids.clamp_max(first - 1))
        codes = self.code_table((ids - first).clamp_min(0))
        return torch.where((ids < first).unsqueeze(-1), words, codes)

    def head(self, rows: slice = slice(None)) -> Head:
        """Return the function from hidden states (..., D) to float32 logits of the codes `rows`."""
        return lambda hidden: self.generation_head(hidden)[..., rows].float()
