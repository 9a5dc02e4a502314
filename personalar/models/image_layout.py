r"""The sequence layout that all families have in common.

    BOS  text of the prompt  [end of the prompt]   prefix  rows of codes  [end of the image]   [end]
    \_________________ prompt _________________/   \_________________ image _____________/

`h, w` count codes. A family defines the parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Loss, TrainingSequence
from personalar.models.text_encoder import TextEncoder


class ImageLayout:
    """The methods of `base.Backend` that build sequences; a family sets the parts and overrides some."""

    tokenizer: TextEncoder
    layout: ProtocolConfig
    downsample: int
    """Side in pixels of the square of one image code; divides `layout.grid_px`."""
    codes: slice
    """The ids of the image codes."""
    prompt_start: Sequence[int]
    prompt_end: Sequence[int] = ()
    template_names: Mapping[str, int] | None = None
    """Names of special tokens in the template, with their ids. In the user's prompt they are plain text."""
    row_end: Sequence[int] = ()
    image_end: Sequence[int] = ()
    sequence_end: Sequence[int] = ()
    """Ids after the image in a training example."""
    endings: dict[int, int]
    kept_endings: set[int]
    """Both: see `base.Backend`."""

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return the ids before the first code of an image of (h, w) codes."""
        raise NotImplementedError

    def empty_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the unconditional context of guidance for `prompt` (ids), without kept endings."""
        raise NotImplementedError

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids that replace `prompt` in prompt dropout; by default the unconditional context."""
        return self.empty_prompt(prompt)

    def encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode_text(text)

    def text_ids(self, text: str, tokens: Mapping[str, int] | None) -> list[int]:
        """Return the ids of `text`, in which every name of `tokens` is one id."""
        # Encoded piece by piece: BPE must not merge across an identifier.
        pieces = [[p] if isinstance(p, int) else self.encode_text(p) for p in split(text, tokens or {})]
        return [index for ids in pieces for index in ids]

    def prompt_ids(
        self, prompt: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        (width, height), ids = size or self.layout.square, [*self.prompt_start]
        # The template is split at its special tokens first, so a prompt with their names stays text.
        for part in split(self.layout.prompt_template, self.template_names or {}):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.text_ids(part.format(width=width, height=height, prompt=prompt), tokens)
        return with_endings([*ids, *self.prompt_end], self.endings)

    def negative_prompt(
        self, text: str, size: tuple[int, int] | None = None, tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        return self.prompt_ids(text, size, tokens)

    def unconditional_prompt(self, prompt: Sequence[int], *, dropped: bool = False) -> list[int]:
        """Return the context without `prompt` (ids) and its kept endings; `dropped`: that of dropout."""
        kept = [index for index in prompt if index in self.kept_endings]
        others = [index for index in prompt if index not in self.kept_endings]
        return [*(self.dropped_prompt if dropped else self.empty_prompt)(others), *kept]

    def code_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        width, height = size or self.layout.square
        return height // self.downsample, width // self.downsample

    def grammar(self, h: int, w: int) -> list[int | None]:
        row = [*[None] * w, *self.row_end]
        return [*self.image_prefix(h, w), *(row * h), *self.image_end]

    def image_ids(self, codes: Tensor) -> list[int]:
        """Return all ids of an image of `codes` (h, w)."""
        # (h, number of ids that end a row), which may be 0
        ends = torch.tensor(self.row_end, dtype=torch.int64).expand(len(codes), -1)
        body = torch.cat((codes.cpu().long() + self.codes.start, ends), dim=1)
        return [*self.image_prefix(*codes.shape), *body.flatten().tolist(), *self.image_end]

    def training_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        answer = [*self.image_ids(codes), *self.sequence_end]
        return self._masked(self._prompt_of(prompt, codes, tokens), answer, loss)

    def unconditional_sequence(
        self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None = None, *, loss: Loss
    ) -> TrainingSequence:
        context = self.unconditional_prompt(self._prompt_of(prompt, codes, tokens), dropped=True)
        return self._masked(context, self.image_ids(codes), loss)

    def _prompt_of(self, prompt: str, codes: Tensor, tokens: Mapping[str, int] | None) -> list[int]:
        h, w = codes.shape
        return self.prompt_ids(prompt, (w * self.downsample, h * self.downsample), tokens)

    def _masked(self, prompt_ids: list[int], answer: list[int], loss: Loss) -> TrainingSequence:
        # With "image_tokens" row ends and size tokens have no loss: they are fixed in sampling.
        supervised = [loss == "answer" or self.codes.start <= index < self.codes.stop for index in answer]
        return TrainingSequence(
            ids=(*prompt_ids, *answer), loss_mask=(*(False for _ in prompt_ids), *supervised)
        )


def with_endings(ids: Sequence[int], endings: Mapping[int, int]) -> list[int]:
    """Move every value of `endings` that `ids` contains or requires to the end, once each."""
    added = [endings[index] for index in ids if index in endings]
    last = dict.fromkeys(index for index in [*ids, *added] if index in endings.values())
    return [*(index for index in ids if index not in last), *last]


def split(text: str, names: Mapping[str, int]) -> list[str | int]:
    """Split `text` at `names`; return the pieces of text, and ids for the names."""
    if not names:
        return [text]
    # A regular expression takes the first alternative that matches: "[V10]" before "[V1".
    longest_first = sorted(names, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(re.escape(name) for name in longest_first)})", text)
    return [names.get(piece, piece) for piece in pieces if piece]
