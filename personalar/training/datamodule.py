"""The LightningDataModule of one stage: training sequences, and the indices of the grid's pictures."""

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
    """Training sequences of a stage, and as validation data the indices of the grid's pictures.

    Args:
        context: the run, see `runs.personalize.prepare`.
        stage: the stage to train.
        num_grid: number of pictures of the sample grid; 0: no grid.
    """

    trainer: L.Trainer

    def __init__(self, context: RunContext, stage: Stage, *, num_grid: int = 0) -> None:
        super().__init__()
        self.context, self.stage, self.num_grid = context, stage, num_grid
        self.prepare_data_per_node = False  # rank zero prepares for all: machines share the run folder

    def prepare_data(self) -> None:
        """Encode the photos and sample class images, unless the run folder contains them already."""
        stage_inputs(self.context, self.stage)

    def make_stream(self, backend: Backend) -> SequenceStream:
        """Return the training sequences of the stage, from the first step on."""
        concept, codes, on_subject, proxies, replay = stage_inputs(self.context, self.stage)
        config, subject = self.context.config, self.context.subject
        recipe = config.model.recipe
        return SequenceStream(
            backend=backend, stage=self.stage, data=recipe.data, noun=subject.noun,
            tokens=concept.tokens, photo_codes=codes, replay=replay, loss=recipe.loss,
            seed=config.seed, subject_codes=on_subject, captions=subject.captions,
            proxy_codes=proxies, proxy_share=config.subject.proxy_share,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        """Return this process's share of the training sequences, from the current step on."""
        trainer = self.trainer
        module: Any = trainer.lightning_module
        stream = self.make_stream(module.network.backend)
        # A sequence is a function of seed and index, so resuming is a matter of the first index alone.
        stream.start = trainer.global_step * self.stage.numbers.sequences
        stream.share = trainer.global_rank, trainer.world_size
        batch = self.context.plans[self.stage.name].batch
        return DataLoader(stream, batch_size=batch, collate_fn=partial(collate, pad=stream.pad))

    def val_dataloader(self) -> DataLoader:
        """Return one batch, (B,) int64: the indices of the grid's pictures that this process generates."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        # Under ZeRO 3 every forward pass needs all processes, so each generates the same number of pictures.
        # A process without a picture left repeats the last one.
        each = math.ceil(self.num_grid / world)
        numbers = [min(rank + world * turn, self.num_grid - 1) for turn in range(each)]
        return DataLoader(numbers, batch_size=max(1, each))  # type: ignore[arg-type]  # a list is a dataset
