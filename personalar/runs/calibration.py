"""Calibration of the scorers: score real photographs against each other and compare with published values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from personalar.config.commands import EvaluateConfig
from personalar.core.files import write_atomic
from personalar.data.dreambench import ATTRIBUTION, find_subjects
from personalar.data.subject import read_folder
from personalar.scoring.calibrate import real_images_row, verdict
from personalar.scoring.subject_scorer import load_pair


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
