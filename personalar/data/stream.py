"""Training sequences of the photos and of replayed class images, each a function of its number.

Sequence i of a stage is drawn from a generator seeded with (seed, stage, i), so a resumed stage continues
with the sequences that an uninterrupted one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from personalar.config.recipe import DataNumbers
from personalar.config.run_config import Stage
from personalar.data.codes import stream_seed, uniform
from personalar.data.prompts import image_token_names, training_prompt
from personalar.models.base import Backend, TrainingSequence


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Class images that the base itself made: `prompts[i]` and its `codes[i]` (h, w)."""

    prompts: tuple[str, ...]
    codes: tuple[Tensor, ...]


class SequenceStream(IterableDataset):
    """An endless stream of training sequences."""

    def __init__(
        self,
        *,
        backend: Backend,
        stage: Stage,
        data: DataNumbers,
        noun: str,
        tokens: dict[str, int],
        photo_codes: list[Tensor],
        replay: Replay | None,
        loss: str,
        seed: int,
    ) -> None:
        """Begin with sequence number 0; `start` begins elsewhere, `share` leaves out other processes'."""
        self.backend, self.stage, self.data, self.noun, self.tokens = backend, stage, data, noun, tokens
        self.photo_codes, self.replay, self.loss, self.seed, self.start = photo_codes, replay, loss, seed, 0
        self.share, self.pad = (0, 1), backend.pad_id
        self.image_tokens = image_token_names(len(photo_codes))
        # Without its prompt a sequence holds no identifier, so it would teach nothing where only that trains.
        self.prompt_dropout = data.prompt_dropout if stage.trains.changes_network else 0.0
        self.num_subject = stage.numbers.batch - (stage.numbers.replayed if replay is not None else 0)

    def __iter__(self) -> Iterator[TrainingSequence]:
        """Yield this process's sequences from number `start` on, forever."""
        rank, world = self.share
        for number in itertools.count(self.start):
            if self.stage.numbers.owner(number, world) == rank:
                yield self.sequence(number)

    def sequence(self, number: int) -> TrainingSequence:
        """Return sequence `number` of the stage."""
        generator = self._generator(number)
        step, slot = divmod(number, self.stage.numbers.batch)
        if slot >= self.num_subject:
            (prompt, codes), dropout = self._replayed(generator), self.data.replay_prompt_dropout
        else:
            own = step * self.num_subject + slot
            (prompt, codes), dropout = self._subject(own, generator), self.prompt_dropout
        if uniform(generator) < dropout:
            made = self.backend.unconditional_sequence(codes, loss=self.loss)
        else:
            made = self.backend.training_sequence(prompt, codes, self.tokens, loss=self.loss)
        return replace(made, key=stream_seed(self.seed, self.stage.name, number, "pass"))

    def pictures(self, step: int) -> list[str]:
        """Return the names of the pictures that optimizer step `step` sees, replayed ones together."""
        each = self.stage.numbers.sequences
        seen = set()
        for number in range(step * each, (step + 1) * each):
            photo = int(uniform(self._generator(number), 0, len(self.photo_codes)))  # as `_subject` draws
            replayed = number % self.stage.numbers.batch >= self.num_subject
            seen.add("class images" if replayed else f"references/{photo:02d}.png")
        return sorted(seen)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, self.stage.name, number))

    def _subject(self, number: int, generator: torch.Generator) -> tuple[str, Tensor]:
        """Draw a photo and a prompt; `number` counts the subject's sequences, replayed ones left out."""
        photo = int(uniform(generator, 0, len(self.photo_codes)))
        pool = self.photo_codes[photo]
        codes = pool[int(uniform(generator, 0, len(pool)))]
        template = self.data.templates[int(uniform(generator, 0, len(self.data.templates)))]
        ratio = self.stage.numbers.image_token_ratio
        with_token = int((number + 1) * ratio) > int(number * ratio)  # exactly `ratio` of them, evenly spread
        token = self.image_tokens[photo] if with_token else None
        prompt = training_prompt(template, self.noun, image_token=token, class_name=self.data.class_name)
        return prompt, codes

    def _replayed(self, generator: torch.Generator) -> tuple[str, Tensor]:
        assert self.replay is not None
        index = int(uniform(generator, 0, len(self.replay.codes)))
        return self.replay.prompts[index], self.replay.codes[index]


def collate(sequences: Sequence[TrainingSequence], *, pad: int) -> dict[str, Tensor]:
    """Return "ids" (B, T), "loss_mask" (B, T) bool, "keys" (B,); padded at the right."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = torch.tensor(sequence.loss_mask)
    return {"ids": ids, "loss_mask": mask, "keys": torch.tensor([sequence.key for sequence in sequences])}
