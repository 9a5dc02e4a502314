"""Means of score lines as a `torchmetrics.Metric`: every picture counts once, on however many processes.

The order is the paper's (arXiv 2504.13162, section 5.1): over the references (done in the line), then over
the images of a subject, then over the subjects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from personalar.core.measures import IN_LINES

_IMAGE = ("stage", "kind", "prompt", "seed")


def measures_of(line: dict[str, Any]) -> dict[str, float]:
    """Return what one line of `scores.jsonl` contributes: its value, and 1 or 0 for its question."""
    found = {line["scorer"]: float(line["value"])}
    for question, measure in (("context_top1", "context_accuracy"), ("accessory_top1", "accessory_accuracy")):
        if question in line:
            found[measure] = float(line[question])
    return found


def _number(*words: object) -> int:
    """Return 52 bits that stand for `words`: a whole number that a float64 holds exactly."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 12


class MeanScores(Metric):
    """The mean of each of `IN_LINES`: over images, then over subjects.

    A picture that two processes scored (samplers repeat pictures to fill the last batch) counts once.
    """

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]
    subjects: list[Tensor]
    measures: list[Tensor]
    values: list[Tensor]

    def __init__(self, **options: Any) -> None:
        """Take torchmetrics' own `options`, such as `sync_on_compute`."""
        super().__init__(**options)
        self.set_dtype(torch.float64)  # also of the empty state that a process without pictures sends
        for state in ("images", "subjects", "measures", "values"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, lines: Iterable[dict[str, Any]]) -> None:
        """Count lines as `SubjectScorer.score` returns them; those of a "subject" are averaged first."""
        rows = [
            (
                _number(line.get("subject"), measure, *(line.get(key) for key in _IMAGE)),
                _number(line.get("subject")),
                IN_LINES.index(measure),
                value,
            )
            for line in lines
            for measure, value in measures_of(line).items()
        ]
        table = torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, 4)
        for state, column in zip(("images", "subjects", "measures", "values"), table.T, strict=True):
            getattr(self, state).append(column)

    def compute(self) -> dict[str, Tensor]:
        """Return the means; a measure that no line speaks of is left out."""
        images, subjects, measures, values = map(
            dim_zero_cat, (self.images, self.subjects, self.measures, self.values)
        )
        last = {image: row for row, image in enumerate(images.tolist())}
        once = torch.tensor(sorted(last.values()), dtype=torch.long, device=values.device)
        subjects, measures, values = subjects[once], measures[once], values[once]
        means = {}
        for index, measure in enumerate(IN_LINES):
            chosen = measures == index
            groups = [values[chosen & (subjects == subject)] for subject in subjects[chosen].unique()]
            if groups:
                means[measure] = torch.stack([group.mean() for group in groups]).mean()
        return means
