"""The progress bar of a stage."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


class StageProgress(ProgressBar):
    """Progress bar of the optimizer steps, or one line at the end if the output is not a terminal.

    Lightning's own bars count batches of an epoch, but a stage is one endless epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase, self._last_step = ExitStack(), 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Open the bar."""
        stage = pl_module.stage
        phase = pl_module.context.reporter.phase(f"stage {stage.name}", stage.numbers.steps, "steps")
        self._advance = self._phase.enter_context(phase)

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Advance the bar to the step from which a stage resumes."""
        self._last_step = trainer.global_step
        self._advance(trainer.global_step, earlier=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Advance the bar after an optimizer step; show its loss."""
        if trainer.global_step == self._last_step:  # within an accumulation
            return
        self._last_step = trainer.global_step
        self._advance(1, loss=float(trainer.callback_metrics["train/loss"]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Count the steps of a stage that was resumed after its last step, which has no `on_train_start`."""
        if not self._last_step:
            self._advance(trainer.global_step, earlier=True)

    def teardown(self, trainer: L.Trainer, pl_module: PersonalizationModule, stage: str) -> None:
        """Close the bar and print the summary line."""
        self._phase.close()

    def on_exception(self, trainer: L.Trainer, pl_module: PersonalizationModule, exception: Any) -> None:
        """Close the bar without the summary line, since the stage is not finished."""
        # With the exception the phase's block is left early; `close` would end it normally.
        self._phase.__exit__(type(exception), exception, exception.__traceback__)

    def disable(self) -> None:
        """Do nothing: Lightning calls it above rank zero, where the reporter prints nothing anyway."""

    def enable(self) -> None:
        """Do nothing; see `disable`."""
