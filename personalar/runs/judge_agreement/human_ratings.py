"""Agreement of the scorers with human ratings in the format of DreamBench++."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from personalar.config.scorer_config import ScorerConfig
from personalar.core.measures import Measure
from personalar.core.types import PromptSpec, Sample, Subject, image_fingerprint
from personalar.data.dreambench_plus import ATTRIBUTION, RatedPicture, read_ratings
from personalar.data.photos.photo_folder import open_photo
from personalar.reports.agreement_statistics import auc, bootstrap_interval, fitted, krippendorff_alpha
from personalar.runs.judge_agreement.agreement import Cell, Table, judged
from personalar.scoring.judges import load_judges
from personalar.scoring.subject_scorer import load_pair

GOOD = 3.0
"""Smallest mean rating (0 to 4) of a picture that counts as good in an AUC."""
RATED = (0, 4)
"""Range of the ratings; a measure with the same range is not rescaled."""
NOTE = (
    f"AUC: the probability that a picture of a mean rating of {GOOD:g} and more scores higher than another "
    "one. alpha: Krippendorff's, of the scores and the mean ratings, interval data; scores on another scale "
    "than 0 to 4 are brought to the mean and spread of the ratings. 95 % bootstrap intervals over subjects. "
    "Measures that read the prompt are compared with the ratings of prompt following, the others with those "
    "of likeness."
)


def with_people(config: ScorerConfig, folder: Path) -> tuple[Table, str]:
    """Return AUC and alpha of each measure and alpha between the raters, and a note for readers."""
    print(ATTRIBUTION)
    by_subject: dict[str, list[RatedPicture]] = {}
    for picture in read_ratings(folder):
        by_subject.setdefault(picture.subject, []).append(picture)
    found: dict[Measure, list[np.ndarray]] = {}
    for measure, rows in rated_scores(config, by_subject):
        found.setdefault(measure, []).append(rows)
    table: Table = {}
    for measure, groups in found.items():
        kept = [group for group in groups if len(group)]
        table[measure.title or measure.name] = measure_cells(kept, same_scale=tuple(measure.range) == RATED)
    for asked in ("likeness", "following"):
        everyone = [raters_table(pictures, asked) for pictures in by_subject.values()]
        table[f"people, {asked}"] = people_cells(everyone)
    return table, NOTE


def rated_scores(
    config: ScorerConfig, by_subject: dict[str, list[RatedPicture]]
) -> Iterator[tuple[Measure, np.ndarray]]:
    """Yield for each subject and measure an array (pictures, 2) with score and mean rating."""
    pair = load_pair(config) if config.judges else None
    for name, pictures in by_subject.items():
        photo = open_picture(pictures[0].photo)
        noun, fingerprint = pictures[0].noun, image_fingerprint([photo])
        subject = Subject(name=name, noun=noun, images=(photo,), live=False, fingerprint=fingerprint)
        judges = load_judges(config, subject, prompts=(), device="cpu", pair=pair)
        lines = judges.score([_sample(number, picture) for number, picture in enumerate(pictures)])
        for measure in judged(judges.measures):
            rows = [
                (line["value"], mean_rating(pictures[line["seed"]], measure))
                for line in lines
                if line["scorer"] == measure.name
            ]
            # reshape: an empty list has the shape (0,).
            table = np.array(rows, dtype=np.float64).reshape(-1, 2)
            yield measure, table[np.isfinite(table[:, 1])]


def _sample(number: int, picture: RatedPicture) -> Sample:
    spec = PromptSpec(text=picture.prompt, category="plain")
    image = open_picture(picture.image)
    return Sample(stage="rated", prompt=picture.prompt, kind="subject", seed=number, spec=spec, image=image)


def open_picture(path: Path) -> Image.Image:
    """Return a picture in RGB. Raises ValueError if it cannot be used."""
    photo = open_photo(path)
    if photo.image is None:
        raise ValueError(f"{path} cannot be used: {'; '.join(photo.notes)}")
    return photo.image


def mean_rating(picture: RatedPicture, measure: Measure) -> float:
    """Return the mean rating with which a measure is compared; NaN without ratings."""
    ratings = picture.following if measure.reads else picture.likeness
    known = [value for value in ratings.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def measure_cells(groups: Sequence[np.ndarray], *, same_scale: bool) -> dict[str, Cell]:
    """Return AUC and alpha of a measure.

    Args:
        groups: for each subject an array (pictures, 2), see `rated_scores`.
        same_scale: the scores have the scale of the ratings, and are not rescaled.
    """

    def area(rows: np.ndarray) -> float | None:
        return auc(rows[:, 0], rows[:, 1] >= GOOD)

    def alpha(rows: np.ndarray) -> float | None:
        scores = rows[:, 0] if same_scale else fitted(rows[:, 0], rows[:, 1])
        return krippendorff_alpha(np.stack([scores, rows[:, 1]]))

    everything = np.concatenate(groups) if groups else np.empty((0, 2))
    return {
        name: {
            "value": statistic(everything) if len(everything) else None,
            "interval": bootstrap_interval(groups, statistic),
            "pictures": len(everything),
        }
        for name, statistic in (("AUC", area), ("alpha", alpha))
    }


def raters_table(pictures: Sequence[RatedPicture], asked: str) -> dict[tuple[str, int], float]:
    """Return {(rater, picture): rating} of one subject."""
    return {
        (rater, number): value
        for number, picture in enumerate(pictures)
        for rater, value in getattr(picture, asked).items()
    }


def people_cells(tables: Sequence[dict[tuple[str, int], float]]) -> dict[str, Cell]:
    """Return the alpha between the raters."""
    raters = sorted({rater for table in tables for rater, _ in table})
    groups = []
    for table in tables:
        count = 1 + max((number for _, number in table), default=-1)
        rows = [[table.get((rater, number), math.nan) for rater in raters] for number in range(count)]
        groups.append(np.array(rows, dtype=np.float64).reshape(-1, len(raters)))

    def alpha(rows: np.ndarray) -> float | None:
        return krippendorff_alpha(rows.T)

    everything = np.concatenate(groups)
    value, ends = alpha(everything), bootstrap_interval(groups, alpha)
    return {"alpha": {"value": value, "interval": ends, "pictures": len(everything)}}
