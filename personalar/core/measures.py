"""Declarations of measures: tables, pages, curves and objectives are built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from personalar.core.types import SampleKind

BETTER = {"higher": "higher is better", "lower": "lower is better", "same": "best as on the base"}
READS = {
    "class": "the scorer gets the prompt with the class instead of [V]",
    "prompt": "the scorer gets the prompt unchanged",
}
DECLARED = ("name", "title", "better", "range", "reads", "kind", "judges")
"""Fields that run.json stores for each measure of a run."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that describes the quality or the cost of generated pictures.

    Raises:
        ValueError: a field with a value that is not allowed.
    """

    name: str
    """Name in scores.jsonl, summary.json, curves and objectives: lower-case letters, digits and "_"."""
    title: str | None = None
    """Title of its column in tables; None: no column."""
    better: str = "higher"
    """Direction: "higher", "lower", or "same" (best if equal to the base)."""
    range: tuple[float | None, float | None] = (None, None)
    """Smallest and largest possible value; None: unbounded."""
    reads: str | None = None
    """"class" if its scorer reads "cat" for "[V] cat", "prompt" if it reads the prompt itself; else None."""
    kind: str = "subject"
    """`SampleKind` over which it is averaged for a stage."""
    judges: tuple[str, ...] = ()
    """Entries of "scorers" in run.json that it depends on; filled in for scorers of other packages."""
    field: str | None = "value"
    """Field of a line of scores.jsonl with its value; None: reports compute it from other measures."""
    averaged: bool = True
    """Comparisons average it over pictures, with an interval; otherwise over the runs' summary.json."""
    compared: bool = True
    """Comparisons test its paired differences, picture by picture."""
    in_summary: bool = True
    """It is in summary.json, so it can be used in an objective."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "range", tuple(self.range))  # hashable, also from a list
        for field, allowed in (("better", BETTER), ("reads", (None, *READS)), ("kind", get_args(SampleKind))):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"measure {self.name!r:.60}: {field}={value!r:.60}; allowed: {names}")
        if not re.fullmatch("[a-z][a-z0-9_]{0,39}", self.name):
            raise ValueError(
                f"measure {self.name!r:.60}: a name has lower-case letters, digits and _, 40 at most"
            )
        title = self.title or "no column"
        if not isinstance(title, str) or len(title) > 40 or not title.isprintable() or "|" in title:
            raise ValueError(f"measure {self.name}: a title is 40 printable characters at most, without |")
        # The comparison is false for NaN too, so NaN and infinite ends are rejected.
        if len(self.range) != 2 or not all(end is None or abs(end) < 1e300 for end in self.range):
            raise ValueError(f"measure {self.name}: range={self.range!r:.60}; allowed: two numbers or None")

    def of(self, line: Mapping[str, Any]) -> float | None:
        """Return its value in a line of scores.jsonl; None if the line has other measures."""
        # A line of scores.jsonl has the value of one scorer, and facts of other measures in further fields.
        if self.field is None or (self.field == "value" and line["scorer"] != self.name):
            return None
        value = line.get(self.field)
        return None if value is None else float(value)

    @property
    def has_interval(self) -> bool:
        """Whether comparisons show its mean over the subject's pictures with an interval."""
        return self.averaged and self.kind == "subject"

    @property
    def is_scored(self) -> bool:
        """Whether each picture of the subject has its own value in scores.jsonl."""
        return self.has_interval and self.field == "value"

    @property
    def hint(self) -> str:
        """Direction, range and prompt in words, for tooltips."""
        low, high = self.range
        ends = []
        if low is not None:
            ends.append(f"from {low:g}")
        if high is not None:
            ends.append(f"up to {high:g}")
        parts = (BETTER[self.better], " ".join(ends), READS.get(self.reads or "", ""))
        return "; ".join(filter(None, parts))

    def record(self) -> dict[str, Any]:
        """Return its entry in run.json."""
        return {name: getattr(self, name) for name in DECLARED}


_DINO, _CLIP = ("dino", "dino_preprocessing"), ("clip", "clip_preprocessing")
_READING = (*_CLIP, "clip_text")
_JOINED: dict[str, Any] = {"field": None, "compared": True, "in_summary": False}


def _of_each(name: str, title: str, judges: tuple[str, ...], **more: Any) -> Measure:
    """Return a cosine similarity per picture."""
    return Measure(name=name, title=title, judges=judges, **{"range": (-1, 1), "compared": False, **more})


def _of_stage(name: str, title: str | None = None, judges: tuple[str, ...] = (), **more: Any) -> Measure:
    """Return a measure of a whole stage, which single pictures do not have."""
    return Measure(
        name=name, title=title, judges=judges, **{"field": None, "averaged": False, "compared": False, **more}
    )


MEASURES = {
    measure.name: measure
    for measure in (
        _of_each("fidelity", "fidelity", _DINO, field=None, range=(None, None)),
        _of_each("dino", "DINO", _DINO),
        _of_each("clip_i", "CLIP-I", _CLIP),
        _of_stage("likeness", "likeness", _DINO, **_JOINED),
        _of_each("clip_t", "CLIP-T", _READING, compared=True, reads="class"),
        _of_each("balance", "likeness × CLIP-T", (*_DINO, *_READING), **_JOINED),
        _of_stage("context_accuracy", "places", _READING, field="context_top1", range=(0, 1)),
        _of_stage("accessory_accuracy", "accessories", _READING, field="accessory_top1", range=(0, 1)),
        _of_stage("style_accuracy", "styles", _READING, field="style_top1", range=(0, 1)),
        _of_stage("class_drift", "class drift", _DINO, better="same"),
        _of_stage("pres", "PRES", _DINO, better="same", range=(-1, 1)),
        _of_stage("diversity", "DIV", _DINO, better="same", range=(0, 2), field="value", kind="prior"),
        _of_stage("drift", "drift", _CLIP, better="lower", range=(0, 2), field="value", kind="unrelated"),
        _of_stage("memorised", "memorised", _DINO, better="lower", range=(0, 1)),
        _of_stage("seconds", "seconds", better="lower", range=(0, None)),
        _of_stage("images"),
        _of_stage("class_dino", judges=_DINO),
        _of_stage("nearest", judges=_DINO),
        _of_stage("steps"),
    )
}
"""The built-in measures, in the order of their columns."""
TAKEN = (
    "row", "subjects", "against", "other_judges", "versus", "titles", "stage", "kind", "prompt", "template",
    "seed", "category", "image", "step", "uri", "right", "scorer", "value", "intervals", "categories",
    "v_moved", "pictures_changed", "harmonic", "loss", "protocol", "selection",
    "selected_step",
)  # fmt: skip
"""Other names in lines of scores.jsonl, tables and curves, which a measure must not have."""
IN_SUMMARY = tuple(name for name, measure in MEASURES.items() if measure.in_summary)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, rounded to 6 digits; None if there is no value, or one is None or not finite."""
    found = [math.nan if value is None else float(value) for value in values]
    result = sum(found) / len(found) if found else math.nan
    return round(result, 6) if math.isfinite(result) else None


def means(lines: Sequence[Mapping[str, Any]], measures: Iterable[Measure]) -> dict[str, float | None]:
    """Return the mean of each of `measures` over lines of scores.jsonl; None without values."""
    found = {}
    for measure in measures:
        values = [measure.of(line) for line in lines]
        found[measure.name] = mean(value for value in values if value is not None)
    return found


def check_new(measure: Measure, known: Iterable[str] = ()) -> None:
    """Raise ValueError if the name of a user-defined measure is already used."""
    if measure.name in {*MEASURES, *TAKEN, *known} or measure.name.endswith("_interval"):
        raise ValueError(f"measure {measure.name!r}: this name is already used; choose another")


def measures_of(*runs: Mapping[str, Any]) -> dict[str, Measure]:
    """Return the built-in measures and those that the records `runs` (contents of run.json) declare.

    Raises:
        ValueError: a declaration is damaged.
    """
    found = dict(MEASURES)
    try:
        for entry in (entry for run in runs for entry in run.get("measures") or ()):
            # JSON has no tuples, but the dataclass must be hashable.
            judges = {"judges": tuple(map(str, entry["judges"]))}
            measure = Measure(**{name: entry[name] for name in DECLARED} | judges)
            if measure.name not in found:
                check_new(measure)
            # If runs declare a measure differently, the first declaration counts.
            found.setdefault(measure.name, measure)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"run.json is damaged ({error!s:.200}): restore it, or do the run again") from error
    return found


def added(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    """Return the user-defined ones of `measures` that have a column."""
    return {name: measure for name, measure in measures.items() if name not in MEASURES and measure.title}
