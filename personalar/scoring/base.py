"""The contract of scorers, as a protocol: a scorer needs these methods but no base class.

All features are float32, L2-normalised and on the CPU, so a dot product is a cosine similarity in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from personalar.core.measures import Measure
from personalar.core.types import Sample, Subject

Value = float | Mapping[str, Any] | None
"""Score of one picture: a number; a mapping with "value" and further fields for scores.jsonl; or None if the
measure does not apply to this picture."""


class Scorer(Protocol):
    """A scorer of pictures, built in or user-defined (`scorer.extra.NAME._target_`).

    It may have an attribute `version`, which is recorded with its settings in every result; another version
    counts as another scorer.
    """

    @property
    def measures(self) -> Sequence[Measure]:
        """The measures that `score` returns."""

    def score(self, samples: Sequence[Sample], subject: Subject) -> Mapping[str, Sequence[Value]]:
        """Return for each measure one value per sample.

        Args:
            samples: all pictures of one stage and of every kind; the stage "base" comes first. During
                training, the pictures of a sample grid. If the scorer has an attribute `batch`, at most this
                number of pictures per call.
            subject: the subject with its photos.
        """
        ...


def mean_similarity(features: Tensor, references: Tensor) -> Tensor:
    """Return for each picture the mean cosine similarity to all references.

    This follows arXiv 2504.13162, section 5.1: the mean over all references, then over images.

    Args:
        features: (B, D), normalised.
        references: (R, D), normalised.

    Returns:
        (B,) in [-1, 1].
    """
    return (features @ references.T).mean(dim=1)


def similarity_between(features: Tensor) -> Tensor:
    """Return for each picture the mean cosine similarity to all other pictures, without itself.

    Args:
        features: (B, D), normalised.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: there are fewer than two pictures.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"similarity between pictures needs at least 2; got {count}")
    cosines = features @ features.T
    # The diagonal is the similarity of each picture to itself.
    return (cosines.sum(dim=1) - cosines.diagonal()) / (count - 1)
