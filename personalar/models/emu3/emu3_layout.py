r"""The sequence of Emu3: the prompt, the size in words, and rows of codes.

    BOS  "{prompt} ..."  BOI "H*W" IMG   (w codes EOL) x h   EOF EOI EOS
    \____ prompt ____/   \_________________ image _____________________/

`H, W` count codes. A sampled picture's unconditional context is BOS and a negative prompt, or BOS alone; a
prompt dropped in training leaves BOS alone, as upstream trained. Upstream's training ends at EOI; the EOS
here has no loss there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
from personalar.models.image_layout import ImageLayout, split


class Emu3Layout(ImageLayout):
    """Builds sequences.

    Args:
        vocabulary: the special ids, and the text.
        downsample: side in pixels of the square that one image code stands for.
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
        """Return BOI, the size in digits, and the id that every image starts with."""
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
        return ids

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS."""
        return [self.vocabulary.bos]
