"""Write the comparison of finished runs.

comparison.html     self-contained page: table, Pareto plot, pictures of the same prompts and seeds
comparison.png      these pictures as one grid
comparison.md       table and paired differences in Markdown
comparison.jsonl    one JSON object per row (see `comparison.table`)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from personalar.core.files import write_text
from personalar.core.measures import MEASURES, Measure, added, measures_of
from personalar.core.own_files import delete_abandoned
from personalar.core.png import load_sample, sample_files, save_png
from personalar.core.types import Sample
from personalar.reports.charts import Mark, scatter_chart
from personalar.reports.comparison import (
    Picture,
    Row,
    find_runs,
    pareto_front,
    rows_of_runs,
    table,
)
from personalar.reports.comparison_table import as_markdown, columns_of, markdown, verdicts
from personalar.reports.memorised import copied_photo
from personalar.reports.picture_grid import draw_grid
from personalar.reports.run_page import render

PER_SUBJECT = 6
"""Prompts per subject that the page shows; the table uses all of them."""
GRID_ROWS = 12
"""Rows of comparison.png."""


def read_pictures(row: Row) -> dict[Picture, tuple[Path, str]]:
    """Return file and category of each sample of a row, by subject, template and seed."""
    found: dict[Picture, tuple[Path, str]] = {}  # without the pictures: a benchmark has thousands
    for state in row.states:
        for path in sample_files(state.run_dir / "images" / state.stage):
            sample = load_sample(path)
            if sample.kind == state.kind:
                key = str(state.run.get("subject")), sample.spec.text, sample.seed
                found[key] = path, sample.spec.category
    return found


def choose(common: Sequence[Picture], categories: dict[Picture, str]) -> list[Picture]:
    """Choose `PER_SUBJECT` pictures of each subject, in turn from each category.

    Args:
        common: pictures that all rows have.
        categories: category of each picture's prompt.
    """
    chosen: list[Picture] = []
    for subject in sorted({key[0] for key in common}):
        turns: dict[str, list[Picture]] = {}
        for key in common:
            if key[0] == subject:
                turns.setdefault(categories[key], []).append(key)
        mixed: list[Picture] = []
        # In turn, so that few pictures still show every kind of prompt.
        for turn in zip_longest(*turns.values()):
            mixed += [key for key in turn if key is not None]
        chosen += mixed[:PER_SUBJECT]
    return chosen


def side_by_side(rows: Sequence[Row]) -> list[tuple[Picture, list[Sample]]]:
    """Return for some pictures of each subject the samples of all rows, in the order of `rows`."""
    drawn = [read_pictures(row) for row in rows]
    common = set(drawn[0]).intersection(*drawn[1:])
    ordered = [key for key in drawn[0] if key in common]
    categories = {key: drawn[0][key][1] for key in ordered}
    chosen = choose(ordered, categories)
    return [(key, [load_sample(found[key][0]) for found in drawn]) for key in chosen]


def marks_of(records: Sequence[dict[str, Any]]) -> tuple[list[Mark], str]:
    """Return the points of the Pareto plot, and the title of its y axis.

    The y axis is fidelity, or DINO if some row with DINO has no fidelity. Rows with other scorers than the
    reference are left out, because their values are not comparable.
    """
    # Values of other scorers have another scale and cannot share the axes.
    records = [record for record in records if not record["other_judges"]]
    scored = [record for record in records if record["dino"] is not None]
    likeness = "fidelity" if all(record["fidelity"] is not None for record in scored) else "dino"
    known = [r for r in scored if r[likeness] is not None and r["clip_t"] is not None]
    front = pareto_front((r["clip_t"], r[likeness]) for r in known)
    marks = []
    for r in known:
        x, y = r["clip_t"], r[likeness]
        ranges = {"x_range": r["clip_t_interval"], "y_range": r[f"{likeness}_interval"]}
        marks.append(Mark(label=r["row"], x=x, y=y, best=(x, y) in front, **ranges))
    return marks, MEASURES[likeness].title or likeness


def _picture(shown: list[tuple[Picture, list[Sample]]], titles: list[str], path: Path) -> None:
    # Evenly spaced, so that all subjects are represented.
    rows = shown[:: max(1, -(-len(shown) // GRID_ROWS))]
    # Name the subject in front of the prompt only if there are several.
    several = len({key[0] for key, _ in rows}) > 1
    names, pictures = [], []
    for (subject, template, _), samples in rows:
        names.append(f"{subject}: {template}" if several else template)
        pictures.append([sample.image for sample in samples])
    save_png(draw_grid(pictures, column_titles=titles, row_titles=names), path)


def copied_photos(row: Row) -> dict[Picture, Path]:
    """Return the most similar training photo of each memorised picture."""
    found = {}
    for state in row.states:
        for line in state.lines:
            if photo := copied_photo(state.run_dir, line, state.run.get("bounds") or {}):
                found[state.picture(line)] = photo
    return found


def _board(
    key: Picture,
    samples: list[Sample],
    rows: Sequence[Row],
    measures: Sequence[Measure],
    photos: Sequence[dict[Picture, Path]],
) -> dict[str, Any]:
    """Return one row of pictures with their scores, for the template; `photos` is `copied_photos` per row."""
    subject, template, seed = key
    cells = []
    for sample, row, nearest in zip(samples, rows, photos, strict=True):
        found = [(measure, row.pictures(measure.name).get(key)) for measure in measures]
        scores = [(measure, value) for measure, value in found if value is not None]
        facts = {"path": sample.path, "prompt": sample.prompt, "seed": seed}
        cells.append({**facts, "scores": scores, "copied": nearest.get(key)})
    return {"template": template.replace("{}", f"⟨{subject}⟩"), "seed": seed, "cells": cells}


def write_comparison(
    rows: Sequence[Row],
    out: Path,
    *,
    title: str = "Comparison",
    reference: Row | None = None,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write the four files to `out` and return the records of the table.

    Args:
        rows: what is compared.
        out: target folder, created if missing.
        title: title of the page.
        reference: the row that the others are compared with; None means the first.
        notes: further lines for the page, such as attribution, licence or protocol.
    """
    records = table(rows, reference)
    measures = measures_of(*(state.run for row in rows for state in row.states))
    under = [measures["dino"], *(measure for measure in added(measures).values() if measure.is_scored)]
    sentences = verdicts(records)
    shown, photos = side_by_side(rows), [copied_photos(row) for row in rows]
    marks, likeness = marks_of(records)
    out.mkdir(parents=True, exist_ok=True)
    # Temporary files of a command that was killed while writing here.
    delete_abandoned(out)
    if shown:
        _picture(shown, [row.title for row in rows], out / "comparison.png")
    context = {
        "title": title,
        "notes": notes,
        "records": records,
        "columns": columns_of(records),
        "measures": measures,
        "under": under,
        "verdicts": sentences,
        "plot": scatter_chart(marks, x_title="CLIP-T (prompt following)", y_title=likeness)
        if marks
        else None,
        "likeness": likeness,
        "titles": [row.title for row in rows],
        "boards": [_board(key, samples, rows, under, photos) for key, samples in shown],
        "commands": sorted({s.run["command"] for row in rows for s in row.states if s.run.get("command")}),
        "scorers": sorted({json.dumps(s.run.get("scorers")) for row in rows for s in row.states}),
    }
    write_text(out / "comparison.html", render(context, "comparison.html.j2"))
    items = [f"- {text}" for text in [*sentences, *notes]]
    text = "\n".join([f"# {as_markdown(title)}", "", markdown(records), "", *items, ""])
    write_text(out / "comparison.md", text)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(out / "comparison.jsonl", lines)
    return records


def compare_folders(folders: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Compare all runs in `folders` and write the files to `out`; return the records of the table.

    Args:
        folders: run folders, or folders that contain runs, such as a sweep.
        out: target folder.
    """
    found = [run for folder in folders for run in find_runs(folder)]
    # The same run can be in two of the folders.
    unique = list(dict.fromkeys(found))
    root = folders[0] if len(folders) == 1 and len(unique) > 1 else None
    return write_comparison(rows_of_runs(unique, root), out)
