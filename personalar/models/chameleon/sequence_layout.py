"""The sequence layout of Lumina-mGPT (arXiv 2408.02657): the place of every token.

    BOS  "Generate an image of {W}x{H} ...:\\n{prompt}"  SEP   BOI size(H) size(W)  rows  EOI  SEP
    \\_________________ prompt ________________________/   \\___________ answer ______________/

A row is its codes, left to right, and a NEWLINE. Width comes first in words, height first in size tokens. The
unconditional context of classifier-free guidance is the answer alone. `h, w` count codes, a grid is `grid_px`
pixels. Chameleon and Anole (`structure: flat`) have neither sizes nor newlines: BOI codes EOI, always of one
size.
"""

from __future__ import annotations

from collections.abc import Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.model_files import check_layout
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.image_layout import ImageLayout


class SequenceLayout(ImageLayout):
    """Builds sequences for one vocabulary and one image tokenizer.

    Args:
        tokenizer: the vocabulary.
        config: the layout's numbers.
        downsample: side in pixels of the square that one image code stands for; divides `config.grid_px`.
    """

    def __init__(self, tokenizer: Tokenizer, config: ProtocolConfig, *, downsample: int) -> None:
        check_layout(config)
        self.tokenizer, self.flat = tokenizer, config.structure == "flat"
        super().__init__(
            encoder=tokenizer,
            config=config,
            downsample=downsample,
            codes=tokenizer.image_rows,
            prompt_start=[tokenizer.bos],
            prompt_end=[tokenizer.sep],
            row_end=[] if self.flat else [tokenizer.newline],
            image_end=[tokenizer.eoi],
            sequence_end=[tokenizer.sep],
        )
        self.codes_per_grid = config.grid_px // downsample

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids before the image in the unconditional context; the same for every prompt."""
        contexts = {"image": [], "separator": [self.tokenizer.sep], "bos": [self.tokenizer.bos]}
        return contexts[self.config.unconditional]

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI and, where the structure has them, two size tokens: the ids before the first code."""
        if h % self.codes_per_grid or w % self.codes_per_grid:
            raise ValueError(
                f"got {h}x{w} codes (height x width); both must be multiples of {self.codes_per_grid}"
            )
        tokens = self.tokenizer
        if self.flat:
            self.require_square(h, w)
            return [tokens.boi]
        sizes = (h // self.codes_per_grid, w // self.codes_per_grid)
        return [tokens.boi, *map(tokens.size_id, sizes)]
