"""Compare finished runs: means with confidence intervals, and paired differences on the same pictures.

A row of the table is what is compared: a method, a run or a stage. It consists of one state per run, and of
one run per subject of a benchmark. All values are read from the run folders (see docs/evaluation.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalar.core.measures import added, measures_of
from personalar.core.run_folder import first_few, stage_names
from personalar.reports.bootstrap import difference, group_mean, interval
from personalar.reports.protocol import protocol
from personalar.reports.summary import DESCRIPTION, fidelity_of, read_run, stage_titles, summarise
from personalar.scoring.score_file import read_scores

WEIGHTS = re.compile(r".*#(?=[0-9a-f]{12}$)", re.DOTALL)
"""The part of a scorer's name before the hash of its weights: a path, which may differ between machines."""
Picture = tuple[str, str, int]
"""Subject, prompt template and seed: identifies the same picture in every row."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One stage of one finished run."""

    run_dir: Path
    run: dict[str, Any]
    """Content of run.json."""
    summary: dict[str, Any]
    """Content of summary.json."""
    lines: list[dict[str, Any]]
    """Score lines of this stage and kind."""
    stage: str
    kind: str = "subject"
    """Kind of samples: "subject", or "description" for the base with a text description."""

    @property
    def measures(self) -> dict[str, Any]:
        """Values of this state in summary.json, by name."""
        if self.kind == "description":
            return self.summary["description"] or {}
        return self.summary["stages"].get(self.stage, {})

    def values(self, measure: str) -> dict[Picture, float]:
        """Return one measure by picture.

        Args:
            measure: a scorer's name; "fidelity" (DINO scaled to floor and ceiling); "likeness" (fidelity, or
                DINO for photographs); or "balance" (likeness times CLIP-T).
        """
        # Per picture and not of means: a picture must be good in both.
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
            return found  # photographs have no floor and ceiling: use DINO itself
        return {key: value for key, value in scaled.items() if value is not None}

    def judges(self, measure: str) -> tuple[str, ...]:
        """Return the scorers of a measure: hashes of their weights, and their preprocessing."""
        known = self.run.get("scorers") or {}
        declared = measures_of(self.run).get(measure)
        return tuple(WEIGHTS.sub("", str(known.get(name))) for name in (declared.judges if declared else ()))

    def picture(self, line: dict[str, Any]) -> Picture:
        """Return which picture a line is about."""
        return str(self.run.get("subject")), line.get("template", line["prompt"]), line["seed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    title: str
    states: tuple[State, ...]
    """One per subject."""

    def groups(self, measure: str) -> list[list[float]]:
        """Return the values of a measure, one list per subject."""
        return [list(state.values(measure).values()) for state in self.states]

    def pictures(self, measure: str) -> dict[Picture, float]:
        """Return the values of a measure by picture, for all subjects."""
        values: dict[Picture, float] = {}
        for state in self.states:
            values |= state.values(measure)
        return values

    def judges(self, measure: str) -> set[tuple[str, ...]]:
        """Return the scorers of a measure in all runs; more than one entry if they differ between runs."""
        return {state.judges(measure) for state in self.states if state.values(measure)}

    def mean_of(self, name: str) -> float | None:
        """Return the mean over subjects of a value in summary.json; None if it is missing in all."""
        found = [state.measures.get(name) for state in self.states]
        known = [float(value) for value in found if value is not None]
        return sum(known) / len(known) if known else None


def is_run(folder: Path) -> bool:
    """Return True if `folder` is a run folder."""
    return (folder / "run.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Return `[folder]` if it is a run folder, otherwise all run folders below it, sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [folder] if is_run(folder) else sorted(path.parent for path in folder.rglob("run.json"))
    if not found:
        raise FileNotFoundError(
            f"{folder} contains no run (no run.json in it or its subfolders): give folders that "
            "python -m personalar.run wrote"
        )
    return found


def read_states(run_dir: Path) -> dict[tuple[str, str], State]:
    """Return the states of a run by (stage, kind): the base, the base with a description, and each stage."""
    run, lines = read_run(run_dir), read_scores(run_dir / "scores.jsonl")
    summary = summarise(run, lines)
    wanted = [(stage, "subject") for stage in summary["stages"]]
    if summary["description"]:
        # Directly after the base, which it is compared with.
        wanted.insert(1, ("base", "description"))
    states = {}
    for stage, kind in wanted:
        own = [line for line in lines if line["stage"] == stage and line["kind"] == kind]
        states[stage, kind] = State(
            run_dir=run_dir, run=run, summary=summary, stage=stage, kind=kind, lines=own
        )
    return states


def rows_of_runs(run_dirs: Sequence[Path], root: Path | None = None) -> list[Row]:
    """Return one row per run, for its last finished stage; for a single run, one row per stage.

    The title names the stage if it is not the last one of the method.

    Args:
        run_dirs: run folders.
        root: folder to which titles are relative; None means the path as given.

    Raises:
        ValueError: no run has a scored or trained stage yet.
    """
    rows = []
    for run_dir in run_dirs:
        states = read_states(run_dir)
        if len(run_dirs) == 1:
            for (stage, kind), state in states.items():
                title = stage_titles(state.run)[stage][0] if kind == "subject" else DESCRIPTION
                rows.append(Row(title=title, states=(state,)))
        elif last := [state for (_, kind), state in states.items() if kind == "subject"][-1:]:
            title = run_dir.relative_to(root).as_posix() if root else run_dir.as_posix()
            if last[0].stage != stage_names(last[0].run)[-1]:
                title += f" ({last[0].stage})"
            rows.append(Row(title=title, states=tuple(last)))
    if not rows:
        names = first_few([str(run_dir) for run_dir in run_dirs])
        raise ValueError(f"no run with results in {names}: finish one with python -m personalar.run first")
    return rows


def judged_alike(row: Row, reference: Row, measure: str) -> bool:
    """Return True if the same scorers measured both rows; otherwise their values are not comparable."""
    return len(row.judges(measure) | reference.judges(measure)) <= 1


def compare_rows(row: Row, reference: Row, measure: str) -> dict[str, float] | None:
    """Return the paired difference `row` minus `reference` over the pictures that both contain.

    The result is None if there are fewer than two such pictures, or if the scorers differ.
    """
    if not judged_alike(row, reference, measure):
        return None
    ours, theirs = row.pictures(measure), reference.pictures(measure)
    by_subject: dict[str, list[float]] = {}
    # Sorted, so that the bootstrap does not depend on the order of the lines.
    for key in sorted(ours.keys() & theirs.keys()):
        by_subject.setdefault(key[0], []).append(ours[key] - theirs[key])
    return difference(list(by_subject.values()))


def table(rows: Sequence[Row], reference: Row | None = None) -> list[dict[str, Any]]:
    """Return one flat record per row.

    Args:
        rows: at least one.
        reference: the row that the others are compared with; None means the first.

    Returns:
        Per row its measures and their intervals, and: "versus", measure -> difference to the reference;
        "against", the reference's title, or None for the reference itself; "other_judges", measures that
        are not compared because the scorers differ; "titles" of user-defined measures; "protocol" of the
        whole table.
    """
    reference = reference or rows[0]
    measures = measures_of(*(state.run for row in rows for state in row.states))
    shown = {name: measure for name, measure in measures.items() if measure.title}
    compared = [name for name, measure in shown.items() if measure.compared]
    scored = [name for name, measure in measures.items() if measure.is_scored]
    titles = {name: measure.title for name, measure in added(measures).items()}
    states = [state for row in rows for state in row.states]
    said = protocol([s.run for s in states], [line for s in states for line in s.lines])
    records = []
    for row in rows:
        record: dict[str, Any] = {"row": row.title, "subjects": len(row.states)}
        images: set[Picture] = set()
        for name in scored:
            images.update(row.pictures(name))
        record["images"] = len(images)
        for name in [name for name, measure in shown.items() if measure.has_interval]:
            groups = row.groups(name)
            record[name], record[f"{name}_interval"] = group_mean(groups), interval(groups)
        # Measures without values per picture are means from summary.json, without an interval.
        by_stage = [name for name, measure in shown.items() if measure.in_summary and name not in record]
        record |= {name: row.mean_of(name) for name in by_stage}
        record |= {"against": None, "other_judges": [], "versus": {}, "titles": titles, "protocol": said}
        if row is not reference:
            record["against"] = reference.title
            record["other_judges"] = [m for m in compared if not judged_alike(row, reference, m)]
            for measure in compared:
                if found := compare_rows(row, reference, measure):
                    record["versus"][measure] = found
        records.append(record)
    return records


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points without another that is at least as good in both values, by the first value."""
    front: list[tuple[float, float]] = []
    best = -math.inf
    # From the largest x down, a point is on the front if its y exceeds that of all points before it.
    for x, y in sorted(set(points), reverse=True):
        if y > best:
            front.append((x, y))
            best = y
    return front[::-1]
