"""The sequence layout of Lumina-mGPT (arXiv 2408.02657).

    BOS  "Generate an image of {W}x{H} ...:\\n{prompt}"  SEP   BOI size(H) size(W)  rows  EOI  SEP
    \\_________________ prompt ________________________/   \\___________ answer ______________/

A row consists of its codes from left to right and a NEWLINE. The text gives the width first, the size tokens
give the height first. In classifier-free guidance the unconditional context is the answer without a prompt.
`h, w` count codes; a size token counts units of `grid_px` pixels. Chameleon and Anole (`structure: flat`)
have neither size tokens nor newlines, only BOI codes EOI, and a single image size.
"""

from __future__ import annotations

from collections.abc import Sequence

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.image_layout import ImageLayout


class SequenceLayout(ImageLayout):
    """Builds sequences for one vocabulary and one image tokenizer.

    Args:
        tokenizer: the vocabulary.
        config: settings of the layout.
        downsample: side in pixels of the square of one image code; divides `config.grid_px`.

    Raises:
        ValueError: `downsample` does not divide `grid_px`, or the vocabulary has no token for a size.
    """

    def __init__(self, tokenizer: Tokenizer, config: ProtocolConfig, *, downsample: int) -> None:
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
        if not self.flat:
            tokenizer.size_id(max(map(max, config.sizes)) // config.grid_px)  # fails now and not in sampling

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids before the image in the unconditional context; the same for every prompt."""
        # "image" as Lumina-mGPT samples; "separator" as in the code of speculative Jacobi decoding.
        contexts = {"image": [], "separator": [self.tokenizer.sep], "bos": [self.tokenizer.bos]}
        return contexts[self.config.unconditional]

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return the ids before the first code: BOI and, unless the structure is flat, two size tokens."""
        tokens = self.tokenizer
        if self.flat:
            return [tokens.boi]
        sizes = (h // self.codes_per_grid, w // self.codes_per_grid)
        return [tokens.boi, *map(tokens.size_id, sizes)]
