"""Scores during training: the means over the validation step's samples, as curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from personalar.config.selection import SelectionConfig, rule_values
from personalar.core.types import Sample
from personalar.scoring.metrics import MeanScores

Score = Callable[[Sequence[Sample]], list[dict[str, Any]]]


class SubjectScores(L.Callback):
    """Logs `val/dino`, `val/clip_i`, `val/clip_t`, the zero-shot accuracies and what selection compares.

    Every process has all pictures of a grid (`PersonalizationModule.validation_step`), rank zero alone has
    judges: it scores, the others are told, and all log the same numbers.
    """

    def __init__(self, score: Score | None, selection: SelectionConfig | None = None) -> None:
        """Judge with `score`: samples to lines of scores.jsonl; None above rank zero."""
        self.score, self.selection = score, selection or SelectionConfig()
        self.lines: list[dict[str, Any]] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of a batch."""
        if self.score is not None:
            self.lines += self.score([sample for sample in outputs if sample.kind == "subject"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the means, tell all processes and log."""
        lines, self.lines = self.lines, []
        means = MeanScores(sync_on_compute=False)  # rank zero has all pictures; the others have no lines
        means.update(lines)
        values = {measure: float(mean) for measure, mean in means.compute().items()}
        values |= rule_values(lines, self.selection)
        told = trainer.strategy.broadcast(values)
        pl_module.log_dict({f"val/{measure}": value for measure, value in told.items()})
