"""Check the scorers against published numbers, by scoring real photographs against each other.

Table 1 of DreamBooth has a row "Real Images". It needs no generator, so it checks checkpoint and
preprocessing before any of our own scores are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from personalar.core.measures import mean
from personalar.scoring.base import mean_similarity, similarity_between
from personalar.scoring.clip import ClipScorer
from personalar.scoring.dino import DinoScorer
from personalar.scoring.subject_scorer import names_of

TOLERANCE = 0.01
"""Largest absolute difference from a published score that passes."""


def real_images_row(
    clip: ClipScorer, dino: DinoScorer, subjects: Mapping[str, Sequence[Image]]
) -> dict[str, Any]:
    """Return the mean DINO and CLIP-I similarity of real photographs of the same subject.

    The mean is over pairs of photos, then over photos, then over subjects. "with_self" contains the means
    that also count the pair of each photo with itself.

    Args:
        clip: CLIP.
        dino: DINO.
        subjects: photos by subject, at least two each.
    """
    rows: dict[str, dict[str, Any]] = {}
    with_self: dict[str, dict[str, Any]] = {}
    for name, images in subjects.items():
        features = {"dino": dino.features(images), "clip_i": clip.image_features(images)}
        rows[name] = {key: mean(similarity_between(value).tolist()) for key, value in features.items()}
        with_self[name] = {key: mean(mean_similarity(one, one).tolist()) for key, one in features.items()}
    return {
        **_over_subjects(rows),
        "with_self": _over_subjects(with_self),
        "photos": sum(map(len, subjects.values())),
        "subjects": rows,
        "scorers": names_of(clip, dino),
    }


def _over_subjects(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of the subjects' means, so that a subject with more photos does not weigh more."""
    return {key: mean(row[key] for row in rows.values()) for key in ("dino", "clip_i")}


def verdict(row: Mapping[str, Any], published: Mapping[str, float]) -> tuple[bool, str]:
    """Compare `row` (from `real_images_row`) with the published one; return pass or fail, and a message.

    Args:
        row: our scores.
        published: "dino", "clip_i" and, optionally, "subjects", their number.
    """
    wanted = int(published.get("subjects", len(row["subjects"])))
    # A mean over some subjects can differ from the published one without any fault.
    if len(row["subjects"]) != wanted:
        return False, (
            f"FAIL: got {len(row['subjects'])} of {wanted} subjects; the published row is the mean over all "
            "of them: download the whole data set"
        )
    parts = [
        f"{measure} {row[measure]:.3f} (published {published[measure]:.3f}, off by "
        f"{row[measure] - published[measure]:+.3f})"
        for measure in ("dino", "clip_i")
    ]
    passed = all(abs(row[measure] - published[measure]) <= TOLERANCE for measure in ("dino", "clip_i"))
    advice = "" if passed else "; check checkpoint and preprocessing (scorer.dino_preprocess)"
    return passed, f"{'PASS' if passed else 'FAIL'}: {', '.join(parts)}, tolerance {TOLERANCE:g}{advice}"
