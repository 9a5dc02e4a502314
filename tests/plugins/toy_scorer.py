"""A user-defined scorer: the sharpness of pictures, and the variation of pictures of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from personalar.core.measures import Measure
from personalar.core.types import Sample, Subject


class Sharpness:
    """Sharpness relative to the photos, the spread of "prior" samples, and the number of words of prompts."""

    measures = (
        Measure(name="sharpness", title="sharpness", range=(0, None), better="higher"),
        Measure(name="variety", title="variety", range=(0, 255), better="same", kind="prior"),
        Measure(name="words", title="words", reads="class", better="lower"),
    )

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[float | None]]:
        usual = np.mean([step(photo) for photo in subject.images])
        grey = [np.asarray(sample.image.convert("L"), float).mean() for sample in samples]
        priors = [value for value, sample in zip(grey, samples, strict=True) if sample.kind == "prior"]
        return {
            "sharpness": [self.scale * step(sample.image) / usual for sample in samples],
            "variety": [float(np.std(priors)) if sample.kind == "prior" else None for sample in samples],
            "words": [len(sample.prompt.split()) for sample in samples],
        }


def step(image) -> float:
    """Return the mean difference of neighbouring pixels."""
    return float(np.abs(np.diff(np.asarray(image.convert("L"), float), axis=1)).mean())
