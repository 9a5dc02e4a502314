"""Means of score lines as a `torchmetrics.Metric`, so that every process of a distributed run counts once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

MEASURES = ("dino", "clip_i", "clip_t", "context_accuracy", "accessory_accuracy")


def measures_of(line: dict[str, Any]) -> dict[str, float]:
    """Return what one line of `scores.jsonl` contributes: its value, and 1 or 0 for its question."""
    found = {line["scorer"]: float(line["value"])}
    for question, measure in (("context_top1", "context_accuracy"), ("accessory_top1", "accessory_accuracy")):
        if question in line:
            found[measure] = float(line[question])
    return found


class MeanScores(Metric):
    """The mean of each of `MEASURES` over all lines seen, on all processes."""

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(MEASURES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(MEASURES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, lines: Iterable[dict[str, Any]]) -> None:
        """Count lines as `SubjectScorer.score` returns them."""
        for line in lines:
            for measure, value in measures_of(line).items():
                self.sums[MEASURES.index(measure)] += value
                self.counts[MEASURES.index(measure)] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the means; a measure that no line speaks of is left out."""
        return {
            measure: self.sums[index] / self.counts[index]
            for index, measure in enumerate(MEASURES)
            if self.counts[index] > 0
        }
