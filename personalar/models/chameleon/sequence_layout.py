"""The sequence layout of Lumina-mGPT (arXiv 2408.02657): the place of every token.

    BOS  "Generate an image of {W}x{H} ...:\\n{prompt}"  SEP   BOI size(H) size(W)  rows  EOI  SEP
    \\_________________ prompt ________________________/   \\___________ answer ______________/

A row is its codes, left to right, and a NEWLINE. Width comes first in words, height first in size tokens. The
unconditional context of classifier-free guidance is the answer alone. `h, w` count codes, a grid is `grid_px`
pixels. Chameleon and Anole (`structure: flat`) have neither sizes nor newlines: BOI codes EOI, always of one
size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Loss, TrainingSequence
from personalar.models.chameleon.tokenizer import Tokenizer


class SequenceLayout:
    """Builds sequences for one vocabulary and one image tokenizer.

    Args:
        tokenizer: the vocabulary.
        config: the layout's numbers.
        downsample: side in pixels of the square that one image code stands for; divides `config.grid_px`.
    """

    def __init__(self, tokenizer: Tokenizer, config: ProtocolConfig, *, downsample: int) -> None:
        if config.grid_px % downsample:
            raise ValueError(
                f"grid_px={config.grid_px} must be a multiple of {downsample}, the pixels of one code"
            )
        self.tokenizer, self.config, self.downsample = tokenizer, config, downsample
        self.codes_per_grid = config.grid_px // downsample
        self.flat = config.structure == "flat"
        before = {"image": [], "separator": [tokenizer.sep], "bos": [tokenizer.bos]}
        self.unconditional_prompt: list[int] = before[config.unconditional]
        """Ids before the image in the unconditional context of guidance."""

    def code_shape(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (h, w) codes of an image. Raises ValueError when a side is not a multiple of the grid."""
        if width_px % self.config.grid_px or height_px % self.config.grid_px or min(width_px, height_px) < 1:
            raise ValueError(
                f"image size {width_px}x{height_px}: both sides must be multiples of {self.config.grid_px}"
            )
        return height_px // self.downsample, width_px // self.downsample

    def grammar(self, h: int, w: int) -> list[int | None]:
        """Return the answer's forced id at every position from BOI to EOI, None where a code is free."""
        row = [None] * w + ([] if self.flat else [self.tokenizer.newline])
        return [*self.image_prefix(h, w), *(row * h), self.tokenizer.eoi]

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return BOI and, where the structure has them, two size tokens: the ids before the first code."""
        if h % self.codes_per_grid or w % self.codes_per_grid:
            raise ValueError(
                f"got {h}x{w} codes (height x width); both must be multiples of {self.codes_per_grid}"
            )
        tokens, side = self.tokenizer, self.config.resolution
        if not self.flat:
            sizes = (h // self.codes_per_grid, w // self.codes_per_grid)
            return [tokens.boi, *map(tokens.size_id, sizes)]
        if h * self.downsample != side or w != h:
            raise ValueError(
                f"got {h}x{w} codes; a model without size tokens knows only {side}x{side} pixels"
            )
        return [tokens.boi]

    def prompt_ids(
        self, prompt: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return BOS, the wrapped prompt and SEP.

        Args:
            prompt: the user's words; names of special tokens in it are plain text.
            concept_tokens: names that are tokens of their own in this prompt, such as {"[V]": id}.
        """
        text = self.config.prompt_template.format(width=width_px, height=height_px, prompt=prompt)
        ids = [self.tokenizer.bos]
        for piece in _split(text, concept_tokens or {}):
            ids += [piece] if isinstance(piece, int) else self.tokenizer.encode_text(piece)
        return [*ids, self.tokenizer.sep]

    def image_ids(self, codes: Tensor) -> list[int]:
        """Return BOI, sizes, rows and EOI of codes (h, w)."""
        self._check_codes(codes)
        newlines = torch.full((codes.shape[0], 0 if self.flat else 1), self.tokenizer.newline)
        body = torch.cat((codes.cpu().long() + self.tokenizer.code_offset, newlines), dim=1)
        return [*self.image_prefix(*codes.shape), *body.flatten().tolist(), self.tokenizer.eoi]

    def training_ids(
        self,
        prompt: str,
        codes: Tensor,
        concept_tokens: Mapping[str, int] | None = None,
        *,
        loss: Loss = "image_tokens",
    ) -> TrainingSequence:
        """Return prompt, answer for codes (h, w) and final SEP, masked for `loss`.

        Args:
            loss: what is predicted, "image_tokens" (the paper) or "answer" (all of Lumina's answer).
        """
        h, w = codes.shape
        prompt_ids = self.prompt_ids(prompt, w * self.downsample, h * self.downsample, concept_tokens)
        return self._masked(prompt_ids, [*self.image_ids(codes), self.tokenizer.sep], loss)

    def unconditional_ids(self, codes: Tensor, *, loss: Loss = "image_tokens") -> TrainingSequence:
        """Return the answer after the unconditional context, BOI to EOI: what a dropped prompt leaves."""
        return self._masked(self.unconditional_prompt, self.image_ids(codes), loss)

    def _masked(self, prompt_ids: list[int], answer: list[int], loss: Loss) -> TrainingSequence:
        codes = self.tokenizer.image_rows
        supervised = [loss == "answer" or codes.start <= index < codes.stop for index in answer]
        return TrainingSequence(
            ids=(*prompt_ids, *answer), loss_mask=(*(False for _ in prompt_ids), *supervised)
        )

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"codes have shape {tuple(codes.shape)}, expected (h, w)")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.tokenizer.num_codes:
            raise ValueError(f"codes lie in {low}..{high}, allowed are 0..{self.tokenizer.num_codes - 1}")


def _split(text: str, names: Mapping[str, int]) -> list[str | int]:
    """Cut `text` at `names`, giving pieces of text and the ids of the names."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(re.escape(name) for name in longest_first)})", text)
    return [names.get(piece, piece) for piece in pieces if piece]
