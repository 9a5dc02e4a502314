"""Agreement of scores with people's ratings: the area under the ROC curve, and Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 500


def auc(scores: Sequence[float] | np.ndarray, good: Sequence[bool] | np.ndarray) -> float | None:
    """Return the probability that a good item scores higher than another one, ties counted half.

    None without good ones, or without others.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(good, dtype=bool)
    high, low = values[labels], np.sort(values[~labels])
    if not len(high) or not len(low):
        return None
    # The sum counts items below fully, and ties half, after the division by 2.
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * len(low)))


def krippendorff_alpha(ratings: Sequence[Sequence[float]] | np.ndarray) -> float | None:
    """Return Krippendorff's alpha for interval data: 1 perfect agreement, 0 as by chance.

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), with missing data.

    Args:
        ratings: (raters, items), NaN where a rater gave none. Items with one rating do not count.

    Returns:
        None where no item has two ratings, or all ratings are equal.
    """
    table = np.asarray(ratings, dtype=np.float64)
    counts = np.isfinite(table).sum(axis=0)
    # An item with one rating has no pair to compare.
    table, counts = table[:, counts >= 2], counts[counts >= 2]
    total = counts.sum()
    if not total:
        return None
    known = np.nan_to_num(table)
    within = 2 * (counts * (known**2).sum(axis=0) - known.sum(axis=0) ** 2) / (counts - 1)
    expected = 2 * (total * (known**2).sum() - known.sum() ** 2) / (total - 1)
    return float(1 - within.sum() / expected) if expected > 1e-12 else None


def fitted(scores: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """Return `scores` with the mean and the spread of `ratings`, since alpha compares values on one scale."""
    spread = scores.std()
    scale = ratings.std() / spread if spread > 1e-12 else 0.0
    return (scores - scores.mean()) * scale + ratings.mean()


def bootstrap_interval(
    groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float | None]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic of all rows, over draws of whole groups; None if undefined.

    Args:
        groups: rows of each subject.
        statistic: of rows, stacked.
    """
    # A fixed seed: the same ratings always give the same interval.
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS if len(groups) > 1 else 0):
        drawn = [groups[place] for place in rng.integers(0, len(groups), len(groups))]
        value = statistic(np.concatenate(drawn))
        found += [value] if value is not None else []
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)
