"""The Janus backend: both sizes of Janus-Pro are one class with other numbers."""

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
"""The longest sequence in training (arXiv 2501.17811); config.json declares more."""


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
        first, number = transformer.config.vocab_size, transformer.config.num_codes
        codes = slice(first, first + number)
        chat = ChatLayout(vocabulary, layout, codes=codes, downsample=vq.config.downsample)
        super().__init__(transformer=transformer, vq=vq, layout=chat)
        self.reserved_ids: Sequence[int] = vocabulary.unnamed_ids(first)
        self.pad_id, self.trained_rows = vocabulary.pad, slice(0, vocabulary.named_rows)

    @property
    def max_tokens(self) -> int:
        """Number of positions that the model was trained with."""
        return min(TRAINED_TOKENS, super().max_tokens)

    def choices(self, loss: Loss) -> slice:
        """Return the ids of the image codes: nothing else is predicted."""
        if loss != "image_tokens":
            raise ValueError(f"loss={loss} is refused: Janus predicts nothing but image codes")
        return self.protocol.codes

    def head(self, loss: Loss) -> Head:
        """Return the map from hidden states to the logits of `choices(loss)`."""
        self.choices(loss)
        return self.transformer.head()
