"""Gather from all processes what a stage has learned."""

from __future__ import annotations

from typing import Any

import lightning as L

from personalar.concepts.adapters.lora import lora_files
from personalar.models.sharding import whole_copy


def learned_parts(pl_module: L.LightningModule) -> dict[str, Any]:
    """Return the rows, weights and adapter of a `Concept`; all processes take part."""
    weights = {name: whole_copy(p) for name, p in pl_module.network.weights.items()}
    rows = whole_copy(pl_module.identifier.rows)
    if pl_module.stage.trains.lora.rank == 0:
        return {"rows": rows, "weights": weights, "lora": {}}
    files = lora_files(pl_module.transformer, weights)
    return {"rows": rows, "weights": {}, "lora": {f"lora/{name}": data for name, data in files.items()}}


class CollectLearned(L.Callback):
    """Collects what a stage learned, from all processes, and then lets the network go."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.parts: dict[str, Any] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather rows and weights; all processes take part.

        The network and the optimizer are dropped, since Lightning would copy them to the host.
        """
        self.parts = learned_parts(pl_module)
        pl_module.release()
        trainer.strategy.optimizers = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather from a stage that had no step left to do when it was resumed."""
        if not self.parts:
            self.parts = learned_parts(pl_module)
