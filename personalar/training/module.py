"""The LightningModule: one stage of training; generation is its validation step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.run_config import Stage
from personalar.core.types import Sample
from personalar.generation.generator import Generator
from personalar.generation.requests import Request
from personalar.models.base import Backend
from personalar.training.loss import sequence_loss
from personalar.training.model_prep import require_bitsandbytes
from personalar.training.stage import lr_factor, parameter_groups


def make_optimizer(groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], name: str) -> Any:
    """Return the optimizer over `groups`.

    Args:
        name: "adamw" (fused: one pass over all parameters) or "adamw8bit" (states in 8 bits; bitsandbytes).
    """
    if name == "adamw8bit":
        return require_bitsandbytes("memory.optimizer=adamw8bit").optim.AdamW8bit(groups, betas=betas)
    return torch.optim.AdamW(groups, betas=betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The model of a stage."""

    backend: Backend
    identifier: Identifier
    weights: Mapping[str, nn.Parameter]
    """Parameters of the backend's transformer that train in this stage, by name."""


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `module` that train, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


class PersonalizationModule(L.LightningModule):
    """Trains what the stage names; everything else keeps its bits."""

    def __init__(
        self,
        *,
        build: Callable[[], Network],
        stage: Stage,
        sampler: Callable[[Network], Generator],
        grid: Sequence[Request],
        loss: str,
        z_loss: float = 0.0,
        dropout: float = 0.0,
        optimizer: str = "adamw",
    ) -> None:
        """Store the recipe; `configure_model` builds the network, sharded if the strategy asks for it.

        Args:
            build: makes the network.
            sampler: makes what draws the validation pictures.
            grid: what they are; a validation batch holds numbers into it.
        """
        super().__init__()
        self.strict_loading = False  # a checkpoint holds the trainable tensors only
        self.build, self.sampler, self.stage = build, sampler, stage
        self.grid = tuple(grid)
        self.loss, self.z_loss, self.dropout = loss, z_loss, dropout
        self.optimizer_name = optimizer
        self.network: Network | None = None

    def configure_model(self) -> None:
        """Build the network, once, and freeze all but what the stage trains."""
        if self.network is not None:
            return
        self.network = network = self.build()
        # Not the whole backend: the image tokenizer neither trains nor is it sharded.
        self.transformer, self.identifier = network.backend.transformer, network.identifier
        self.requires_grad_(False)
        for parameter in network.weights.values():
            parameter.requires_grad_(True)
        self.identifier.requires_grad_(self.stage.trains.identifier)

    def release(self) -> None:
        """Let go of the network, when training is over; the identifier stays."""
        self.network = None
        del self.transformer

    def use_weights(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Let the optimizer move `weights` instead of the network's own."""
        self.network = replace(self.network, weights=weights)

    def batch_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what a training pass over one batch minimises."""
        return sequence_loss(
            self.network.backend, self.identifier, batch,
            loss=self.loss, z_loss=self.z_loss, dropout=self.dropout,
        )  # fmt: skip

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch and log it, averaged over processes."""
        loss = self.batch_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["ids"]), sync_dist=self.trainer.world_size > 1)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> list[Sample]:
        """Return the pictures of the grid; this process makes those whose numbers are in `batch` (B,)."""
        # Cached: float32 copies are rounded once, not at every token. Closed: training wants the memory.
        with parametrize.cached(), closing(self.sampler(self.network)) as generator:
            made = generator.samples([self.grid[index] for index in batch.tolist()])
        by_number = self._exchange(batch, made)
        return [by_number[index] for index in sorted(by_number)]

    def _exchange(self, batch: Tensor, made: list[Sample]) -> dict[int, Sample]:
        """Return every process's pictures by number."""
        own = dict(zip(batch.tolist(), made, strict=True))
        if self.trainer.world_size == 1:
            return own
        parts: list[dict[int, Sample] | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, own)
        return {index: sample for part in parts for index, sample in (part or {}).items()}

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over the stage's groups, and its schedule by step."""
        groups = parameter_groups(
            self.stage, rows=self.identifier.rows, weights=self.network.weights.values()
        )
        numbers = self.stage.numbers
        betas = (numbers.betas[0], numbers.betas[1])
        optimizer = make_optimizer(groups, betas=betas, name=self.optimizer_name)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, numbers=numbers))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen base out of the checkpoint."""
        state = {name: tensor.to("cpu", copy=True) for name, tensor in trainable_state(self).items()}
        checkpoint["state_dict"] = state
