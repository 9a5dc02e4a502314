"""The Emu3 backend: Emu3-Gen and Emu3-Stage1 differ only in sizes and settings."""

from __future__ import annotations

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Head, Loss
from personalar.models.emu3.emu3_layout import Emu3Layout
from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
from personalar.models.emu3.one_frame_vq import OneFrameVQ
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.language_model import LanguageModel


class Emu3Backend(LlamaBackend):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`.

    Raises:
        ValueError: the tokenizer does not fit the transformer or the image tokenizer.
    """

    transformer: LanguageModel

    def __init__(
        self,
        *,
        transformer: LanguageModel,
        vq: OneFrameVQ,
        vocabulary: Emu3Vocabulary,
        layout: ProtocolConfig,
    ) -> None:
        ids, rows = max(vocabulary.vocabulary.values()) + 1, transformer.config.vocab_size
        if ids > rows:
            raise ValueError(
                f"the tokenizer has {ids} ids, the model embeds only {rows}: take the tokenizer of the same "
                "repository"
            )
        codes = vocabulary.codes
        if codes.stop - codes.start != vq.config.num_embeddings:
            raise ValueError(
                f"the tokenizer names {codes.stop - codes.start} image codes, the image tokenizer has "
                f"{vq.config.num_embeddings}: they belong to different models"
            )
        sequence = Emu3Layout(vocabulary, layout, downsample=vq.config.downsample)
        super().__init__(transformer=transformer, vq=vq, layout=sequence)
        self.reserved_ids, self.pad_id = vocabulary.concept_ids, vocabulary.pad
        # The pieces of words, whose ids come before those of special tokens and image codes.
        self.trained_rows = slice(0, vocabulary.pad)

    def choices(self, loss: Loss) -> slice:
        """Return the ids over which the softmax of `loss` is taken."""
        everything = slice(0, self.transformer.config.vocab_size)
        return self.protocol.codes if loss == "image_tokens" else everything

    def head(self, loss: Loss) -> Head:
        """Return the function from hidden states to logits of `choices(loss)`."""
        return self.transformer.head(self.choices(loss))
