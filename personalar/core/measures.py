"""Measures, numbers about pictures: tables, pages, curves and objectives follow from what they declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from personalar.core.types import SampleKind

BETTER = {"higher": "higher is better", "lower": "lower is better", "same": "best as on the base"}
READS = {"class": "reads the prompt with the class for [V]", "prompt": "reads the very prompt"}
DECLARED = ("name", "title", "better", "range", "reads", "kind", "judges")
"""What run.json keeps of the measures that a run used."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number about the quality or the cost of pictures.

    Raises:
        ValueError: a field that is not allowed, with what is.
    """

    name: str
    """In scores.jsonl, summary.json, curves and objectives: small letters, digits and "_"."""
    title: str | None = None
    """Of its column; None: it has none."""
    better: str = "higher"
    """"higher", "lower" or "same" (as on the base)."""
    range: tuple[float | None, float | None] = (None, None)
    """Smallest and largest value; None: no bound."""
    reads: str | None = None
    """What its scorer finds in `Sample.prompt`: "class" (cat for "[V] cat"), else the very words."""
    kind: str = "subject"
    """The mean over samples of this kind (`SampleKind`) stands for a stage."""
    judges: tuple[str, ...] = ()
    """Keys of run.json's "scorers" that determine it; a scorer from outside gets its own."""
    field: str | None = "value"
    """The field of a line of scores.jsonl that holds it; None: reports make it of others."""
    averaged: bool = True
    """Comparisons average it over pictures, with an interval; otherwise over summary.json of the runs."""
    compared: bool = True
    """Comparisons take differences of it, picture by picture."""
    in_summary: bool = True
    """summary.json gives it for a stage, and an objective may be made of it."""

    def __post_init__(self) -> None:
        for field, allowed in (("better", BETTER), ("reads", (None, *READS)), ("kind", get_args(SampleKind))):
            value = getattr(self, field)
            if value not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"measure {self.name!r:.60}: {field}={value!r:.60}; allowed: {names}")
        if not re.fullmatch("[a-z][a-z0-9_]{0,39}", self.name):
            raise ValueError(f"measure {self.name!r:.60}: a name is small letters, digits and _, 40 at most")
        title = self.title or "no column"
        if not isinstance(title, str) or len(title) > 40 or not title.isprintable() or "|" in title:
            raise ValueError(f"measure {self.name}: a title is 40 printable characters at most, without |")
        if len(self.range) != 2 or not all(end is None or abs(end) < 1e300 for end in self.range):
            raise ValueError(f"measure {self.name}: range={self.range!r:.60}; allowed: two numbers or None")

    def of(self, line: Mapping[str, Any]) -> float | None:
        """Return its value in a line of scores.jsonl; None where the line is about others."""
        if self.field is None or (self.field == "value" and line["scorer"] != self.name):
            return None
        return float(line[self.field]) if self.field in line else None

    @property
    def has_interval(self) -> bool:
        """Comparisons show its mean over the subject's pictures with an interval."""
        return self.averaged and self.kind == "subject"

    @property
    def is_scored(self) -> bool:
        """Each picture of the subject has a line of it in scores.jsonl."""
        return self.has_interval and self.field == "value"

    @property
    def hint(self) -> str:
        """A few words on how to read its numbers."""
        low, high = self.range
        ends = [f"from {low:g}" if low is not None else "", f"up to {high:g}" if high is not None else ""]
        parts = (BETTER[self.better], " ".join(filter(None, ends)), READS.get(self.reads or "", ""))
        return "; ".join(filter(None, parts))

    def record(self) -> dict[str, Any]:
        """Return what run.json keeps of it."""
        return {name: getattr(self, name) for name in DECLARED}


_DINO, _CLIP = ("dino", "dino_preprocessing"), ("clip", "clip_preprocessing")
_READING = (*_CLIP, "clip_text")
_JOINED: dict[str, Any] = {"field": None, "compared": True, "in_summary": False}


def _of_each(name: str, title: str, judges: tuple[str, ...], **more: Any) -> Measure:
    """Return a cosine that every picture has."""
    return Measure(name=name, title=title, judges=judges, **{"range": (-1, 1), "compared": False, **more})


def _of_stage(name: str, title: str | None = None, judges: tuple[str, ...] = (), **more: Any) -> Measure:
    """Return a number that a stage has, not each of its pictures."""
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
        _of_stage("class_drift", "class drift", _DINO, better="lower"),
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
"""The measures of this package, in the order of their columns."""
TAKEN = (
    "row", "subjects", "against", "other_judges", "versus", "titles", "stage", "kind", "prompt", "template",
    "seed", "category", "image", "step", "uri", "right", "scorer", "value", "intervals", "categories",
    "v_moved", "pictures_changed", "harmonic", "product", "loss", "protocol",
)  # fmt: skip
"""Names beside those of measures in lines, tables and curves."""
IN_SUMMARY = tuple(name for name, measure in MEASURES.items() if measure.in_summary)


def check_new(measure: Measure, known: Iterable[str] = ()) -> None:
    """Raise ValueError where the name of a measure from outside of this package is taken."""
    if measure.name in {*MEASURES, *TAKEN, *known} or measure.name.endswith("_interval"):
        raise ValueError(f"measure {measure.name!r}: this name is taken; choose another")


def measures_of(*runs: Mapping[str, Any]) -> dict[str, Measure]:
    """Return the measures of this package and those that the records of `runs` (run.json) declare.

    Raises:
        ValueError: a declaration is damaged.
    """
    found = dict(MEASURES)
    try:
        for entry in (entry for run in runs for entry in run.get("measures") or ()):
            pairs = {"range": tuple(entry["range"]), "judges": tuple(map(str, entry["judges"]))}
            measure = Measure(**{name: entry[name] for name in DECLARED} | pairs)
            if measure.name not in found:
                check_new(measure)
            found.setdefault(measure.name, measure)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"run.json is damaged ({error!s:.200}): restore it, or do the run again") from error
    return found


def added(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    """Return those of `measures` with a column that are not of this package."""
    return {name: measure for name, measure in measures.items() if name not in MEASURES and measure.title}
