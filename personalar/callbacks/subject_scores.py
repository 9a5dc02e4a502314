"""Scores during training: DINO, CLIP-I and CLIP-T of the validation step's samples, as curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L

from personalar.types import Sample

Score = Callable[[Sequence[Sample]], list[dict[str, Any]]]


def mean_scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean value per scorer, named `val/{scorer}`."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        values[f"val/{line['scorer']}"].append(float(line["value"]))
    return {name: sum(found) / len(found) for name, found in values.items()}


class SubjectScores(L.Callback):
    """Logs `val/dino`, `val/clip_i` and `val/clip_t` of each validation batch."""

    def __init__(self, score: Score) -> None:
        """Judge with `score`: samples to lines of scores.jsonl."""
        self.score = score

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of a batch."""
        samples = [sample for sample in outputs if sample.kind == "subject"]
        if samples:
            pl_module.log_dict(mean_scores(self.score(samples)), batch_size=len(samples))
