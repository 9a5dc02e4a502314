r"""The sequence layout that all families have in common.

    BOS  text of the prompt  [end of the prompt]   prefix  rows of codes  [end of the image]   [end]
    \_________________ prompt _________________/   \_________________ image _____________/

`h, w` count codes. A family defines the parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Loss, TrainingSequence
from personalar.models.text_encoder import TextEncoder


@dataclass(kw_only=True)
class ImageLayout:
    """Builds sequences for one vocabulary and one image tokenizer; a family overrides some methods."""

    encoder: TextEncoder
    config: ProtocolConfig
    downsample: int
    """Side in pixels of the square of one image code; divides `config.grid_px`."""
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
    endings: dict[int, int] = field(default_factory=dict)
    """Id -> id that every prompt with it ends in."""
    kept_endings: set[int] = field(default_factory=set)
    """The values of `endings` that also end the unconditional context."""

    def __post_init__(self) -> None:
        """Raise ValueError if the sizes do not fit together."""
        if self.config.grid_px % self.downsample:
            raise ValueError(
                f"grid_px={self.config.grid_px} must be a multiple of {self.downsample}, the pixels per code"
            )

    def image_prefix(self, h: int, w: int) -> list[int]:
        """Return the ids before the first code of an image of (h, w) codes."""
        raise NotImplementedError

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids before the image in the unconditional context of guidance for `prompt` (ids)."""
        raise NotImplementedError

    def negative_prompt(
        self, text: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before the image in a context of guidance that asks for `text`, to avoid it.

        By default those of a prompt. Arguments as for `prompt_ids`.
        """
        return self.prompt_ids(text, width_px, height_px, concept_tokens)

    def dropped_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Return the ids that replace `prompt` in prompt dropout; by default the unconditional context."""
        return self.unconditional_prompt(prompt)

    def without_prompt(self, prompt: Sequence[int], *, training: bool = False) -> list[int]:
        """Return the context without a prompt, followed by the kept endings of `prompt`.

        Args:
            prompt: the ids of the prompt.
            training: return the context that prompt dropout uses.
        """
        kept = [index for index in prompt if index in self.kept_endings]
        others = [index for index in prompt if index not in self.kept_endings]
        return [*(self.dropped_prompt if training else self.unconditional_prompt)(others), *kept]

    def code_shape(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return the number of codes (h, w) of an image."""
        return height_px // self.downsample, width_px // self.downsample

    def grammar(self, h: int, w: int) -> list[int | None]:
        """Return the fixed id at every position of an image of (h, w) codes, and None for a sampled code."""
        row = [*[None] * w, *self.row_end]
        return [*self.image_prefix(h, w), *(row * h), *self.image_end]

    def prompt_ids(
        self, prompt: str, width_px: int, height_px: int, concept_tokens: Mapping[str, int] | None = None
    ) -> list[int]:
        """Return the ids before the image.

        Args:
            prompt: the user's text; names of special tokens in it are plain text.
            width_px, height_px: size of the image, which some templates contain.
            concept_tokens: names that are single tokens in this prompt, such as {"[V]": id}.
        """
        ids = [*self.prompt_start]
        for part in split(self.config.prompt_template, self.template_names or {}):
            if isinstance(part, int):
                ids.append(part)
                continue
            # The template is split at its special tokens first, so a prompt that contains their names stays
            # text.
            text = part.format(width=width_px, height=height_px, prompt=prompt)
            # Encoded piece by piece: BPE must not merge across an identifier.
            for piece in split(text, concept_tokens or {}):
                ids += [piece] if isinstance(piece, int) else self.encoder.encode_text(piece)
        return with_endings([*ids, *self.prompt_end], self.endings)

    def image_ids(self, codes: Tensor) -> list[int]:
        """Return all ids of an image of `codes` (h, w)."""
        # (h, number of ids that end a row), which may be 0
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
        """Return `prompt`, the image of `codes` (h, w) and the end as an example with the mask of `loss`."""
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
        """Return the example of prompt dropout: the image of `codes` (h, w) after `dropped_prompt`."""
        context = self.without_prompt(self._prompt_of(prompt, codes, concept_tokens), training=True)
        return self._masked(context, self.image_ids(codes), loss)

    def _prompt_of(self, prompt: str, codes: Tensor, concept_tokens: Mapping[str, int] | None) -> list[int]:
        h, w = codes.shape
        return self.prompt_ids(prompt, w * self.downsample, h * self.downsample, concept_tokens)

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
