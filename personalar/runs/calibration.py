"""Check the scorers against published numbers, by scoring real photographs against each other.

Table 1 of DreamBooth has a row "Real Images". It needs no generator, so it checks checkpoint and
preprocessing before any of our own scores are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from personalar.config.commands import EvaluateConfig
from personalar.core.files import write_atomic
from personalar.core.measures import mean
from personalar.data.dreambench import ATTRIBUTION, find_subjects
from personalar.data.subject import read_folder
from personalar.scoring.base import similarity_between
from personalar.scoring.features import ClipScorer, DinoScorer
from personalar.scoring.subject_scorer import load_pair, names_of

TOLERANCE = 0.01
"""Largest absolute difference from a published score that passes."""


def read_photographs(config: EvaluateConfig) -> dict[str, Sequence]:
    """Return the opened photographs of each subject, by its name.

    Raises:
        ValueError: the benchmark has no photographs.
    """
    if config.benchmark.kind != "dreambench":
        raise ValueError("calibrate needs photographs with published values: use benchmark=dreambench")
    print(ATTRIBUTION)
    opened: dict[str, Sequence] = {}
    path = Path(config.benchmark.path or ".").expanduser()
    for name, folder in find_subjects(path, config.benchmark.subjects).items():
        print(f"\n{name}", flush=True)
        opened[name] = [photo.image for photo in read_folder(folder)]
    return opened


def calibrate(config: EvaluateConfig) -> bool:
    """Write calibration.json, print the result, and return whether it agrees with the published values.

    Raises:
        ValueError: the benchmark has no photographs, or no scorers are configured.
    """
    subjects, judges = read_photographs(config), config.scorer
    if judges.clip is None or judges.dino is None:
        raise ValueError("calibrate needs scorers: scorer=dreambench, or scorer.clip=DIR scorer.dino=DIR")
    row = real_images_row(*load_pair(judges), subjects)
    passed, sentence = verdict(row, config.benchmark.published)
    path = Path(config.out) / "calibration.json"
    facts = {"passed": passed, "verdict": sentence, "published": config.benchmark.published, **row}
    # Also after a failure: the file shows the difference.
    write_atomic(path, (json.dumps(facts, indent=1) + "\n").encode())
    for name, value in row["scorers"].items():
        print(f"{name}: {value}")
    count = f"{row['photos']} photos of {len(row['subjects'])} subjects"
    print(f"{count}: DINO {row['dino']:.4f}, CLIP-I {row['clip_i']:.4f}\n{sentence}\nwritten: {path}")
    return passed


def real_images_row(
    clip: ClipScorer, dino: DinoScorer, subjects: Mapping[str, Sequence[Image]]
) -> dict[str, Any]:
    """Return the mean DINO and CLIP-I similarity of real photographs of the same subject.

    The mean is over pairs of photos, then over photos, then over subjects.

    Args:
        clip: CLIP.
        dino: DINO.
        subjects: photos by subject, at least two each.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, images in subjects.items():
        features = {"dino": dino.features(images), "clip_i": clip.image_features(images)}
        rows[name] = {key: mean(similarity_between(value).tolist()) for key, value in features.items()}
    return {
        # So that a subject with more photos does not weigh more.
        **{key: mean(row[key] for row in rows.values()) for key in ("dino", "clip_i")},
        "photos": sum(map(len, subjects.values())),
        "subjects": rows,
        "scorers": names_of(clip, dino),
    }


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
