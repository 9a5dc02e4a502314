"""Bootstrap confidence intervals of means, and tests of paired differences between two runs.

Values come in groups: the pictures of a subject. A bootstrap sample draws groups with replacement, and then
values within each group with replacement (hierarchical bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
"""Bootstrap samples."""
Groups = Sequence[Sequence[float]]
"""Values by group, such as the scores of each subject's pictures."""


def group_mean(groups: Groups) -> float | None:
    """Return the mean of the groups' means, so that each group has the same weight; None without values."""
    means = [sum(group) / len(group) for group in groups if group]
    return sum(means) / len(means) if means else None


def resample(groups: Groups) -> np.ndarray:
    """Return the mean of the groups' means in each bootstrap sample, shape (DRAWS,); needs a value."""
    filled = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    rng = np.random.default_rng(0)  # a fixed seed: the same scores always give the same interval
    # Groups of different sizes as rows of one padded table, so that all samples are drawn at once.
    table = np.zeros((len(filled), max(map(len, filled))))
    for row, group in enumerate(filled):
        table[row, : len(group)] = group
    sizes = np.array([len(group) for group in filled])
    total = np.zeros(DRAWS)
    # As many groups as there are, each drawn at random in every bootstrap sample.
    for _ in filled:
        rows = rng.integers(0, len(filled), DRAWS)
        columns = (rng.random((DRAWS, table.shape[1])) * sizes[rows, None]).astype(int)
        used = np.arange(table.shape[1]) < sizes[rows, None]  # draw as many values as the group has
        total += (table[rows[:, None], columns] * used).sum(axis=1) / sizes[rows]
    return total / len(filled)


def interval(groups: Groups) -> tuple[float, float] | None:
    """Return the 95 % confidence interval (low, high) of the mean; None for fewer than two values."""
    if sum(map(len, groups)) < 2:
        return None
    low, high = np.quantile(resample(groups), [0.025, 0.975])
    return round(float(low), 6), round(float(high), 6)


def difference(pairs: Groups) -> dict[str, float] | None:
    """Test whether the mean of paired differences is zero.

    Args:
        pairs: by group, the differences between two runs on the same prompt and seed.

    Returns:
        "mean", its 95 % confidence interval "low" to "high", and the two-sided bootstrap p-value "p"; None
        for fewer than two pairs.
    """
    if sum(map(len, pairs)) < 2:
        return None
    means = resample(pairs)
    low, high = np.quantile(means, [0.025, 0.975])
    # The smaller tail, doubled below: a two-sided test.
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    mean = group_mean(pairs)
    assert mean is not None
    # Adding 1 keeps p above 0, which a finite number of samples cannot show.
    p = min(1.0, 2 * (float(beyond) + 1) / (len(means) + 1))
    return {"mean": mean, "low": float(low), "high": float(high), "p": p}
