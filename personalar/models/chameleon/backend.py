"""The Chameleon backend: Lumina-mGPT, Anole, Chameleon and nano differ only in sizes and settings."""

from __future__ import annotations

from personalar.models.base import Head, Loss
from personalar.models.chameleon.sequence_layout import ProtocolConfig, SequenceLayout
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.vq import VQModel


class ChameleonBackend(LlamaBackend):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`.

    Raises:
        ValueError: the tokenizer does not fit the transformer or the image tokenizer.
    """

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
        rows = transformer.config.vocab_size
        # Fewer ids than rows are fine: published embedding tables are padded.
        if tokenizer.vocab_size > rows:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds only {rows}")
        if tokenizer.num_codes != vq.config.num_embeddings:
            raise ValueError(
                f"the tokenizer names {tokenizer.num_codes} image codes, the VQ model has "
                f"{vq.config.num_embeddings}: they belong to different models"
            )
        layout = SequenceLayout(tokenizer, protocol, downsample=vq.config.downsample)
        super().__init__(transformer=transformer, vq=vq, layout=layout)
        self.tokenizer, self.reserved_ids, self.pad_id = tokenizer, tokenizer.concept_ids, tokenizer.pad

    def choices(self, loss: Loss) -> slice:
        """Return the ids over which the softmax of `loss` is taken."""
        everything = slice(0, self.transformer.config.vocab_size)
        return self.tokenizer.image_rows if loss == "image_tokens" else everything

    def head(self, loss: Loss) -> Head:
        """Return the function from hidden states to logits of `choices(loss)`."""
        return self.transformer.head(self.choices(loss))
