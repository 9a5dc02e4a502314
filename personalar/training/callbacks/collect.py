"""Callbacks that collect the result of a stage from all processes, and measure its training time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


class CollectLearned(L.Callback):
    """Collects the learned tensors from all processes after the last step, and frees the network.

    Attributes:
        learned: see `PersonalizationModule.learned`; empty until training has ended.
    """

    def __init__(self) -> None:
        self.learned: dict[str, Any] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Collect the learned tensors; drop network and optimizer."""
        self.learned = pl_module.learned()
        # At the end of `fit` Lightning copies whatever is left to the host's memory, which a 7B may exceed.
        del pl_module.network, pl_module.transformer
        # Their states are twice as large as the trained weights.
        trainer.strategy.optimizers = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Collect the learned tensors of a stage that was resumed after its last step."""
        if not self.learned:  # Lightning does not call on_train_end if there is no step left
            self.learned = pl_module.learned()


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
