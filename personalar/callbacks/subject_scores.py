"""Scores during training: the means over the validation step's samples, as curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from personalar.scoring.metrics import MeanScores
from personalar.types import Sample

Score = Callable[[Sequence[Sample]], list[dict[str, Any]]]


class SubjectScores(L.Callback):
    """Logs `val/dino`, `val/clip_i`, `val/clip_t` and the zero-shot accuracies, over all processes."""

    def __init__(self, score: Score) -> None:
        """Judge with `score`: samples to lines of scores.jsonl."""
        self.score = score
        self.means = MeanScores()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of a batch."""
        self.means.to(pl_module.device)  # where the collective that joins the processes wants it
        self.means.update(self.score([sample for sample in outputs if sample.kind == "subject"]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Join the processes and log; each of them logs the same numbers."""
        means = self.means.compute()
        self.means.reset()
        pl_module.log_dict({f"val/{measure}": mean.float() for measure, mean in means.items()})
