"""Gather from all processes what a stage has learned, and count the seconds of its training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning as L

from personalar.concepts.adapters.lora import lora_files
from personalar.concepts.concept import Concept
from personalar.models.sharding import whole_copy

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


def learned_parts(pl_module: PersonalizationModule) -> dict[str, Any]:
    """Return the rows, weights, LoRA and adapters of a `Concept`; all processes take part."""
    network = pl_module.network
    weights = {name: whole_copy(p) for name, p in network.weights.items()}
    parts: dict[str, Any] = {
        "rows": whole_copy(pl_module.identifier.rows),
        "adapters": {
            name: {key: whole_copy(p) for key, p in parameters.items()}
            for name, parameters in network.adapters.items()
        },
    }
    if pl_module.stage.trains.lora.rank == 0:
        return {**parts, "weights": weights, "lora": {}}
    files = lora_files(pl_module.transformer, weights)
    return {**parts, "weights": {}, "lora": {f"lora/{name}": data for name, data in files.items()}}


def with_earlier(parts: dict[str, Any], start: Concept) -> dict[str, Any]:
    """Return `parts` with what `start` contains and the stage left alone."""
    return {
        "rows": parts["rows"],
        "weights": {**start.weights, **parts["weights"]},
        "lora": parts["lora"] or start.lora,
        "adapters": {**start.adapters, **parts["adapters"]},
    }


class CollectLearned(L.Callback):
    """Collects what a stage learned, from all processes, and then lets the network go."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.parts: dict[str, Any] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Gather rows and weights; all processes take part.

        The network and the optimizer are dropped, since Lightning would copy them to the host.
        """
        self.parts = learned_parts(pl_module)
        pl_module.release()
        trainer.strategy.optimizers = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Gather from a stage that had no step left to do when it was resumed."""
        if not self.parts:
            self.parts = learned_parts(pl_module)


class StageClock(L.Callback):
    """Counts the seconds of training proper, sampling left out, over all parts of a resumed stage."""

    def __init__(self) -> None:
        """Start at zero; a checkpoint's count is added when a stage resumes."""
        self.seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Start counting."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Add what passed since the last batch or validation."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def on_validation_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Leave out the time of sampling."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Keep the count in the checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint's count."""
        self.seconds = float(state_dict["seconds"])
