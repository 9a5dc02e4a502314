r"""The sequence layout of Emu3 (arXiv 2409.18869): the prompt, the size as text, and rows of codes.

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
from personalar.models.image_layout import ImageLayout, split, with_endings


class Emu3Layout(ImageLayout):
    """Builds sequences for one vocabulary and one image tokenizer.

    Args:
        vocabulary: the text tokenizer with the special ids.
        config: settings of the layout.
        downsample: side in pixels of the square of one image code.
    """

    def __init__(self, vocabulary: Emu3Vocabulary, config: ProtocolConfig, *, downsample: int) -> None:
        self.vocabulary = vocabulary
        super().__init__(
            encoder=vocabulary,
            config=config,
            downsample=downsample,
            codes=vocabulary.codes,
            prompt_start=[vocabulary.bos],
            row_end=[vocabulary.eol],
            image_end=[vocabulary.eof, vocabulary.eoi, vocabulary.eos],
        )
        self._context = [vocabulary.bos]
        if config.unconditional == "negative":
            self._context += vocabulary.encode_text(config.negative_prompt)

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI, the size as text, and the token that starts the codes."""
        tokens = self.vocabulary
        return [tokens.boi, *tokens.encode_text(f"{h}*{w}"), tokens.image]

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS and the negative prompt; the same for every prompt."""
        return list(self._context)

    def negative_prompt(
        self, text: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return BOS and `text` without the template, as upstream writes its negative prompt."""
        ids = [self.vocabulary.bos]
        for piece in split(text, concept_tokens or {}):
            ids += [piece] if isinstance(piece, int) else self.vocabulary.encode_text(piece)
        return with_endings(ids, self.endings)

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS, without the negative prompt of sampling."""
        return [self.vocabulary.bos]
