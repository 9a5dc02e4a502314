"""The Janus transformer: a Llama with an embedding table and a head for image codes, and no text head.

Published checkpoints embed an image code by a narrow table and an MLP. Both are frozen here, so the
embeddings of all codes are computed once, when the model is loaded (`CodeEmbedder`). Ids from `vocab_size` on
are image codes.
Shapes: B batch, T tokens, D width, K image codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
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


class ImageHead(nn.Module):
    """The MLP from hidden states to logits of image codes."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.proj_out = nn.Linear(config.hidden_size, config.head_size)
        self.vision_head = nn.Linear(config.head_size, config.num_codes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., D) to logits (..., K)."""
        return self.vision_head(F.gelu(self.proj_out(hidden)))


class Aligner(nn.Module):
    """The MLP from a row of the narrow table to an embedding; parameter names of transformers."""

    def __init__(self, code_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(code_dim, width)
        self.hidden_layers = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, code_dim) to (K, D)."""
        return self.hidden_layers[0](F.gelu(self.fc1(x)))


class CodeEmbedder(nn.Module):
    """The published computation of the embeddings of codes: a narrow table and an MLP."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.generation_embeddings = nn.Embedding(config.num_codes, config.code_dim)
        self.generation_aligner = Aligner(config.code_dim, config.hidden_size)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Return the embeddings of all codes (K, D), in the precision of the weights."""
        # In their precision, and not in float32, because upstream rounds after every layer too.
        return self.generation_aligner(self.generation_embeddings.weight)


class JanusTransformer(Llama):
    """Maps ids of words and codes to hidden states, and these to logits of codes."""

    config: JanusConfig

    def __init__(self, config: JanusConfig) -> None:
        super().__init__(config)
        # Filled by `janus_weights.network_tensors`; no file contains it.
        self.code_table = nn.Embedding(config.num_codes, config.hidden_size)
        self.generation_head = ImageHead(config)

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
