"""The progress bar of a stage."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


class StageProgress(ProgressBar):
    """Lightning's progress bar as a phase of the run's own output, one line where there is no terminal.

    Lightning's bars count batches of an epoch; a stage is one endless epoch, and its optimizer steps count.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        super().__init__()
        self._phase, self._last_step = ExitStack(), 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Open the bar."""
        stage = pl_module.stage
        phase = pl_module.context.reporter.phase(f"stage {stage.name}", stage.numbers.steps, "steps")
        self._advance = self._phase.enter_context(phase)

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Begin where a resumed stage begins."""
        self._last_step = trainer.global_step
        self._advance(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count optimizer steps, not batches."""
        steps, self._last_step = trainer.global_step - self._last_step, trainer.global_step
        self._advance(steps, loss=float(outputs["loss"]))

    def teardown(self, trainer: L.Trainer, pl_module: PersonalizationModule, stage: str) -> None:
        """Close the bar at the end of the stage."""
        self._phase.close()

    def on_exception(self, trainer: L.Trainer, pl_module: PersonalizationModule, exception: Any) -> None:
        """Close the bar without a last line, as the stage is not finished."""
        self._phase.__exit__(type(exception), exception, exception.__traceback__)

    def disable(self) -> None:
        """Do nothing: above rank zero the run's output is silent already."""

    def enable(self) -> None:
        """Do nothing, for the same reason."""
