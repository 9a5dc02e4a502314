"""Training sequences of the photos and of replayed class images, each a function of its number.

Images become codes once; sequence number i of a stage is drawn from a generator seeded with (seed, stage,
i), so a resumed stage continues with the very sequences that an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from personalar.config.recipe import DataNumbers
from personalar.config.run_config import Stage
from personalar.core.files import write_atomic
from personalar.data.prompts import image_token_names, training_prompt
from personalar.models.base import Backend, TrainingSequence

ENCODE_BATCH = 16


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed that any change of any part changes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_crop(photo: Image.Image, scale_min: float, generator: torch.Generator) -> Image.Image:
    """Cut a window of the photo's aspect, between `scale_min` and 1 of its size, anywhere in it."""
    scale = _uniform(generator, scale_min)
    width, height = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    left = round(_uniform(generator, 0, photo.width - width))
    top = round(_uniform(generator, 0, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


@torch.no_grad()
def encode_photos(
    backend: Backend, photos: Sequence[Image.Image], data: DataNumbers, *, seed: int
) -> list[Tensor]:
    """Return per photo the codes (A, h, w) of its A copies and crops.

    All of a photo have the size that suits the whole photo, so photos may differ from each other in shape.
    """
    pools = []
    for index, photo in enumerate(photos):
        generator = torch.Generator().manual_seed(stream_seed(seed, "crops", index))
        prepare = partial(
            backend.preprocess, size=backend.best_size(photo), crop=data.crop, generator=generator
        )
        views = [random_crop(photo, data.crop_scale, generator) for _ in range(data.crops_per_photo)]
        alike = data.crop == "center"  # the same picture has the same codes
        views += [photo] * (min(1, data.copies_per_photo) if alike else data.copies_per_photo)
        pixels = torch.stack([prepare(view) for view in views])
        codes = torch.cat([backend.encode_images(part) for part in pixels.split(ENCODE_BATCH)]).cpu()
        if alike and data.copies_per_photo:
            codes = torch.cat((codes[:-1], codes[-1:].expand(data.copies_per_photo, -1, -1)))
        pools.append(codes)
    return pools


def cached_codes(path: Path, key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return the tensors stored at `path` for `key`, or make and store them."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    if path.is_file():
        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("key") == digest:
                return [stored.get_tensor(f"{index:05d}").long() for index in range(len(stored.keys()))]
    tensors = make()
    packed = {f"{index:05d}": tensor.to(torch.int32).contiguous() for index, tensor in enumerate(tensors)}
    write_atomic(path, save(packed, metadata={"key": digest}))
    return tensors


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Class images that the base itself made: `prompts[i]` and its `codes[i]` (h, w)."""

    prompts: tuple[str, ...]
    codes: tuple[Tensor, ...]


class SequenceStream(IterableDataset):
    """An endless stream of training sequences; which ones depends on their numbers only."""

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
        trains_weights = bool(stage.trains.parameters or stage.trains.lora.rank)
        self.prompt_dropout = data.prompt_dropout if trains_weights else 0.0
        self.replay_prompt_dropout = data.replay_prompt_dropout

    def __iter__(self) -> Iterator[TrainingSequence]:
        """Yield this process's sequences from number `start` on, forever."""
        number = self.start
        while True:
            if self.stage.numbers.owner(number, self.share[1]) == self.share[0]:
                yield self.sequence(number)
            number += 1

    def sequence(self, number: int) -> TrainingSequence:
        """Return sequence `number` of the stage."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.stage.name, number))
        step, slot = divmod(number, self.stage.numbers.batch)
        num_replayed = self.stage.numbers.replayed if self.replay is not None else 0
        num_subject = self.stage.numbers.batch - num_replayed
        if slot >= num_subject:
            (prompt, codes), dropout = self._replayed(generator), self.replay_prompt_dropout
        else:
            own = step * num_subject + slot
            (prompt, codes), dropout = self._subject(own, generator), self.prompt_dropout
        if _uniform(generator) < dropout:
            made = self.backend.unconditional_sequence(codes, loss=self.loss)
        else:
            made = self.backend.training_sequence(prompt, codes, self.tokens, loss=self.loss)
        return replace(made, key=stream_seed(self.seed, self.stage.name, number, "pass"))

    def pictures(self, step: int) -> list[str]:
        """Return the names of the pictures that optimizer step `step` sees, replayed ones together."""
        numbers, each = self.stage.numbers, self.stage.numbers.sequences
        num_subject = numbers.batch - (numbers.replayed if self.replay is not None else 0)
        seen = set()
        for number in range(step * each, (step + 1) * each):
            generator = torch.Generator().manual_seed(stream_seed(self.seed, self.stage.name, number))
            photo = int(_uniform(generator, 0, len(self.photo_codes)))  # the first draw of `_subject`
            replayed = number % numbers.batch >= num_subject
            seen.add("class images" if replayed else f"references/{photo:02d}.png")
        return sorted(seen)

    def _subject(self, number: int, generator: torch.Generator) -> tuple[str, Tensor]:
        """Draw a photo and a prompt; `number` counts the subject's sequences, replayed ones left out."""
        photo = int(_uniform(generator, 0, len(self.photo_codes)))
        pool = self.photo_codes[photo]
        codes = pool[int(_uniform(generator, 0, len(pool)))]
        template = self.data.templates[int(_uniform(generator, 0, len(self.data.templates)))]
        ratio = self.stage.numbers.image_token_ratio
        with_token = int((number + 1) * ratio) > int(number * ratio)  # exactly `ratio` of them, evenly spread
        return training_prompt(
            template,
            self.noun,
            image_token=self.image_tokens[photo] if with_token else None,
            class_name=self.data.class_name,
        ), codes

    def _replayed(self, generator: torch.Generator) -> tuple[str, Tensor]:
        assert self.replay is not None
        index = int(_uniform(generator, 0, len(self.replay.codes)))
        return self.replay.prompts[index], self.replay.codes[index]


def collate(sequences: Sequence[TrainingSequence], *, pad: int) -> dict[str, Tensor]:
    """Return "ids" (B, T), "loss_mask" (B, T) bool, "keys" (B,); padded at the right, where no one looks."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = torch.tensor(sequence.loss_mask)
    return {"ids": ids, "loss_mask": mask, "keys": torch.tensor([sequence.key for sequence in sequences])}


class SubjectData(L.LightningDataModule):
    """Training: the stage's stream from the current step on. Validation: the pictures of the grid."""

    def __init__(
        self,
        *,
        prepare: Callable[[], object],
        make_stream: Callable[[], SequenceStream],
        batch: int,
        num_grid: int,
    ) -> None:
        """Serve a stream, and the numbers 0 to `num_grid` - 1 of the grid's pictures.

        Args:
            prepare: leaves in the run folder what the stream needs; one process calls it, the others wait.
            make_stream: makes the stream, once the model is built.
            batch: sequences in one pass of this process.
        """
        super().__init__()
        self.prepare, self.make_stream, self.batch, self.num_grid = prepare, make_stream, batch, num_grid
        self.prepare_data_per_node = False  # nodes share the run folder

    def prepare_data(self) -> None:
        """Make what is missing in the run folder."""
        self.prepare()

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """Continue where the restored step counter stands, with this process's share of every step."""
        stream, (rank, world) = self.make_stream(), self._rank()
        numbers = stream.stage.numbers
        stream.start = self.trainer.global_step * numbers.sequences if self.trainer else 0
        stream.share = (rank, world)
        return DataLoader(stream, batch_size=self.batch, collate_fn=partial(collate, pad=stream.pad))

    def val_dataloader(self) -> DataLoader:
        """Return one batch of picture numbers: this process's, as many as every other process has.

        Under ZeRO 3 every forward pass takes all processes, so each must make equally many pictures.
        """
        rank, world = self._rank()
        each = math.ceil(self.num_grid / world)
        numbers = [min(rank + world * turn, self.num_grid - 1) for turn in range(each)]
        return DataLoader(numbers, batch_size=max(1, each))
