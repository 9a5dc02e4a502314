"""Callbacks that collect the result of a stage from all processes, and measure its training time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning as L

from personalar.concepts.adapters.lora import lora_files
from personalar.concepts.concept import Concept
from personalar.config.run_config import Stage
from personalar.models.sharding import whole_copy
from personalar.training.context import RunContext
from personalar.training.inputs import stage_inputs

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


def learned_parts(pl_module: PersonalizationModule) -> dict[str, Any]:
    """Return the learned tensors as the fields "rows", "weights", "lora" and "adapters" of a `Concept`.

    All processes must call it, because sharded tensors are gathered.
    """
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


def learned_concept(
    context: RunContext, stage: Stage, parts: dict[str, Any], tokens: dict[str, int]
) -> Concept:
    """Return the concept of `stage`, with what its start contains and it did not train.

    Args:
        parts: see `learned_parts`.
        tokens: ids of [V] and the per-image tokens by name.
    """
    start = stage_inputs(context, stage).concept
    return context.new_concept(
        stage.name,
        tokens=tokens,
        rows=parts["rows"],
        weights={**start.weights, **parts["weights"]},
        lora=parts["lora"] or start.lora,  # one or the other: see stage._check_after_lora
        adapters={**start.adapters, **parts["adapters"]},
    )


class CollectLearned(L.Callback):
    """Collects the learned tensors from all processes after the last step, and frees the network.

    Attributes:
        parts: see `learned_parts`; empty until training has ended.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Collect the learned tensors; drop network and optimizer."""
        self.parts = learned_parts(pl_module)
        # At the end of `fit` Lightning copies whatever is left to the host's memory, which a 7B may exceed.
        del pl_module.network, pl_module.transformer
        # Their states are twice as large as the trained weights.
        trainer.strategy.optimizers = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Collect the learned tensors of a stage that was resumed after its last step."""
        if not self.parts:  # Lightning does not call on_train_end if there is no step left
            self.parts = learned_parts(pl_module)


class StageClock(L.Callback):
    """Measures the seconds of training without sampling, over all parts of an interrupted stage.

    Attributes:
        seconds: the sum so far; it is part of the checkpoint.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Add the time since the last batch or validation."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def on_validation_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Leave out the time of sampling."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Return the state for the checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.seconds = float(state_dict["seconds"])
