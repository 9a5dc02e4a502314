"""Do our judges see what the published ones saw? Real photographs scored against each other.

DreamBooth's table 1 has a row "Real Images"; it needs no generator, so checkpoint and preprocessing can be
checked against it before any score of ours is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from personalar.core.measures import MEASURES
from personalar.scoring.base import ImageScorer, ImageTextScorer, mean_similarity, similarity_between
from personalar.scoring.metrics import MeanScores
from personalar.scoring.subject_scorer import names_of

MEASURED = (MEASURES["dino"], MEASURES["clip_i"])


def real_images_row(
    clip: ImageTextScorer, dino: ImageScorer, subjects: Mapping[str, Sequence[Image]]
) -> dict[str, Any]:
    """Return mean DINO and CLIP-I of real photographs: over pairs, then photos, then subjects.

    "with_self" counts the pair of a photo with itself too.
    """
    others, with_self, rows = MeanScores(MEASURED), MeanScores(MEASURED), {}
    for name, images in subjects.items():
        features = {"dino": dino.features(images), "clip_i": clip.image_features(images)}
        others.update(_lines(name, {key: similarity_between(value) for key, value in features.items()}))
        with_self.update(
            _lines(name, {key: mean_similarity(value, value) for key, value in features.items()})
        )
        rows[name] = {
            key: round(float(similarity_between(value).mean()), 6) for key, value in features.items()
        }
    return {
        **{key: round(float(value), 6) for key, value in others.compute().items()},
        "with_self": {key: round(float(value), 6) for key, value in with_self.compute().items()},
        "photos": sum(map(len, subjects.values())),
        "subjects": rows,
        "scorers": names_of(clip, dino),
    }


def _lines(subject: str, values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {"subject": subject, "seed": photo, "scorer": scorer, "value": value}
        for scorer, found in values.items()
        for photo, value in enumerate(found.tolist())
    ]


def verdict(row: Mapping[str, Any], published: Mapping[str, float], tolerance: float) -> tuple[bool, str]:
    """Return whether `row` meets the published one, and a sentence that says why or why not."""
    wanted = int(published.get("subjects", len(row["subjects"])))
    if len(row["subjects"]) != wanted:
        return False, (
            f"FAIL: {len(row['subjects'])} of {wanted} subjects: the published row is over all of them; "
            "fetch the whole data set"
        )
    parts = [
        f"{measure} {row[measure]:.3f} (published {published[measure]:.3f}, off by "
        f"{row[measure] - published[measure]:+.3f})"
        for measure in ("dino", "clip_i")
    ]
    passed = all(abs(row[measure] - published[measure]) <= tolerance for measure in ("dino", "clip_i"))
    advice = "" if passed else "; check checkpoint and preprocessing (scorer.dino_preprocess)"
    return passed, f"{'PASS' if passed else 'FAIL'}: {', '.join(parts)}, tolerance {tolerance:g}{advice}"
