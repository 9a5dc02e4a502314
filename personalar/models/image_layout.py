r"""The place of every token of a sequence, as far as it is the same in every family.

    BOS  text of the prompt  [end of the prompt]   prefix  rows of codes  [end of the image]   [end]
    \_________________ prompt _________________/   \_________________ image _____________/

`h, w` count codes. A family says what the parts are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Loss, TrainingSequence
from personalar.models.text_encoder import TextEncoder


@dataclass(kw_only=True)
class ImageLayout:
    """Builds sequences for one vocabulary and one image tokenizer; a family overrides the methods."""

    encoder: TextEncoder
    config: ProtocolConfig
    downsample: int
    """Side in pixels of the square that one image code stands for; divides `config.grid_px`."""
    codes: slice
    """The ids of the image codes."""
    prompt_start: Sequence[int]
    prompt_end: Sequence[int] = ()
    template_names: Mapping[str, int] | None = None
    """Names of special tokens in the template, which are ids there, and plain text in the user's words."""
    row_end: Sequence[int] = ()
    image_end: Sequence[int] = ()
    sequence_end: Sequence[int] = ()
    """Ids after the image in a training example."""

    def __post_init__(self) -> None:
        """Raise ValueError where the numbers do not fit together."""
        if self.config.grid_px % self.downsample:
            raise ValueError(
                f"grid_px={self.config.grid_px} must be a multiple of {self.downsample}, a code's pixels"
            )

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return the ids before the first code of an image of (h, w) codes."""
        raise NotImplementedError

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids before the image in the unconditional context of guidance for `prompt`."""
        raise NotImplementedError

    def negative_prompt(
        self, text: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before the image in a context of guidance that asks for `text`, to avoid it.

        By default those of a prompt. Arguments as for `prompt_ids`.
        """
        return self.prompt_ids(text, width_px, height_px, concept_tokens)

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return what training leaves of `prompt` where it drops it; by default the unconditional context."""
        return self.unconditional_prompt(prompt)

    def code_shape(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (h, w) codes of an image. Raises ValueError when a side is not a multiple of the grid."""
        if width_px % self.config.grid_px or height_px % self.config.grid_px or min(width_px, height_px) < 1:
            raise ValueError(
                f"image size {width_px}x{height_px}: both sides must be multiples of {self.config.grid_px}"
            )
        return height_px // self.downsample, width_px // self.downsample

    def require_square(self, h: int, w: int) -> None:
        """Raise ValueError unless (h, w) codes are the one size of a model without size tokens."""
        side = self.config.resolution
        if h * self.downsample != side or w != h:
            raise ValueError(
                f"got {h}x{w} codes; a model without size tokens knows only {side}x{side} pixels"
            )

    def grammar(self, h: int, w: int) -> list[int | None]:
        """Return the image's forced id at every position, None where a code is free."""
        row = [*[None] * w, *self.row_end]
        return [*self.image_prefix(h, w), *(row * h), *self.image_end]

    def prompt_ids(
        self, prompt: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before the image.

        Args:
            prompt: the user's words; names of special tokens in it are plain text.
            concept_tokens: names that are tokens of their own in this prompt, such as {"[V]": id}.
        """
        ids = [*self.prompt_start]
        for part in split(self.config.prompt_template, self.template_names or {}):
            if isinstance(part, int):
                ids.append(part)
                continue
            text = part.format(width=width_px, height=height_px, prompt=prompt)
            for piece in split(text, concept_tokens or {}):
                ids += [piece] if isinstance(piece, int) else self.encoder.encode_text(piece)
        return [*ids, *self.prompt_end]

    def image_ids(self, codes: Tensor) -> list[int]:
        """Return all ids of an image of codes (h, w)."""
        self._check_codes(codes)
        ends = torch.tensor(self.row_end, dtype=torch.int64).expand(len(codes), -1)
        body = torch.cat((codes.cpu().long() + self.codes.start, ends), dim=1)
        return [*self.image_prefix(*codes.shape), *body.flatten().tolist(), *self.image_end]

    def training_ids(
        self,
        prompt: str,
        codes: Tensor,
        concept_tokens: Mapping[str, int] | None = None,
        *,
        loss: Loss = "image_tokens",
    ) -> TrainingSequence:
        """Return prompt, image of codes (h, w) and the sequence's end, masked for `loss`."""
        prompt_ids = self._prompt_of(prompt, codes, concept_tokens)
        return self._masked(prompt_ids, [*self.image_ids(codes), *self.sequence_end], loss)

    def unconditional_ids(
        self,
        prompt: str,
        codes: Tensor,
        concept_tokens: Mapping[str, int] | None = None,
        *,
        loss: Loss = "image_tokens",
    ) -> TrainingSequence:
        """Return the image after what a dropped prompt leaves."""
        context = self.dropped_prompt(self._prompt_of(prompt, codes, concept_tokens))
        return self._masked(context, self.image_ids(codes), loss)

    def _prompt_of(self, prompt: str, codes: Tensor, concept_tokens: Mapping[str, int] | None) -> list[int]:
        h, w = codes.shape
        return self.prompt_ids(prompt, w * self.downsample, h * self.downsample, concept_tokens)

    def _masked(self, prompt_ids: list[int], answer: list[int], loss: Loss) -> TrainingSequence:
        supervised = [loss == "answer" or self.codes.start <= index < self.codes.stop for index in answer]
        return TrainingSequence(
            ids=(*prompt_ids, *answer), loss_mask=(*(False for _ in prompt_ids), *supervised)
        )

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"codes have shape {tuple(codes.shape)}, expected (h, w)")
        low, high, most = int(codes.min()), int(codes.max()), self.codes.stop - self.codes.start - 1
        if low < 0 or high > most:
            raise ValueError(f"codes lie in {low}..{high}, allowed are 0..{most}")


def split(text: str, names: Mapping[str, int]) -> list[str | int]:
    """Cut `text` at `names`, giving pieces of text and the ids of the names."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(re.escape(name) for name in longest_first)})", text)
    return [names.get(piece, piece) for piece in pieces if piece]
