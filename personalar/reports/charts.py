"""Line and scatter charts as inline SVG: no plotting library, no script, sharp, coloured by the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]
Scale = Callable[[float], float]

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 22, 42
LETTER = (6.6, 12.5)
"""About the width and the height of a letter of a label."""


def nice_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that cover `low` to `high`."""
    span = max(high - low, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def smooth(points: Sequence[Point], *, share: float = 0.06) -> list[Point]:
    """Return the exponential mean, unbiased at the start, with a memory of `share` of the points."""
    memory = 1 - 1 / max(1.0, share * len(points))
    total = weight = 0.0
    result = []
    for x, y in points:
        total, weight = memory * total + y, memory * weight + 1
        result.append((x, total / weight))
    return result


def thin(points: Sequence[Point], *, most: int = 300) -> list[Point]:
    """Return at most about `most` points, evenly chosen, always with the last one."""
    stride = max(1, math.ceil(len(points) / most))
    chosen = list(points[::stride])
    return chosen if chosen and chosen[-1] == points[-1] else [*chosen, points[-1]]


def _label(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_of: Scale, y_of: Scale, x_title: str
) -> list[str]:
    """Return grid lines and numbers."""
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
    """Return the places in the chart of values in the ranges `x` and `y`."""

    def x_of(value: float) -> float:
        return LEFT + (value - x[0]) / (x[1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        shown = min(max(value, y[0]), y[1])
        return HEIGHT - BOTTOM - (shown - y[0]) / (y[1] - y[0]) * (HEIGHT - TOP - BOTTOM)

    return x_of, y_of


def _svg(parts: Sequence[str], title: str, kind: str = "chart") -> str:
    head = f'<svg class="{kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={quoteattr(title)}>'
    return "".join([head, *parts, "</svg>"])


def _polyline(points: Sequence[Point], x_of: Scale, y_of: Scale, name: str) -> str:
    coordinates = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    return f'<polyline class="{name}" points="{coordinates}"/>'


def line_chart(points: Sequence[Point], *, title: str, x_title: str = "step") -> str:
    """Return an `<svg>` with the raw values, faint, and their running mean.

    Args:
        points: at least one (x, y), sorted by x, finite.
        title: read out by screen readers.
    """
    mean = smooth(points)
    # The first steps may be far off: clip the view to what the running mean shows, plus some of the noise.
    ordered = sorted(y for _, y in points)
    low = min(min(y for _, y in mean), ordered[len(ordered) // 50])
    high = max(max(y for _, y in mean), ordered[-1 - len(ordered) // 50])
    y_ticks = nice_ticks(low, high if high > low else low + 1)
    right = max(points[-1][0], points[0][0] + 1)
    x_ticks = [tick for tick in nice_ticks(points[0][0], right) if points[0][0] <= tick <= right]
    x_of, y_of = _scales((points[0][0], right), (y_ticks[0], y_ticks[-1]))
    lines = [_polyline(thin(points), x_of, y_of, "raw"), _polyline(thin(mean), x_of, y_of, "mean")]
    return _svg([*_axes(x_ticks, y_ticks, x_of, y_of, x_title), *lines], title)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One labelled point of a scatter chart, with its intervals where they are known."""

    label: str
    x: float
    y: float
    x_range: Point | None = None
    y_range: Point | None = None
    best: bool = False
    """On the Pareto front: no other is better in both."""


def scatter_chart(marks: Sequence[Mark], *, x_title: str, y_title: str) -> str:
    """Return an `<svg>` of at least one labelled point with intervals; a line joins the front."""
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
    for mark, (x, y), (left, base) in zip(
        marks, points, place_labels([mark.label for mark in marks], points), strict=True
    ):
        middle = base - LETTER[1] / 3
        if abs(middle - y) > LETTER[1]:  # too far from its point to be read as its own
            end = left if left > x else left + LETTER[0] * len(mark.label)
            line = f'x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{middle:.1f}"'
            parts.append(f'<line class="whisker" {line}/>')
        parts.append(f'<text x="{left:.1f}" y="{base:.1f}">{escape(mark.label)}</text>')
    return _svg(parts, f"{y_title} against {x_title}", "chart scatter")


def place_labels(labels: Sequence[str], points: Sequence[Point]) -> list[Point]:
    """Return where each label begins (left end, baseline), as near to its point as no other is in the way."""
    taken: list[tuple[float, float, float]] = []
    places = []
    for label, (x, y) in zip(labels, points, strict=True):
        width = LETTER[0] * len(label)
        left = x + 10 if x < WIDTH * 0.62 else x - 10 - width
        steps = (step * sign for step in range(2 * len(labels) + 1) for sign in (1, -1))
        spots = (y + LETTER[1] / 3 + LETTER[1] * step for step in steps)
        beside = [line for start, end, line in taken if left < end and start < left + width]
        free = (spot for spot in spots if all(abs(spot - line) >= LETTER[1] for line in beside))
        base = next((spot for spot in free if LETTER[1] < spot < HEIGHT - BOTTOM), y)
        taken.append((left, left + width, base))
        places.append((left, base))
    return places
