"""The sequence of Janus-Pro: one turn of a chat, and the codes of the picture.

    BOS  <|User|>  ": {prompt}\\n\\n"  <|Assistant|>  ":"  BOI  c0 ... c575

The unconditional context has the length of the prompt: BOS, then pads, which are attended to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.image_layout import ImageLayout
from personalar.models.janus.vocabulary import JanusVocabulary


class ChatLayout(ImageLayout):
    """Builds sequences.

    Args:
        vocabulary: the special ids, and the text.
        codes: the ids of the image codes.
        downsample: side in pixels of the square that one image code stands for.
    """

    def __init__(
        self, vocabulary: JanusVocabulary, config: ProtocolConfig, *, codes: slice, downsample: int
    ) -> None:
        self.vocabulary = vocabulary
        super().__init__(
            encoder=vocabulary,
            config=config,
            downsample=downsample,
            codes=codes,
            prompt_start=[vocabulary.bos],
            template_names=vocabulary.roles(config.prompt_template),
        )

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI."""
        self.require_square(h, w)
        return [self.vocabulary.boi]

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS and a pad for each further id of `prompt`."""
        return [self.vocabulary.bos, *[self.vocabulary.pad] * (len(prompt) - 1)]

    def prompt_ids(
        self, prompt: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before BOI; the space around `prompt` is removed, as upstream does."""
        return super().prompt_ids(prompt.strip(), width_px, height_px, concept_tokens)
