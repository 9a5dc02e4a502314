"""Charts: round ticks, running means, labels that stay apart, legal SVG."""

from __future__ import annotations

from itertools import combinations

import pytest
from test_run_page import parse

from personalar.reports.charts import (
    HEIGHT,
    LETTER,
    Mark,
    line_chart,
    nice_ticks,
    place_labels,
    scatter_chart,
    smooth,
    thin,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (1.93, 3.7, [1.5, 2, 2.5, 3, 3.5, 4]), (1, 300, [0, 100, 200, 300])],
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_chart_of_one_or_of_equal_points():
    for points in ([(1, 2.0)], [(1, 2.0), (2, 2.0)], [(0, 0.0), (1, 1e9)]):
        chart = line_chart(points, title="<loss>")
        assert "nan" not in chart and "&lt;loss&gt;" in chart
        parse(chart)


def test_running_mean_and_thinning():
    assert smooth([(0, 1.0), (1, 1.0)]) == [(0, 1.0), (1, 1.0)]
    thinned = thin([(float(step), 0.0) for step in range(1001)])
    assert len(thinned) <= 302 and thinned[0][0] == 0 and thinned[-1][0] == 1000


def test_labels_of_points_that_lie_together_stay_apart() -> None:
    labels = ["two stages", "one stage", "one-stage DreamBooth", "two stages, LoRA", "far away"]
    places = place_labels(labels, [(100, 40), (101, 41), (96, 41), (99, 44), (400, 150)])
    for (one, (x, y)), (two, (u, v)) in combinations(zip(labels, places, strict=True), 2):
        side_by_side = x + LETTER[0] * len(one) <= u or u + LETTER[0] * len(two) <= x
        assert side_by_side or abs(y - v) >= LETTER[1], (one, two)
    assert all(LETTER[1] < y < HEIGHT for _, y in places) and places[4][0] < 400  # left of its point


def test_the_scatter_chart_marks_its_front() -> None:
    marks = [Mark(label="<a>", x=0.2, y=0.5, x_range=(0.1, 0.3), best=True), Mark(label="b", x=0.2, y=0.4)]
    chart = scatter_chart(marks, x_title="x", y_title="y")
    parse(chart)
    assert chart.count('class="best"') == 1 and "&lt;a&gt;" in chart and "nan" not in chart
    parse(scatter_chart(marks[:1], x_title="x", y_title="y"))
