"""The Janus backend: Janus-Pro 1B and 7B differ only in sizes."""

from __future__ import annotations

from collections.abc import Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Head, Loss
from personalar.models.janus.chat_layout import ChatLayout
from personalar.models.janus.janus_network import JanusTransformer
from personalar.models.janus.vocabulary import JanusVocabulary
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.vq import VQModel

TRAINED_TOKENS = 4096
"""Longest sequence in training (arXiv 2501.17811); config.json has a larger number."""


class JanusBackend(LlamaBackend):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`."""

    transformer: JanusTransformer

    def __init__(
        self,
        *,
        transformer: JanusTransformer,
        vq: VQModel,
        vocabulary: JanusVocabulary,
        layout: ProtocolConfig,
    ) -> None:
        # Janus has separate tables of words and codes; here the ids of codes follow those of words.
        first, number = transformer.config.vocab_size, transformer.config.num_codes
        codes = slice(first, first + number)
        chat = ChatLayout(vocabulary, layout, codes=codes, downsample=vq.config.downsample)
        # Rows without a token, because Janus reserves no names for later use.
        reserved = vocabulary.unnamed_ids(first)
        super().__init__(transformer=transformer, vq=vq, layout=chat)
        self.reserved_ids: Sequence[int] = reserved
        self.pad_id, self.trained_rows = vocabulary.pad, slice(0, vocabulary.vocab_size)

    @property
    def max_tokens(self) -> int:
        return min(TRAINED_TOKENS, super().max_tokens)

    def head(self, loss: Loss) -> Head:
        """Return the function from hidden states to logits of the image codes; the only loss is theirs."""
        return self.transformer.head()
