"""A Llama with a head over its vocabulary, in which image codes have rows of their own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from personalar.models.base import Head
from personalar.models.network.llama import Llama, LlamaConfig


class LanguageModel(Llama):
    """Token embeddings in, hidden states and logits out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def head(self, rows: slice) -> Head:
        """Return the map from hidden states (..., D) to float32 logits of the vocabulary rows `rows`.

        The weight is read once, here: DeepSpeed may have released it when a pass is computed again.
        """
        weight = self.lm_head.weight[rows]
        return lambda hidden: F.linear(hidden, weight).float()

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Map (..., D) to float32 logits (..., V), or of the vocabulary rows `rows` only."""
        return self.head(rows)(hidden)
