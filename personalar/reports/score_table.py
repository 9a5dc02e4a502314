"""The table of scores on a page: its rows, the columns that contain a value, and the formats of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from personalar.core.measures import Measure
from personalar.reports.summary import DESCRIPTION

SHARES = ("context_accuracy", "accessory_accuracy", "style_accuracy", "memorised")
"""Measures that are shown as percentages."""
MOST_SECONDS = 1e9
"""Longest wall time that is shown; a damaged file can contain a number that `timedelta` refuses."""


def score_columns(measures: Mapping[str, Measure], values: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    """Return the measures that have a column and a value in at least one row; not the seconds."""
    rows = list(values)
    shown = {name: measure for name, measure in measures.items() if measure.title and name != "seconds"}
    return {name: m for name, m in shown.items() if any(row.get(name) is not None for row in rows)}


def score_rows(summary: Mapping[str, Any], titles: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the rows from ceiling to floor: "title", "style" (a CSS class), "bound" and "values".

    Args:
        summary: content of summary.json.
        titles: see `summary.stage_titles`.
    """
    rows = []
    if summary["ceiling"]:
        rows.append(_row("Ceiling: unseen views", "", {"fidelity": 1.0, **summary["ceiling"]}, bound=True))
    for stage, values in reversed(summary["stages"].items()):
        # The base is what drift is measured against, and it is not trained.
        hidden = ("class_drift", "steps", "seconds") if stage == "base" else ()
        shown = {name: value for name, value in values.items() if name not in hidden}
        rows.append(_row(titles[stage][0], stage, shown))
    if summary["description"]:
        rows.append(_row(DESCRIPTION, "description", summary["description"]))
    if summary["floor"]:
        rows.append(_row("Floor: others of the class", "", {"fidelity": 0.0, **summary["floor"]}, bound=True))
    return rows


def _row(title: str, style: str, values: Mapping[str, Any], *, bound: bool = False) -> dict[str, Any]:
    return {"title": title, "style": style, "values": values, "bound": bound}


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Format a number for a table; a dash for None."""
    # "z" avoids "-0.000"; the hyphen is replaced by a minus sign.
    return "–" if value is None else f"{value:{'+' if sign else ''}z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Format a fraction as a percentage; a dash for None."""
    return "–" if value is None else f"{value:z.0%}".replace("-", "−")


def cell(value: float | None, name: str) -> str:
    """Format the value of the measure `name` for a table."""
    if name in SHARES:
        return percent(value)
    return number(value, 0 if name == "seconds" else 3, sign=name == "class_drift")


def heading(title: str) -> str:
    """Return the title of a column with a capital first letter."""
    return title[:1].upper() + title[1:]


def duration(seconds: float | None) -> str:
    """Format a wall time, such as "0:12:05"; a dash for None."""
    if seconds is None or abs(seconds) > MOST_SECONDS:
        return "–"
    return str(timedelta(seconds=round(seconds)))


def memory(size_bytes: float | None) -> str:
    """Format a number of bytes in GB (10^9); a dash for None."""
    return "–" if size_bytes is None else f"{size_bytes / 1e9:.1f} GB"
