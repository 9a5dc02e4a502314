"""Keep the state of the step whose sample grid is worth most, and end a stage that gets no better.

What decides (`trainer.callback_metrics`) is the same on every process, so all decide alike. A state that a
checkpoint knows stays on disk until a later checkpoint knows a better one: a run that goes on from any
checkpoint finds what that checkpoint calls the best.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from personalar.training.callbacks.collect import learned_parts

NAME = re.compile(r"step_\d{6,}")
Save = Callable[..., object]


class BestStep(L.Callback):
    """Leaves in `folder` the concept of the step with the highest value; the earlier of two alike."""

    def __init__(self, *, folder: Path, rule: str, last_step: int, save: Save) -> None:
        """Keep by `val/{rule}`.

        Args:
            folder: holds one folder for each state that is still needed.
            last_step: competes too, wherever the interval of the grids falls.
            save: `save(folder, tokens=..., rows=..., weights=..., lora=...)` writes a concept.
        """
        self.folder, self.metric, self.last_step, self.save = folder, f"val/{rule}", last_step, save
        self.step: int | None = None
        self.value = self.grids = 0
        self._named: int | None = None

    def kept(self, step: int | None) -> Path:
        """Return where the concept of `step` lies."""
        return self.folder / f"step_{step or 0:06d}"

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Have a grid made after the last step."""
        if trainer.global_step == self.last_step:
            trainer.val_check_batch = 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this step with the best before it; where it is better, keep it."""
        value = float(trainer.callback_metrics[self.metric])
        self.grids += 1
        if self.step is not None and value <= self.value:
            return
        self.step, self.value = trainer.global_step, value
        parts = learned_parts(pl_module)
        if trainer.is_global_zero:
            self.save(self.kept(self.step), tokens=pl_module.identifier.tokens, **parts)
            needed = {self.kept(self.step), self.kept(self._named)}
            for other in set(self.folder.iterdir()) - needed:
                if NAME.fullmatch(other.name):
                    shutil.rmtree(other)

    def state_dict(self) -> dict[str, Any]:
        """Keep the best in the checkpoint, which then needs it."""
        self._named = self.step
        return {"step": self.step, "value": self.value, "grids": self.grids}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint's best."""
        self.step, self.value, self.grids = (state_dict[name] for name in ("step", "value", "grids"))
        self._named = self.step


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, which stays stopped when a run goes on after the step that stopped it."""

    def __init__(self, *, rule: str, patience: int) -> None:
        """End after `patience` grids in a row without a higher `val/{rule}`."""
        super().__init__(f"val/{rule}", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where the checkpoint was written after the decision."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
