"""The Janus transformer: a Llama without a text head, with a table of image codes and a head for them.

Published checkpoints embed a code by a small table and an MLP, which are frozen: the rows that they give are
computed once, at loading (`CodeEmbedder`). Ids from `vocab_size` on are codes.
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
    """Numbers of the network; the names after those of `LlamaConfig` are ours."""

    num_codes: int = field(default=16384, metadata=limits(1, 2**20))
    code_dim: int = field(default=8, metadata=limits(1, 2**14))
    """Width of the small table of codes."""
    code_width: int = field(default=2048, metadata=limits(1, 2**16))
    """Width of a code's embedding; equal to `hidden_size`."""
    head_size: int = field(default=2048, metadata=limits(1, 2**16))
    """Width inside the image head."""

    def build(self) -> JanusTransformer:
        """Return a transformer of this shape, on torch's default device."""
        return JanusTransformer(self)


class ImageHead(nn.Module):
    """The MLP that predicts an image code."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.proj_out = nn.Linear(config.hidden_size, config.head_size)
        self.vision_head = nn.Linear(config.head_size, config.num_codes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., D) to logits (..., K)."""
        return self.vision_head(F.gelu(self.proj_out(hidden)))


class Aligner(nn.Module):
    """The MLP from a row of the small table to an embedding; names as in transformers."""

    def __init__(self, code_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(code_dim, width)
        self.hidden_layers = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, code_dim) to (K, D)."""
        return self.hidden_layers[0](F.gelu(self.fc1(x)))


class CodeEmbedder(nn.Module):
    """The published path from a code to its embedding: a table of few numbers, and an MLP."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.generation_embeddings = nn.Embedding(config.num_codes, config.code_dim)
        self.generation_aligner = Aligner(config.code_dim, config.hidden_size)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Return the embeddings of all codes (K, D), computed layer by layer in the weights' precision."""
        return self.generation_aligner(self.generation_embeddings.weight)


class JanusTransformer(Llama):
    """Ids of words and codes in, logits of codes out."""

    config: JanusConfig

    def __init__(self, config: JanusConfig) -> None:
        super().__init__(config)
        self.code_table = nn.Embedding(config.num_codes, config.hidden_size)
        self.generation_head = ImageHead(config)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up (B, T) ids of words and codes, giving (B, T, D)."""
        first = self.config.vocab_size
        words = self.model.embed_tokens(ids.clamp_max(first - 1))
        codes = self.code_table((ids - first).clamp_min(0))
        return torch.where((ids < first).unsqueeze(-1), words, codes)

    def head(self, rows: slice = slice(None)) -> Head:
        """Return the map from hidden states (..., D) to float32 logits of the codes `rows`."""
        return lambda hidden: self.generation_head(hidden)[..., rows].float()
