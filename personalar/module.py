"""The LightningModule: one stage of training; generation is its validation step.

What it computes lives in plain functions above the class, so that everything can be tested without a Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.generator import Generator, Request
from personalar.identifier import Identifier
from personalar.models.backend import ChameleonBackend
from personalar.stage import Stage, lr_factor, parameter_groups
from personalar.types import Sample


def sequence_loss(
    backend: ChameleonBackend,
    identifier: Identifier,
    batch: Mapping[str, Tensor],
    *,
    loss: str,
    z_loss: float,
) -> Tensor:
    """Return the mean next-token cross-entropy over the supervised positions.

    With loss="image_tokens" the choice is among the image codes, "the image split of the total vocabulary"
    (arXiv 2504.13162, eq. 1), as in sampling; with "answer" it is among all of the vocabulary.

    Args:
        batch: "ids" (B, T) and "loss_mask" (B, T), true where a token is to be predicted.
        z_loss: weight of the mean squared log-partition (Lumina-mGPT).
    """
    ids, mask = batch["ids"], batch["loss_mask"][:, 1:]
    transformer = backend.transformer
    hidden = transformer(identifier(ids, transformer.embed(ids)))  # (B, T, D)
    rows = backend.tokenizer.image_rows if loss == "image_tokens" else None
    logits = transformer.logits(
        hidden[:, :-1][mask], rows
    )  # (N, V or codes): the head sees supervised positions only
    targets = ids[:, 1:][mask] - (rows.start if rows is not None else 0)
    result = F.cross_entropy(logits, targets)
    if z_loss:
        result = result + z_loss * torch.logsumexp(logits, -1).square().mean()
    return result


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `module` that train, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


class PersonalizationModule(L.LightningModule):
    """Trains what the stage names; everything else keeps its bits."""

    def __init__(
        self,
        *,
        backend: ChameleonBackend,
        identifier: Identifier,
        stage: Stage,
        weights: Mapping[str, nn.Parameter],
        generator: Generator,
        grid: Sequence[Request],
        loss: str,
        z_loss: float = 0.0,
    ) -> None:
        """Freeze all but `weights` (and the identifier, where the stage trains it).

        Args:
            weights: parameters of the backend that train in this stage, by name.
            generator: makes the validation pictures from `backend` and `identifier`.
            grid: what they are; a validation batch holds numbers into it.
        """
        super().__init__()
        self.strict_loading = False  # a checkpoint holds the trainable tensors only
        self.backend, self.identifier = backend, identifier
        self.stage, self.weights, self.generator = stage, dict(weights), generator
        self.grid, self.loss, self.z_loss = tuple(grid), loss, z_loss
        self.requires_grad_(False)
        for parameter in self.weights.values():
            parameter.requires_grad_(True)
        identifier.requires_grad_(stage.trains.identifier)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch and log it."""
        loss = sequence_loss(self.backend, self.identifier, batch, loss=self.loss, z_loss=self.z_loss)
        self.log("train/loss", loss, batch_size=len(batch["ids"]))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> list[Sample]:
        """Return the pictures of the grid that `batch` (B,) numbers."""
        return self.generator.samples([self.grid[index] for index in batch.tolist()])

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over the stage's groups, and its schedule by step."""
        groups = parameter_groups(self.stage, rows=self.identifier.rows, weights=self.weights.values())
        numbers = self.stage.numbers
        optimizer = torch.optim.AdamW(groups, betas=(numbers.betas[0], numbers.betas[1]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, numbers=numbers))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen base out of the checkpoint."""
        checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in trainable_state(self).items()}
