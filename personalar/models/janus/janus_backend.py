"""The Janus backend: Janus-Pro 1B and 7B differ only in sizes.

A sequence is a chat turn and the codes of the picture (arXiv 2501.17811):

    BOS  <|User|>  ": {prompt}\\n\\n"  <|Assistant|>  ":"  BOI  c0 ... c575

The unconditional context is as long as the prompt: BOS and padding tokens. They are not masked in attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Head, Loss
from personalar.models.janus.janus_network import JanusTransformer
from personalar.models.janus.vocabulary import JanusVocabulary
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.vq import VQModel

TRAINED_TOKENS = 4096
"""Longest sequence in training (arXiv 2501.17811); config.json has a larger number."""


class JanusBackend(LlamaBackend):
    """One base model of the family; see `base.Backend`."""

    transformer: JanusTransformer
    tokenizer: JanusVocabulary

    def __init__(
        self,
        *,
        transformer: JanusTransformer,
        vq: VQModel,
        tokenizer: JanusVocabulary,
        layout: ProtocolConfig,
    ) -> None:
        # Janus has separate tables of words and codes; here the ids of codes follow those of words.
        first, number = transformer.config.vocab_size, transformer.config.num_codes
        # Rows without a token, because Janus reserves no names for later use.
        reserved, codes = tokenizer.unnamed_ids(first), slice(first, first + number)
        super().__init__(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=layout, codes=codes)
        self.reserved_ids: Sequence[int] = reserved
        self.pad_id, self.trained_rows = tokenizer.pad, slice(0, tokenizer.vocab_size)
        self.prompt_start, self.template_names = [tokenizer.bos], tokenizer.roles(layout.prompt_template)

    @property
    def max_tokens(self) -> int:
        return min(TRAINED_TOKENS, super().max_tokens)

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI."""
        return [self.tokenizer.boi]

    def empty_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS and padding tokens, as many ids as `prompt`."""
        return [self.tokenizer.bos, *[self.tokenizer.pad] * (len(prompt) - 1)]

    def prompt_ids(
        self, prompt: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before BOI. Whitespace around `prompt` is removed, as upstream."""
        return super().prompt_ids(prompt.strip(), size, tokens)

    def head(self, loss: Loss) -> Head:
        """Return the function from hidden states to logits of the image codes; the only loss is theirs."""
        return self.transformer.head()
