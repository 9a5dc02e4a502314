"""Line and scatter charts as inline SVG, styled by the page's CSS; no plotting library and no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]
Scale = Callable[[float], float]

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 22, 42
LETTER = (6.6, 15.0)
"""Approximate width and height of a letter in a label, in SVG units."""


def nice_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Return about `count` ticks that cover [low, high], at distances of 1, 2 or 5 times a power of ten."""
    # All values may be equal.
    span = max(high - low, 1e-9)
    raw = span / count
    # The largest power of ten below the distance.
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    # The tolerances keep rounding errors from adding an empty interval.
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def smooth(points: Sequence[Point], *, share: float = 0.06) -> list[Point]:
    """Return the exponential moving average with bias correction.

    Args:
        points: (x, y), sorted by x.
        share: length of the memory as a fraction of the points.
    """
    memory = 1 - 1 / max(1.0, share * len(points))
    total = weight = 0.0
    result = []
    for x, y in points:
        # Dividing by the sum of the weights removes the bias towards 0 at the beginning.
        total, weight = memory * total + y, memory * weight + 1
        result.append((x, total / weight))
    return result


def thin(points: Sequence[Point], *, most: int = 300) -> list[Point]:
    """Return at most about `most` evenly spaced points, including the last one."""
    stride = max(1, math.ceil(len(points) / most))
    # Evenly, so that the shape of the curve stays; a page has several curves.
    chosen = list(points[::stride])
    return chosen if chosen and chosen[-1] == points[-1] else [*chosen, points[-1]]


def _label(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_of: Scale, y_of: Scale, x_title: str
) -> list[str]:
    """Return SVG elements of grid lines, tick labels and the title of the x axis."""
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
    floor, right = HEIGHT - BOTTOM + 19, WIDTH - RIGHT
    for tick in x_ticks:
        parts.append(f'<text x="{x_of(tick):.1f}" y="{floor}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(
        f'<text class="axis" x="{right}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>'
    )
    return parts


def _scales(x: tuple[float, float], y: tuple[float, float]) -> tuple[Scale, Scale]:
    """Return functions that map values in the ranges `x` and `y` to SVG coordinates."""

    def x_of(value: float) -> float:
        return LEFT + (value - x[0]) / (x[1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        clipped = min(max(value, y[0]), y[1])
        # SVG's y axis points down.
        return HEIGHT - BOTTOM - (clipped - y[0]) / (y[1] - y[0]) * (HEIGHT - TOP - BOTTOM)

    return x_of, y_of


def _svg(parts: Sequence[str], title: str, kind: str = "chart") -> str:
    head = f'<svg class="{kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={quoteattr(title)}>'
    return "".join([head, *parts, "</svg>"])


def _polyline(points: Sequence[Point], x_of: Scale, y_of: Scale, name: str) -> str:
    coordinates = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    return f'<polyline class="{name}" points="{coordinates}"/>'


def line_chart(points: Sequence[Point], *, title: str) -> str:
    """Return an `<svg>` with the raw values in a faint colour and their moving average.

    Args:
        points: at least one (x, y), finite and sorted by x.
        title: text for screen readers.
    """
    mean = smooth(points)
    # Outliers, such as the loss of the first steps, would flatten the chart: the range covers the moving
    # average and the central 96 % of the values.
    ordered = sorted(y for _, y in points)
    low = min(min(y for _, y in mean), ordered[len(ordered) // 50])
    high = max(max(y for _, y in mean), ordered[-1 - len(ordered) // 50])
    # A constant loss still needs an axis of positive length.
    y_ticks = nice_ticks(low, high if high > low else low + 1)
    right = max(points[-1][0], points[0][0] + 1)
    x_ticks = [tick for tick in nice_ticks(points[0][0], right) if points[0][0] <= tick <= right]
    x_of, y_of = _scales((points[0][0], right), (y_ticks[0], y_ticks[-1]))
    lines = [_polyline(thin(points), x_of, y_of, "raw"), _polyline(thin(mean), x_of, y_of, "mean")]
    return _svg([*_axes(x_ticks, y_ticks, x_of, y_of, "step"), *lines], title)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One labelled point of a scatter chart."""

    label: str
    x: float
    y: float
    x_range: Point | None = None
    """Confidence interval in x; None if unknown."""
    y_range: Point | None = None
    """Confidence interval in y; None if unknown."""
    best: bool = False
    """True if the point is on the Pareto front."""


def scatter_chart(marks: Sequence[Mark], *, x_title: str, y_title: str) -> str:
    """Return an `<svg>` with labelled points and their intervals; a line connects the Pareto front.

    Args:
        marks: at least one point.
        x_title: title of the x axis.
        y_title: title of the y axis.
    """
    spans = (
        [mark.x_range or (mark.x, mark.x) for mark in marks],
        [mark.y_range or (mark.y, mark.y) for mark in marks],
    )
    x_ticks, y_ticks = (
        nice_ticks(min(low for low, _ in span), max(high for _, high in span) + 1e-6, count=6)
        for span in spans
    )
    x_of, y_of = _scales((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [
        *_axes(x_ticks, y_ticks, x_of, y_of, x_title),
        f'<text class="axis" x="4" y="10">{escape(y_title)}</text>',
        _polyline([(m.x, m.y) for m in sorted(marks, key=lambda m: m.x) if m.best], x_of, y_of, "mean"),
    ]
    for mark, (left, right), (low, high) in zip(marks, *spans, strict=True):
        x, y = x_of(mark.x), y_of(mark.y)
        parts += [
            f'<line class="whisker" x1="{x_of(left):.1f}" x2="{x_of(right):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(low):.1f}" y2="{y_of(high):.1f}"/>',
            f'<circle class="{"best" if mark.best else "other"}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        ]
    points = [(x_of(mark.x), y_of(mark.y)) for mark in marks]
    labels = []  # drawn last, so that no line crosses them; the page's CSS clears the space around letters
    for mark, (x, y), (left, base) in zip(
        marks, points, place_labels([mark.label for mark in marks], points), strict=True
    ):
        middle = base - LETTER[1] / 3
        if abs(middle - y) > LETTER[1]:  # a label far from its point is connected to it by a line
            end = left if left > x else left + LETTER[0] * len(mark.label)
            line = f'x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{middle:.1f}"'
            parts.append(f'<line class="whisker" {line}/>')
        labels.append(f'<text class="label" x="{left:.1f}" y="{base:.1f}">{escape(mark.label)}</text>')
    return _svg([*parts, *labels], f"{y_title} against {x_title}", "chart scatter")


def place_labels(labels: Sequence[str], points: Sequence[Point]) -> list[Point]:
    """Return the left end and baseline of each label: close to its point, without overlapping another label.

    Args:
        labels: texts.
        points: SVG coordinates of their points.
    """
    taken: list[tuple[float, float, float]] = []
    places = []
    for label, (x, y) in zip(labels, points, strict=True):
        width = LETTER[0] * len(label)
        # To the right of the point, unless the label would leave the chart.
        left = x + 10 if x < WIDTH * 0.62 else x - 10 - width
        beside = [line for start, end, line in taken if left < end and start < left + width]
        base = _free_baseline(y, beside, len(labels))
        taken.append((left, left + width, base))
        places.append((left, base))
    return places


def _free_baseline(y: float, taken: Sequence[float], labels: int) -> float:
    """Return the baseline closest to `y`, in steps of a line up or down, that is not `taken`; else `y`."""
    for step in range(2 * labels + 1):
        for sign in (1, -1):
            baseline = y + LETTER[1] / 3 + LETTER[1] * step * sign
            is_inside = LETTER[1] < baseline < HEIGHT - BOTTOM
            if is_inside and all(abs(baseline - line) >= LETTER[1] for line in taken):
                return baseline
    return y
