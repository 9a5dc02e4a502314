"""Finished runs against each other: means with intervals, and differences on the very same pictures.

A row is one thing to compare (a method, a run, a stage), made of one state of one or more runs: the state of
each of a benchmark's subjects. Everything comes from the run folders (docs/evaluation.md documents them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalar.core.errors import commands
from personalar.core.measures import MEASURES, added, measures_of
from personalar.reports.bootstrap import Difference, difference, group_mean, interval
from personalar.reports.summary import fidelity_of, read_run, summarise
from personalar.scoring.score_file import read_scores

WEIGHTS = re.compile(r".*#(?=[0-9a-f]{12}$)", re.DOTALL)
"""What a judge's name says before the hash of its weights: a place."""
Picture = tuple[str, str, int]
"""Subject, prompt template, seed: what is drawn again by every method."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One stage of one finished run, as its folder tells it."""

    run_dir: Path
    run: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    """Score lines of the pictures that count for this state."""
    stage: str
    kind: str = "subject"

    @property
    def measures(self) -> dict[str, Any]:
        """The state's entry of summary.json."""
        if self.kind == "description":
            return self.summary["description"] or {}
        return self.summary["stages"].get(self.stage, {})

    def values(self, measure: str) -> dict[Picture, float]:
        """Return one measure of every picture: a scorer's name, "fidelity", "likeness" or "balance"."""
        if measure == "balance":
            likeness, following = self.values("likeness"), self.values("clip_t")
            return {key: value * following[key] for key, value in likeness.items() if key in following}
        scorer = "dino" if measure in ("fidelity", "likeness") else measure
        found = {self.picture(line): line["value"] for line in self.lines if line["scorer"] == scorer}
        if scorer == measure:
            return found
        bounds = self.run.get("bounds")
        scaled = {key: fidelity_of(value, bounds) for key, value in found.items()}
        if measure == "likeness" and None in scaled.values():
            return found  # photographs have no floor and ceiling
        return {key: value for key, value in scaled.items() if value is not None}

    def judges(self, measure: str) -> tuple[str, ...]:
        """Return the judges of a measure: hashes of their weights, and the preparation of the pictures."""
        known = self.run.get("scorers") or {}
        declared = measures_of(self.run).get(measure)
        return tuple(WEIGHTS.sub("", str(known.get(name))) for name in (declared.judges if declared else ()))

    def picture(self, line: dict[str, Any]) -> Picture:
        """Return which picture a line is about."""
        return str(self.run.get("subject")), line.get("template", line["prompt"]), line["seed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    title: str
    states: tuple[State, ...]

    def groups(self, measure: str) -> list[list[float]]:
        """Return the values of every subject."""
        return [list(state.values(measure).values()) for state in self.states]

    def pictures(self, measure: str) -> dict[Picture, float]:
        """Return one measure of every picture of every subject."""
        return {key: value for state in self.states for key, value in state.values(measure).items()}

    def judges(self, measure: str) -> set[tuple[str, ...]]:
        """Return the judges of a measure of all runs; several if they differ."""
        return {state.judges(measure) for state in self.states if state.values(measure)}

    def mean_of(self, name: str) -> float | None:
        """Return the mean over subjects of a value in summary.json."""
        found = [state.measures.get(name) for state in self.states]
        known = [float(value) for value in found if value is not None]
        return sum(known) / len(known) if known else None


def is_run(folder: Path) -> bool:
    """Tell whether `folder` is a run folder."""
    return (folder / "run.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Return `folder` if it is a run, else all finished or unfinished runs below it, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [folder] if is_run(folder) else sorted(path.parent for path in folder.rglob("run.json"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no run (no run.json in it or below): "
            "give folders that python -m personalar.run wrote"
        )
    return found


def identical(rows: Sequence[Row]) -> list[str]:
    """Return a note on each pair of rows whose scores are equal, picture by picture."""
    first: dict[str, str] = {}
    notes = []
    for row in rows:
        found = [
            (state.run.get("subject"), line["prompt"], line["seed"], line["scorer"], line["value"])
            for state in row.states
            for line in state.lines
        ]
        key = repr(sorted(found, key=repr))
        if found and key in first:
            notes.append(f"{row.title} and {first[key]} are identical: what differs changed nothing")
        first.setdefault(key, row.title)
    return notes


def read_states(run_dir: Path) -> dict[tuple[str, str], State]:
    """Return the states of a run by (stage, kind): the base, its text description, and each stage."""
    run, lines = read_run(run_dir), read_scores(run_dir / "scores.jsonl")
    summary = summarise(run, lines)
    wanted = [(stage, "subject") for stage in summary["stages"]]
    if summary["description"]:
        wanted.insert(1, ("base", "description"))
    return {
        (stage, kind): State(
            run_dir=run_dir,
            run=run,
            summary=summary,
            stage=stage,
            kind=kind,
            lines=[line for line in lines if (line["stage"], line["kind"]) == (stage, kind)],
        )
        for stage, kind in wanted
    }


def rows_of_runs(run_dirs: Sequence[Path], root: Path | None = None) -> list[Row]:
    """Return one row for each run, in its last stage; a single run's stages are its rows."""
    rows = []
    if len(run_dirs) == 1:
        for (stage, kind), state in read_states(run_dirs[0]).items():
            title = stage if kind == "subject" else f"{stage} {kind}"
            rows.append(Row(title=title, states=(state,)))
        return rows
    for run_dir in run_dirs:
        last = [state for (_, kind), state in read_states(run_dir).items() if kind == "subject"][-1:]
        title = run_dir.relative_to(root).as_posix() if root else run_dir.as_posix()
        rows.append(Row(title=title, states=tuple(last)))
    return [row for row in rows if row.states]


def judged_alike(row: Row, reference: Row, measure: str) -> bool:
    """Return true if the same judges made a measure in both rows: other scales cannot be compared."""
    return len(row.judges(measure) | reference.judges(measure)) <= 1


def compare_rows(row: Row, reference: Row, measure: str) -> Difference | None:
    """Return `row` minus `reference` over the pictures that both drew; None if none, or by other judges."""
    if not judged_alike(row, reference, measure):
        return None
    ours, theirs = row.pictures(measure), reference.pictures(measure)
    by_subject: dict[str, list[float]] = {}
    for key in sorted(ours.keys() & theirs.keys()):
        by_subject.setdefault(key[0], []).append(ours[key] - theirs[key])
    return difference(list(by_subject.values()))


def table(rows: Sequence[Row], reference: Row | None = None) -> list[dict[str, Any]]:
    """Return one flat record for each row; `versus` compares it with `reference` (by default the first).

    `against` is the reference's title, None for itself; `other_judges` lists the measures that are not
    compared because other judges made them; `titles` are those of measures from outside of this package.
    """
    reference = reference or rows[0]
    measures = measures_of(*(state.run for row in rows for state in row.states))
    shown = {name: measure for name, measure in measures.items() if measure.title}
    compared = [name for name, measure in shown.items() if measure.compared]
    scored = [name for name, measure in measures.items() if measure.is_scored]
    titles = {name: measure.title for name, measure in added(measures).items()}
    records = []
    for row in rows:
        record: dict[str, Any] = {"row": row.title, "subjects": len(row.states)}
        record["images"] = len({key for name in scored for key in row.pictures(name)})
        for name in [name for name, measure in shown.items() if measure.has_interval]:
            groups = row.groups(name)
            record[name], record[f"{name}_interval"] = group_mean(groups), interval(groups)
        by_stage = [name for name, measure in shown.items() if measure.in_summary and name not in record]
        record |= {name: row.mean_of(name) for name in by_stage}
        record |= {"against": None, "other_judges": [], "versus": {}, "titles": titles}
        if row is not reference:
            record["against"] = reference.title
            record["other_judges"] = [m for m in compared if not judged_alike(row, reference, m)]
            for measure in compared:
                if found := compare_rows(row, reference, measure):
                    record["versus"][measure] = vars(found)
        records.append(record)
    return records


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both values, by the first value."""
    front: list[tuple[float, float]] = []
    best = -math.inf
    for x, y in sorted(set(points), reverse=True):
        if y > best:
            front.append((x, y))
            best = y
    return front[::-1]


def columns_of(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the titles of the measures that some record has."""
    titles = titles_of(records)
    names = [name for name in records[0] if any(record[name] is not None for record in records)]
    return {name: titles[name] for name in names if titles.get(name)}


def titles_of(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the titles of all measures; "" for those without a column."""
    own = {name: measure.title or "" for name, measure in MEASURES.items()}
    return own | {name: title for record in records for name, title in record["titles"].items()}


def _cell(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return "–"
    if name == "seconds":
        return f"{value:.0f}"
    ends = record.get(f"{name}_interval")
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else f"{value:.3f}"


def titled(record: dict[str, Any]) -> str:
    """Return a row's title, which says where its scores are not to be held against the reference's."""
    return f"{record['row']} (other judges)" if record["other_judges"] else record["row"]


def as_markdown(text: str) -> str:
    """Return a name of others as text on one line that no markup and no terminal's command can hide in."""
    plain = "".join("�" if commands(sign) else sign for sign in text)
    return re.sub(r"([\\`*\[\]|<>&#~])", r"\\\1", plain)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown; columns that nobody measured are left out."""
    columns = columns_of(records)
    if "fidelity" in columns:
        columns.pop("dino", None)
    head = ["", "subjects", "images", *columns.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in records:
        cells = [as_markdown(titled(record)), str(record["subjects"]), str(record["images"])]
        lines.append("| " + " | ".join([*cells, *(_cell(record, name) for name in columns)]) + " |")
    return "\n".join(lines)


def _sentence(name: str, found: dict[str, Any]) -> str:
    luck = "" if found["low"] > 0 or found["high"] < 0 else " (not significant)"
    return (
        f"{name} {found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], p={found['p']:.3f}{luck}"
    )


def verdicts(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return one sentence for each row: how it differs from the reference, and whether by more than luck."""
    sentences, titles = [], titles_of(records)
    for record in records:
        parts = [_sentence(titles[name], found) for name, found in record["versus"].items()]
        if record["other_judges"]:
            measures = ", ".join(titles[name] for name in record["other_judges"])
            parts.append(
                f"{measures} not compared, as other judges scored the pictures: run both commands again with "
                "the same scorer=, what they learned and drew is kept"
            )
        if parts:
            names = f"{as_markdown(record['row'])} against {as_markdown(record['against'])}"
            sentences.append(f"{names}: {'; '.join(parts)}")
    return sentences
