r"""The Emu3 backend: Emu3-Gen and Emu3-Stage1 differ only in sizes and settings.

A sequence is the prompt, the size as text, and rows of codes (arXiv 2409.18869):

    BOS  "{prompt} ..."  BOI "H*W" IMG   (w codes EOL) x h   EOF EOI EOS
    \____ prompt ____/   \_________________ image _____________________/

`H, W` count codes. In sampling the unconditional context is BOS and a negative prompt, or BOS alone. In
training a dropped prompt leaves only BOS, as upstream. Upstream's training sequences end at EOI; the EOS that
follows here has a loss only with recipe.loss=answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
from personalar.models.emu3.one_frame_vq import OneFrameVQ
from personalar.models.image_layout import with_endings
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.llama import LanguageModel


class Emu3Backend(LlamaBackend):
    """One base model of the family; see `base.Backend`."""

    transformer: LanguageModel
    tokenizer: Emu3Vocabulary

    def __init__(
        self, *, transformer: LanguageModel, vq: OneFrameVQ, tokenizer: Emu3Vocabulary, layout: ProtocolConfig
    ) -> None:
        codes = tokenizer.codes
        super().__init__(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=layout, codes=codes)
        self.reserved_ids, self.pad_id = tokenizer.concept_ids, tokenizer.pad
        # The pieces of words, whose ids come before those of special tokens and image codes.
        self.trained_rows = slice(0, tokenizer.pad)
        self.prompt_start, self.row_end = [tokenizer.bos], [tokenizer.eol]
        self.image_end = [tokenizer.eof, tokenizer.eoi, tokenizer.eos]

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI, the size as text, and the token that starts the codes."""
        return [self.tokenizer.boi, *self.encode_text(f"{h}*{w}"), self.tokenizer.image]

    def empty_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS and the negative prompt, if there is one."""
        negative = self.layout.negative_prompt if self.layout.unconditional == "negative" else ""
        return [self.tokenizer.bos, *self.encode_text(negative)]

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS, without the negative prompt of sampling."""
        return [self.tokenizer.bos]

    def negative_prompt(
        self, text: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return BOS and `text` without the template, as upstream writes its negative prompt."""
        return with_endings([self.tokenizer.bos, *self.text_ids(text, tokens)], self.endings)
