"""A Llama with one vocabulary for words and image codes, and a linear head over it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from personalar.models.base import Head
from personalar.models.network.llama import Llama, LlamaConfig


class LanguageModel(Llama):
    """Maps token embeddings to hidden states and logits."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def head(self, rows: slice) -> Head:
        """Return the function from hidden states (..., D) to float32 logits of the vocabulary rows `rows`."""
        # Read here, not in the function: DeepSpeed may have released it when activations are recomputed.
        weight = self.lm_head.weight[rows]
        # Only the rows that can be sampled or have a loss, because a vocabulary has 65,536 rows and more.
        return lambda hidden: F.linear(hidden, weight).float()

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Map (..., D) to float32 logits (..., V), or of the vocabulary rows `rows` only."""
        return self.head(rows)(hidden)
