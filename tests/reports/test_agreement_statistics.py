"""AUC and Krippendorff's alpha against published numbers and plain definitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from personalar.reports.agreement_statistics import auc, bootstrap_interval, fitted, krippendorff_alpha

NO = float("nan")
WORKED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]
"""The worked example of Krippendorff (2011), part C: four observers, twelve units, missing data."""


def test_alpha_is_that_of_the_published_example() -> None:
    assert krippendorff_alpha(WORKED) == pytest.approx(0.849, abs=5e-4)  # interval data


def test_alpha_has_its_closed_form() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None and krippendorff_alpha([[1, NO], [NO, 2]]) is None
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(0, 5, (2, 20000)))) < 0.03
    table = rng.integers(0, 5, (3, 40)).astype(float)
    pairs = [(a - b) ** 2 for column in table.T for a, b in product(column, repeat=2)]
    values = table.ravel()
    chance = [(a - b) ** 2 for a, b in product(values, repeat=2)]
    observed, expected = sum(pairs) / 2 / len(values), sum(chance) / len(values) / (len(values) - 1)
    assert krippendorff_alpha(table) == pytest.approx(1 - observed / expected)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    scores, good = rng.integers(0, 6, 50), rng.random(50) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert auc(scores, good) == pytest.approx(np.mean(pairs))
    assert auc([1, 2], [True, True]) is None and auc([2, 1], [True, False]) == 1


def test_scores_are_brought_to_the_scale_of_the_ratings() -> None:
    ratings, scores = np.array([0.0, 2.0, 4.0]), np.array([0.2, 0.3, 0.4])
    assert fitted(scores, ratings) == pytest.approx(ratings)
    assert fitted(np.ones(3), ratings) == pytest.approx([2, 2, 2])


def test_intervals_are_over_whole_subjects() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.normal(size=(20, 2)) + subject for subject in range(8)]
    low, high = bootstrap_interval(groups, lambda rows: float(rows[:, 0].mean()))
    assert low < 3.5 < high and high - low > 2  # subjects differ by one; pictures alone would give 0.3
    assert bootstrap_interval(groups[:1], lambda rows: 1.0) is None
    assert bootstrap_interval(groups, lambda rows: None) is None
