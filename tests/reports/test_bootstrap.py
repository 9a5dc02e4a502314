"""Bootstrap: the interval of a mean against theory, pairs against luck, groups against values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from personalar.reports.bootstrap import difference, group_mean, interval, resample


def test_the_interval_is_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    low, high = interval([values.tolist()])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)


def test_groups_that_differ_widen_the_interval() -> None:
    values = [[0.2] * 50, [0.4] * 50, [0.9] * 50]
    alone = interval([[value for group in values for value in group]])
    grouped = interval(values)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])
    assert grouped[0] == pytest.approx(0.2) and grouped[1] == pytest.approx(0.9)


def test_a_large_group_does_not_outweigh_a_small_one() -> None:
    assert group_mean([[1.0] * 99, [0.0], []]) == 0.5 and group_mean([[]]) is None
    assert resample([[1.0] * 99, [0.0]]).mean() == pytest.approx(0.5, abs=0.02)


def test_equal_values_have_no_width_and_one_value_no_interval() -> None:
    assert interval([[0.3] * 5]) == (0.3, 0.3)
    assert interval([[0.3]]) is None and difference([[0.3]]) is None and interval([]) is None


def test_a_real_difference_is_told_from_luck() -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 60)
    better, luck = difference([(noise + 0.06).tolist()]), difference([(noise - noise.mean()).tolist()])
    assert better["p"] < 0.01 and better["low"] > 0
    assert luck["low"] < 0 < luck["high"] and luck["p"] > 0.5
    worse = difference([(-noise - 0.06).tolist()])
    assert worse["high"] < 0 and worse["p"] < 0.01


def test_the_false_alarm_rate_is_near_its_name() -> None:
    rng = np.random.default_rng(3)
    found = [difference([rng.normal(0, 1, 40).tolist()]) for _ in range(200)]
    assert 0.02 < np.mean([one["low"] > 0 or one["high"] < 0 for one in found]) < 0.12
