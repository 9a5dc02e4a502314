"""Means of score lines as a `torchmetrics.Metric` that counts every picture once, on any number of processes.

The order of the means is that of arXiv 2504.13162, section 5.1: over the references (already done in a line),
then over the images of a subject, then over subjects.
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
    """Return a 52-bit hash of `words`, which float64 represents exactly; all states are float64 tensors."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 12


class MeanScores(Metric):
    """The mean of each measure over images, then over subjects.

    A picture that was scored by two processes counts once; distributed samplers repeat pictures to fill the
    last batch.
    """

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]
    subjects: list[Tensor]
    measures: list[Tensor]
    values: list[Tensor]

    def __init__(self, declared: Sequence[Measure], **options: Any) -> None:
        """Create the metric.

        Args:
            declared: the measures to average.
            options: passed to `torchmetrics.Metric`, such as `sync_on_compute`.
        """
        super().__init__(**options)
        self.declared = tuple(declared)
        # Also for empty states: a process without pictures must send the same dtype as the others.
        self.set_dtype(torch.float64)
        for state in ("images", "subjects", "measures", "values"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add score lines of `Judges.score`; a field "subject" groups the lines of a benchmark's subjects."""
        rows = []
        for line in lines:
            subject, image = line.get("subject"), [line.get(key) for key in _IMAGE]
            for index, measure in enumerate(self.declared):
                value = measure.of(line)
                if value is not None:
                    rows.append((_number(subject, measure.name, *image), _number(subject), index, value))
        # reshape: a process without lines must still append empty columns.
        table = torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, 4)
        for state, column in zip(("images", "subjects", "measures", "values"), table.T, strict=True):
            getattr(self, state).append(column)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each measure by name; measures without a value are left out."""
        images, subjects, measures, values = map(
            dim_zero_cat, (self.images, self.subjects, self.measures, self.values)
        )
        # Keep one row per picture and measure: the last one.
        last = {image: row for row, image in enumerate(images.tolist())}
        once = torch.tensor(sorted(last.values()), dtype=torch.long, device=values.device)
        subjects, measures, values = subjects[once], measures[once], values[once]
        means = {}
        for index, measure in enumerate(self.declared):
            chosen = measures == index
            # Per subject first, so that a subject with more images does not weigh more.
            groups = [values[chosen & (subjects == subject)] for subject in subjects[chosen].unique()]
            if groups:
                means[measure.name] = torch.stack([group.mean() for group in groups]).mean()
        return means
