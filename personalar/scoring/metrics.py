"""Means of score lines as a `torchmetrics.Metric`: every picture counts once, on however many processes.

The order is the paper's (arXiv 2504.13162, section 5.1): over the references (done in the line), then over
the images of a subject, then over the subjects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from personalar.core.measures import Measure

_IMAGE = ("stage", "kind", "prompt", "seed")


def _number(*words: object) -> int:
    """Return 52 bits that stand for `words`: a whole number that a float64 holds exactly."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 12


class MeanScores(Metric):
    """The mean of each declared measure: over images, then over subjects.

    A picture that two processes scored (samplers repeat pictures to fill the last batch) counts once.
    """

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]
    subjects: list[Tensor]
    measures: list[Tensor]
    values: list[Tensor]

    def __init__(self, declared: Sequence[Measure], **options: Any) -> None:
        """Take the measures of the lines, and torchmetrics' own `options`, such as `sync_on_compute`."""
        super().__init__(**options)
        self.declared = tuple(declared)
        self.set_dtype(torch.float64)  # also of the empty state that a process without pictures sends
        for state in ("images", "subjects", "measures", "values"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, lines: Iterable[dict[str, Any]]) -> None:
        """Count lines as `Judges.score` returns them; those of a "subject" are averaged first."""
        rows = [
            (
                _number(line.get("subject"), measure.name, *(line.get(key) for key in _IMAGE)),
                _number(line.get("subject")),
                index,
                value,
            )
            for line in lines
            for index, measure in enumerate(self.declared)
            if (value := measure.of(line)) is not None
        ]
        table = torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, 4)
        for state, column in zip(("images", "subjects", "measures", "values"), table.T, strict=True):
            getattr(self, state).append(column)

    def compute(self) -> dict[str, Tensor]:
        """Return the means by name; a measure that no line speaks of is left out."""
        images, subjects, measures, values = map(
            dim_zero_cat, (self.images, self.subjects, self.measures, self.values)
        )
        last = {image: row for row, image in enumerate(images.tolist())}
        once = torch.tensor(sorted(last.values()), dtype=torch.long, device=values.device)
        subjects, measures, values = subjects[once], measures[once], values[once]
        means = {}
        for index, measure in enumerate(self.declared):
            chosen = measures == index
            groups = [values[chosen & (subjects == subject)] for subject in subjects[chosen].unique()]
            if groups:
                means[measure.name] = torch.stack([group.mean() for group in groups]).mean()
        return means
