"""The Chameleon backend: Lumina-mGPT, Anole, Chameleon and nano differ only in sizes and settings."""

from __future__ import annotations

from personalar.models.chameleon.sequence_layout import ProtocolConfig, SequenceLayout
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.vq import VQModel


class ChameleonBackend(LlamaBackend):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`."""

    transformer: ChameleonTransformer
    # A random [V] gets the mean and the deviation of all rows, also of those that no text uses.
    trained_rows = slice(None)

    def __init__(
        self,
        *,
        transformer: ChameleonTransformer,
        vq: VQModel,
        tokenizer: Tokenizer,
        protocol: ProtocolConfig,
    ) -> None:
        layout = SequenceLayout(tokenizer, protocol, downsample=vq.config.downsample)
        super().__init__(transformer=transformer, vq=vq, layout=layout)
        self.tokenizer, self.reserved_ids, self.pad_id = tokenizer, tokenizer.concept_ids, tokenizer.pad
