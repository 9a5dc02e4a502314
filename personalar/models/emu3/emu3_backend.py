"""The Emu3 backend: Emu3-Gen and Emu3-Stage1 differ only in sizes and settings."""

from __future__ import annotations

from personalar.config.model_config import ProtocolConfig
from personalar.models.emu3.emu3_layout import Emu3Layout
from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
from personalar.models.emu3.one_frame_vq import OneFrameVQ
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.language_model import LanguageModel


class Emu3Backend(LlamaBackend):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`."""

    transformer: LanguageModel

    def __init__(
        self,
        *,
        transformer: LanguageModel,
        vq: OneFrameVQ,
        vocabulary: Emu3Vocabulary,
        layout: ProtocolConfig,
    ) -> None:
        sequence = Emu3Layout(vocabulary, layout, downsample=vq.config.downsample)
        super().__init__(transformer=transformer, vq=vq, layout=sequence)
        self.reserved_ids, self.pad_id = vocabulary.concept_ids, vocabulary.pad
        # The pieces of words, whose ids come before those of special tokens and image codes.
        self.trained_rows = slice(0, vocabulary.pad)
