"""The contract of scorers; implementations meet these protocols, nothing inherits.

All features are float32, L2-normalised and on the CPU, so that a dot product is a cosine in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL.Image import Image
from torch import Tensor

from personalar.core.measures import Measure
from personalar.core.types import Sample, Subject

Value = float | Mapping[str, Any] | None
"""Of one picture; with "value" and more facts for its line of scores.jsonl; None: this picture has none."""


class Scorer(Protocol):
    """A judge of pictures, ours or one from outside (`scorer.extra.NAME._target_`).

    It may have a `version`, which stands beside its settings in every result: another version is another
    judge.
    """

    @property
    def measures(self) -> Sequence[Measure]:
        """All that it measures."""

    def score(self, samples: Sequence[Sample], subject: Subject) -> Mapping[str, Sequence[Value]]:
        """Return by measure one value for each sample.

        Args:
            samples: all pictures of a stage, of every kind, the base's first of all; in training, a grid. A
                scorer with a `batch` gets at most so many at a time.
            subject: with its photos.
        """
        ...


class ImageTextScorer(Protocol):
    """Pictures and sentences in one space (CLIP)."""

    name: str
    """Checkpoint and the hash of its weights; stands in every result."""
    preprocessing: str
    """How pictures are prepared, in one line; stands in every result."""

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Return (B, D)."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return (B, D)."""
        ...

    def cut_note(self, texts: Sequence[str]) -> str | None:
        """Return a sentence on those of `texts` that are longer than what it reads, or None."""
        ...


class ImageScorer(Protocol):
    """Pictures in a space where the same thing lies close together (DINO)."""

    name: str
    preprocessing: str

    def features(self, images: Sequence[Image]) -> Tensor:
        """Return (B, D)."""
        ...


def mean_similarity(features: Tensor, references: Tensor) -> Tensor:
    """Return (B,): the mean cosine of each of `features` (B, D) with all of `references` (R, D).

    The paper's rule (arXiv 2504.13162, section 5.1): the mean over *all* references, then over images.
    """
    return (features @ references.T).mean(dim=1)


def similarity_between(features: Tensor) -> Tensor:
    """Return (B,): the mean cosine of each of `features` (B, D) with all the others, itself left out.

    Raises:
        ValueError: fewer than two.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"similarity between pictures needs at least 2; got {count}")
    cosines = features @ features.T
    return (cosines.sum(dim=1) - cosines.diagonal()) / (count - 1)
