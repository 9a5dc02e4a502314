"""Write `report.html`, a self-contained page about a run, from the files in its folder.

Pictures and styles are inline, so nothing is loaded from the network. Sections whose files are missing
(scores, logs) are left out.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import shlex
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from personalar.config.command_line import as_value
from personalar.config.fields import key_of
from personalar.config.subject_config import STYLE
from personalar.core.files import read_json, template_environment, write_text
from personalar.core.measures import added, measures_of
from personalar.core.png import is_whole_png, load_sample, read_png, sample_files
from personalar.core.run_folder import stage_names
from personalar.data.prompts import example_prompt
from personalar.reports.charts import line_chart
from personalar.reports.memorised import MEANING, copied_photo
from personalar.reports.score_table import (
    cell,
    duration,
    heading,
    memory,
    number,
    percent,
    score_columns,
    score_rows,
)
from personalar.reports.summary import read_run, stage_titles, write_summary
from personalar.scoring.score_file import read_scores

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST_PX = 448
"""Pixels of the longer side: larger pictures are scaled down in the page."""
CATEGORIES = {
    "plain": "The subject itself",
    "recontext": "In other places",
    "accessory": "With accessories",
    "property": "With other properties",
    "style": "Things in this style",
}


STYLE_MEANINGS = {
    "style_text": "harmonic mean of DINO and CLIP-T",
    "style_drift": "increase of DINO on prompts without [V] since the base; 0: they do not take on the style",
}
"""Meanings of the measures of a style; see `scoring.subject_scorer.StyleScores`."""


def picture_uri(path: Path, largest: int = LARGEST_PX) -> str:
    """Return a picture as a data URI: the PNG file itself up to `largest` pixels, else a smaller JPEG."""
    image, _ = read_png(path)
    if max(image.size) <= largest:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    # JPEG has no transparency and no palettes.
    smaller = image.convert("RGB")
    smaller.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _scores_by_image(run_dir: Path, run: Mapping[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Return {(stage, kind, prompt, seed): {scorer: value, "right": bool, "copied": path of a photo}}."""
    found: dict[tuple, dict[str, Any]] = {}
    for line in read_scores(run_dir / "scores.jsonl"):
        entry = found.setdefault((line["stage"], line["kind"], line["prompt"], line["seed"]), {})
        entry[line["scorer"]] = line["value"]
        for question in ("context_top1", "accessory_top1", "style_top1"):
            if question in line:
                entry["right"] = line[question]
        if line["kind"] == "subject" and (photo := copied_photo(run_dir, line, run.get("bounds") or {})):
            entry["copied"] = photo
    return found


def read_samples(run_dir: Path, run: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the samples of a run with their scores, and the paths of files that could not be read."""
    scores = _scores_by_image(run_dir, run)
    samples, unreadable = [], []
    for stage in stage_names(run):
        for path in sample_files(run_dir / "images" / stage):
            try:
                sample = load_sample(path)
            # One damaged picture must not prevent the report; the page lists it.
            except (OSError, ValueError):
                unreadable.append(path.relative_to(run_dir).as_posix())
                continue
            key = (sample.stage, sample.kind, sample.prompt, sample.seed)
            samples.append(
                {
                    **dict(zip(("stage", "kind", "prompt", "seed"), key, strict=True)),
                    "template": sample.spec.text,
                    "category": sample.spec.category,
                    "path": path,
                    **scores.get(key, {}),
                }
            )
    return samples, unreadable


def read_references(folder: Path) -> dict[str, list[Path]]:
    """Return the paths of the photos by view ("whole", "cropped", "redrawn"; see data/references.py)."""
    views = {"whole": folder, "cropped": folder / "cropped", "redrawn": folder / "redrawn"}
    found = {}
    for view, path in views.items():
        found[view] = [png for png in sorted(path.glob("*.png")) if is_whole_png(png)]
    return found


def prompt_groups(samples: list[dict[str, Any]], stages: list[str]) -> list[dict[str, Any]]:
    """Arrange samples for the template: groups by category, a row per prompt and seed, a cell per stage."""
    rows: dict[tuple, dict[str, dict]] = {}
    for sample in samples:
        row = rows.setdefault((sample["category"], sample["template"], sample["seed"]), {})
        row[sample["stage"]] = sample
    # Known categories in a fixed order, then those of user-defined prompts.
    categories = [*CATEGORIES, *sorted({key[0] for key in rows} - set(CATEGORIES))]
    seeds = {key[2] for key in rows}
    groups = []
    for category in categories:
        found = []
        for key in sorted(key for key in rows if key[0] == category):
            seed = key[2] if len(seeds) > 1 else None  # shown only if there are several
            cells = [rows[key].get(stage) for stage in stages]
            found.append({"template": key[1], "seed": seed, "cells": cells})
        if found:
            groups.append({"title": CATEGORIES.get(category, category), "rows": found})
    return groups


def read_losses(run_dir: Path, stage: str) -> list[tuple[float, float]]:
    """Return (step, train/loss) of a stage in order.

    A run that was resumed has several log files; the later one replaces steps that were repeated.
    """
    losses: dict[float, float] = {}
    parts = (run_dir / "logs" / stage).rglob("metrics.csv")
    # Sorted by length first, so that part_10 comes after part_2.
    for path in sorted(parts, key=lambda path: (len(path.parent.name), path.parent.name)):
        with path.open(newline="", encoding="utf-8", errors="replace") as stream, suppress(csv.Error):
            for row in csv.DictReader(stream):
                # Rows of other measures have no loss, and a power cut can leave an incomplete row.
                with suppress(KeyError, ValueError, TypeError):
                    losses[float(row["step"])] = float(row["train/loss"])
    return sorted(point for point in losses.items() if math.isfinite(point[1]))


def concept_record(path: Path) -> str | None:
    """Return the formatted content of a concept.json; None if it is missing or damaged."""
    try:
        return json.dumps(read_json(path), indent=2, ensure_ascii=False)
    except (OSError, ValueError):
        return None


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def next_commands(run_dir: Path, run: dict[str, Any], stages: list[str]) -> list[dict[str, str]]:
    """Return useful next commands, each with its purpose."""
    # A short relative path if the run is below the working directory.
    near = Path(os.path.relpath(run_dir))
    shown = run_dir if near.parts[:1] == ("..",) else near
    concept = shlex.quote(f"concept={as_value(str(shown / 'concept'))}")
    data = (run.get("settings") or {}).get("model", {}).get("recipe", {}).get("data") or {}
    example = example_prompt(run.get("noun") or "subject", class_name=data.get("class_name", True))
    prompts = shlex.quote(f'prompts=["{example}"]')
    text = f"python -m personalar.sample {concept} {prompts} {shlex.quote('seeds=[0,1,2,3]')}"
    commands = [{"why": "Generate new pictures", "text": text}]
    left = [name for name in stage_names(run) if name not in stages]
    if left and run.get("command"):
        with suppress(ValueError):  # quotes without an end, in a record of other people
            words = shlex.split(run["command"])
            # The command of the run with the next stage, so that all other settings stay.
            words = [word for word in words if key_of(word) not in ("stage", "stage.run", "overwrite")]
            text = shlex.join([*words, f"stage.run=[{left[0]}]"])
            commands.append({"why": f"Continue with stage {stage_names(run).index(left[0])}", "text": text})
    if run.get("command"):
        commands.append({"why": "Repeat this run", "text": run["command"]})
    return commands


def gather(run_dir: Path) -> dict[str, Any]:
    """Return the variables of the template."""
    run = defaultdict(lambda: None, read_run(run_dir))  # missing fields are left out of the page
    summary = write_summary(run_dir)
    samples, unreadable = read_samples(run_dir, run)
    stages = [stage for stage in stage_names(run) if stage in summary["stages"]]
    last, own = stages[-1] if stages else None, added(measures_of(run))
    final, titles = summary["stages"].get(last, {}), stage_titles(run)
    rows = score_rows(summary, titles)
    columns = score_columns(measures_of(run), [row["values"] for row in rows])
    losses = {stage: read_losses(run_dir, stage) for stage in stages}
    by_kind: dict[str, list[dict[str, Any]]] = {"subject": [], "class": [], "description": []}
    for sample in samples:
        by_kind.setdefault(sample["kind"], []).append(sample)
    charts = {}
    for stage, points in losses.items():
        if points:
            charts[stage] = line_chart(points, title=f"Training loss, {titles[stage][0].lower()}")
    # Class samples are compared with the base's subject samples, whose prompts contain the class only.
    drift = by_kind["class"] + [sample for sample in by_kind["subject"] if sample["stage"] == "base"]
    return {
        "run": run,
        "is_style": run["noun"] == STYLE,
        "style_meanings": STYLE_MEANINGS,
        "summary": summary,
        "stages": stages,
        "titles": titles,
        "last": last,
        "added": own,
        "scored": any(final.get(name) is not None for name in ("dino", *own)),
        "rows": rows,
        "columns": columns,
        "memorised": MEANING,
        "references": read_references(run_dir / "references"),
        "groups": prompt_groups(by_kind["subject"], stages),
        "class_groups": prompt_groups(drift, stages) if by_kind["class"] else [],
        "description_groups": prompt_groups(by_kind["description"], ["base"]),
        "charts": charts,
        "commands": next_commands(run_dir, run, stages),
        "config": _text_of(run_dir / ".hydra" / "config.yaml"),
        "concept": concept_record(run_dir / "concept" / "concept.json"),
        "unreadable": unreadable,
    }


@cache
def templates() -> Environment:
    """Return the environment of reports/templates, which compiles each template once."""
    formats = {"number": number, "percent": percent, "duration": duration, "memory": memory}
    folder = Path(__file__).parent / "templates"
    return template_environment(folder, escape=True, cell=cell, heading=heading, uri=picture_uri, **formats)


def render(context: dict[str, Any], template: str = "report.html.j2") -> str:
    """Render a template of reports/templates to HTML; values are escaped."""
    return templates().get_template(template).render(context)


def write_report(run_dir: Path) -> Path:
    """Write summary.json and report.html to `run_dir`; return the path of the page."""
    run_dir = Path(run_dir)
    path = run_dir / "report.html"
    write_text(path, render(gather(run_dir)))
    return path
