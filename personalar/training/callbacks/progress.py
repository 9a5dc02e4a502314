"""The progress bar and the clock of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L


class StageProgress(L.Callback):
    """Moves the bar of a phase with the optimizer's steps."""

    def __init__(self, advance: Callable[..., None]) -> None:
        """Report to `advance(count, note)`."""
        self.advance, self._last_step = advance, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin where a resumed stage begins."""
        self._last_step = trainer.global_step
        self.advance(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count optimizer steps, not batches."""
        steps, self._last_step = trainer.global_step - self._last_step, trainer.global_step
        self.advance(steps, f"loss {float(outputs['loss']):.3f}")


class StageClock(L.Callback):
    """Counts the seconds of training proper, sampling left out, over all parts of a resumed stage."""

    def __init__(self) -> None:
        """Start at zero; a checkpoint's count is added when a stage resumes."""
        self.seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Add what passed since the last batch or validation."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time of sampling."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Keep the count in the checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint's count."""
        self.seconds = float(state_dict["seconds"])
