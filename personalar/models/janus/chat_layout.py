"""The sequence layout of Janus-Pro (arXiv 2501.17811): a chat turn, and the codes of the picture.

    BOS  <|User|>  ": {prompt}\\n\\n"  <|Assistant|>  ":"  BOI  c0 ... c575

The unconditional context is as long as the prompt: BOS and padding tokens. They are not masked in attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.image_layout import ImageLayout
from personalar.models.janus.vocabulary import JanusVocabulary


class ChatLayout(ImageLayout):
    """Builds sequences for one vocabulary and one image tokenizer.

    Args:
        vocabulary: the text tokenizer with the special ids.
        config: settings of the layout.
        codes: ids of the image codes.
        downsample: side in pixels of the square of one image code.
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
        return [self.vocabulary.boi]

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return BOS and padding tokens, as many ids as `prompt`."""
        return [self.vocabulary.bos, *[self.vocabulary.pad] * (len(prompt) - 1)]

    def prompt_ids(
        self, prompt: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before BOI. Whitespace around `prompt` is removed, as upstream."""
        return super().prompt_ids(prompt.strip(), width_px, height_px, concept_tokens)
