"""Scores during training: the means over the validation step's samples, as curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from personalar.scoring.metrics import MeanScores
from personalar.types import Sample

Score = Callable[[Sequence[Sample]], list[dict[str, Any]]]


def curves(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of every measure of `lines`, named `val/{measure}`."""
    means = MeanScores()
    means.update(lines)
    return {f"val/{measure}": float(mean) for measure, mean in means.compute().items()}


class SubjectScores(L.Callback):
    """Logs `val/dino`, `val/clip_i`, `val/clip_t` and the zero-shot accuracies of each validation batch."""

    def __init__(self, score: Score) -> None:
        """Judge with `score`: samples to lines of scores.jsonl."""
        self.score = score

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of a batch."""
        samples = [sample for sample in outputs if sample.kind == "subject"]
        if samples:
            pl_module.log_dict(curves(self.score(samples)), batch_size=len(samples))
