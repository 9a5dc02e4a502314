"""The table of measures: names, titles and uses."""

from __future__ import annotations

from dataclasses import dataclass

_DINO, _CLIP = ("dino", "dino_preprocessing"), ("clip", "clip_preprocessing")
_READING = (*_CLIP, "clip_text")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number about the quality or the cost of pictures."""

    title: str | None = None
    """Of its column in a comparison; None: it has none there."""
    judges: tuple[str, ...] = ()
    """Keys of a run's scorers (`SubjectScorer.describe`) that determine it; given where rows are compared."""
    interval: bool = False
    """Comparisons average it over pictures, with an interval; otherwise over summary.json of the runs."""
    compared: bool = False
    """Comparisons take differences of it."""
    in_lines: bool = False
    """Lines of scores.jsonl give it, picture by picture."""
    in_summary: bool = True
    """summary.json gives it for a stage, and an objective may be made of it."""


MEASURES = {
    "fidelity": Measure(title="fidelity", judges=_DINO, interval=True),
    "dino": Measure(title="DINO", judges=_DINO, interval=True, in_lines=True),
    "clip_i": Measure(title="CLIP-I", judges=_CLIP, interval=True, in_lines=True),
    "likeness": Measure(title="likeness", judges=_DINO, compared=True, in_summary=False),
    "clip_t": Measure(title="CLIP-T", judges=_READING, interval=True, compared=True, in_lines=True),
    "balance": Measure(
        title="likeness × CLIP-T",
        judges=(*_DINO, *_READING),
        interval=True,
        compared=True,
        in_summary=False,
    ),
    "context_accuracy": Measure(title="places", in_lines=True),
    "accessory_accuracy": Measure(title="accessories", in_lines=True),
    "class_drift": Measure(title="class drift"),
    "pres": Measure(title="PRES"),
    "diversity": Measure(title="DIV", in_lines=True),
    "drift": Measure(title="drift", in_lines=True),
    "memorised": Measure(title="memorised"),
    "seconds": Measure(title="seconds"),
    "images": Measure(),
    "class_dino": Measure(),
    "nearest": Measure(),
    "steps": Measure(),
}

IN_LINES = tuple(name for name, measure in MEASURES.items() if measure.in_lines)
IN_SUMMARY = tuple(name for name, measure in MEASURES.items() if measure.in_summary)
INTERVALS = {name: measure.title for name, measure in MEASURES.items() if measure.interval}
"""Titles of the columns with an interval."""
SHARES = {
    name: measure.title
    for name, measure in MEASURES.items()
    if measure.title and measure.in_summary and not measure.interval
}
"""Titles of the other columns."""
COMPARED = {name: measure.title for name, measure in MEASURES.items() if measure.compared}
"""Titles of what differences are taken of."""
