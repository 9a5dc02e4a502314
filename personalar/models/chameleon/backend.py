"""The Chameleon backend: Lumina-mGPT, Anole, Chameleon and nano differ only in sizes and settings.

The sequence is that of Lumina-mGPT (arXiv 2408.02657):

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
from personalar.models.chameleon.transformer import ChameleonTransformer
from personalar.models.network.backbone import LlamaBackend
from personalar.models.network.vq import VQModel


class ChameleonBackend(LlamaBackend):
    """One base model of the family; see `base.Backend`.

    Raises:
        ValueError: the vocabulary has no token for a size of `layout`.
    """

    transformer: ChameleonTransformer
    tokenizer: Tokenizer
    # A random [V] gets the mean and the deviation of all rows, also of those that no text uses.
    trained_rows = slice(None)

    def __init__(
        self, *, transformer: ChameleonTransformer, vq: VQModel, tokenizer: Tokenizer, layout: ProtocolConfig
    ) -> None:
        codes = tokenizer.image_rows
        super().__init__(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=layout, codes=codes)
        self.reserved_ids, self.pad_id = tokenizer.concept_ids, tokenizer.pad
        self.flat, self.codes_per_grid = layout.structure == "flat", layout.grid_px // self.downsample
        self.prompt_start, self.prompt_end = [tokenizer.bos], [tokenizer.sep]
        self.row_end = [] if self.flat else [tokenizer.newline]
        self.image_end, self.sequence_end = [tokenizer.eoi], [tokenizer.sep]
        if not self.flat:
            tokenizer.size_id(max(map(max, self.sizes)) // layout.grid_px)  # fails now and not in sampling

    def empty_prompt(self, prompt: Sequence[int]) -> list[int]:
        # "image" as Lumina-mGPT samples; "separator" as in the code of speculative Jacobi decoding.
        contexts = {"image": [], "separator": [self.tokenizer.sep], "bos": [self.tokenizer.bos]}
        return contexts[self.layout.unconditional]

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return the ids before the first code: BOI and, unless the structure is flat, two size tokens."""
        sizes = () if self.flat else (h // self.codes_per_grid, w // self.codes_per_grid)
        return [self.tokenizer.boi, *map(self.tokenizer.size_id, sizes)]
