"""The LightningDataModule of one stage: subject images with identifier prompts, and the grid's numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from personalar.config.run_config import Stage
from personalar.data.stream import SequenceStream, collate
from personalar.models.base import Backend
from personalar.training.context import RunContext
from personalar.training.inputs import stage_inputs


class SubjectDataModule(L.LightningDataModule):
    """Training: the stage's stream from the current step on. Validation: the pictures of the grid.

    Args:
        context: the run, see `runs.personalize.prepare`.
        stage: the stage that trains.
        num_grid: pictures of the grid.
    """

    trainer: L.Trainer

    def __init__(self, context: RunContext, stage: Stage, *, num_grid: int = 0) -> None:
        super().__init__()
        self.context, self.stage, self.num_grid = context, stage, num_grid
        self.prepare_data_per_node = False  # nodes share the run folder

    def prepare_data(self) -> None:
        """Encode the photos and sample class images, where the run folder does not contain them yet."""
        stage_inputs(self.context, self.stage)

    def make_stream(self, backend: Backend) -> SequenceStream:
        """Return the stage's sequences, from the first on."""
        concept, codes, replay = stage_inputs(self.context, self.stage)
        recipe = self.context.config.model.recipe
        return SequenceStream(
            backend=backend, stage=self.stage, data=recipe.data, noun=self.context.subject.noun,
            tokens=concept.tokens, photo_codes=codes, replay=replay, loss=recipe.loss,
            seed=self.context.config.seed,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        """Continue where the restored step counter stands, with this process's share of every step."""
        trainer = self.trainer
        module: Any = trainer.lightning_module
        stream = self.make_stream(module.network.backend)
        stream.start = trainer.global_step * self.stage.numbers.sequences
        stream.share = trainer.global_rank, trainer.world_size
        batch = self.context.plans[self.stage.name].batch
        return DataLoader(stream, batch_size=batch, collate_fn=partial(collate, pad=stream.pad))

    def val_dataloader(self) -> DataLoader:
        """Return one batch of picture numbers: this process's, as many as every other process has.

        Under ZeRO 3 every forward pass takes all processes, so each must make equally many pictures.
        """
        rank, world = self.trainer.global_rank, self.trainer.world_size
        each = math.ceil(self.num_grid / world)
        numbers = [min(rank + world * turn, self.num_grid - 1) for turn in range(each)]
        return DataLoader(numbers, batch_size=max(1, each))  # type: ignore[arg-type]  # a list will do
