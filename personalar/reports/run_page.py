"""Write `report.html`: one self-contained page about a run, from the files in its folder alone.

Everything is inline, nothing is fetched. Parts whose files are missing (scores, logs) are left out.
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
from pathlib import Path
from typing import Any

from PIL import Image

from personalar.config.command_line import as_value
from personalar.core.files import read_json, write_text
from personalar.core.measures import added, measures_of
from personalar.core.png import is_whole_png, read_png, read_png_metadata
from personalar.core.run_folder import stage_names
from personalar.reports.charts import line_chart
from personalar.reports.memorised import MEANING, copied_photo
from personalar.reports.summary import read_run, write_summary
from personalar.scoring.score_file import read_scores

LARGEST_PX, THUMBNAIL_PX = 448, 96
"""Longer sides are scaled down in the page; the originals stay beside it. A thumbnail is a training photo
beside a picture."""

CATEGORIES = {
    "plain": "The subject itself",
    "recontext": "In other places",
    "accessory": "With accessories",
    "property": "With other properties",
}


def picture_uri(path: Path, largest: int = LARGEST_PX) -> str:
    """Return the picture as a data URI: the very file when small, else a JPEG of at most `largest` pixels."""
    image, _ = read_png(path)
    if max(image.size) <= largest:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    smaller = image.convert("RGB")
    smaller.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _scores_by_image(run_dir: Path, run: Mapping[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Return {(stage, kind, prompt, seed): {scorer: value, "right": bool, "copied": URI of a photo}}."""
    found: dict[tuple, dict[str, Any]] = {}
    for line in read_scores(run_dir / "scores.jsonl"):
        entry = found.setdefault((line["stage"], line["kind"], line["prompt"], line["seed"]), {})
        entry[line["scorer"]] = line["value"]
        for question in ("context_top1", "accessory_top1"):
            if question in line:
                entry["right"] = line[question]
        if line["kind"] == "subject" and (photo := copied_photo(run_dir, line, run.get("bounds") or {})):
            entry["copied"] = picture_uri(photo, THUMBNAIL_PX)
    return found


def read_samples(run_dir: Path, run: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the samples of a run with their scores, and the names of files that could not be read."""
    scores = _scores_by_image(run_dir, run)
    samples, unreadable = [], []
    for stage in stage_names(run):
        for path in sorted((run_dir / "images" / stage).glob("*.png")):
            try:
                found = read_png_metadata(path)
                key = (found["stage"], found["kind"], found["prompt"], int(found["seed"]))
                uri = picture_uri(path)
            except (OSError, KeyError, ValueError):
                unreadable.append(path.relative_to(run_dir).as_posix())
                continue
            samples.append(
                {
                    **dict(zip(("stage", "kind", "prompt", "seed"), key, strict=True)),
                    "template": found.get("template", found["prompt"]),
                    "category": found.get("category", "plain"),
                    "uri": uri,
                    **scores.get(key, {}),
                }
            )
    return samples, unreadable


def read_references(folder: Path) -> dict[str, list[str]]:
    """Return the photos, whole and as the base sees them (`references.py`); empty lists if missing."""
    views = {"whole": folder, "cropped": folder / "cropped", "redrawn": folder / "redrawn"}
    found = {view: filter(is_whole_png, sorted(at.glob("*.png"))) for view, at in views.items()}
    return {view: [picture_uri(path) for path in paths] for view, paths in found.items()}


def prompt_groups(samples: list[dict[str, Any]], stages: list[str]) -> list[dict[str, Any]]:
    """Return the samples by category, a row for each prompt and seed, a cell for each stage."""
    rows: dict[tuple, dict[str, dict]] = {}
    for sample in samples:
        row = rows.setdefault((sample["category"], sample["template"], sample["seed"]), {})
        row[sample["stage"]] = sample
    categories = [*CATEGORIES, *sorted({key[0] for key in rows} - set(CATEGORIES))]
    seeds = {key[2] for key in rows}
    groups = []
    for category in categories:
        keys = sorted(key for key in rows if key[0] == category)
        found = [
            {
                "template": key[1],
                "seed": key[2] if len(seeds) > 1 else None,
                "cells": [rows[key].get(stage) for stage in stages],
            }
            for key in keys
        ]
        if found:
            groups.append({"title": CATEGORIES.get(category, category), "rows": found})
    return groups


def read_losses(run_dir: Path, stage: str) -> list[tuple[float, float]]:
    """Return (step, train/loss) of a stage, in order; a resumed part replaces what it repeats."""
    losses: dict[float, float] = {}
    parts = (run_dir / "logs" / stage).rglob("metrics.csv")
    for path in sorted(parts, key=lambda path: (len(path.parent.name), path.parent.name)):  # part_2, part_10
        with path.open(newline="", encoding="utf-8", errors="replace") as stream, suppress(csv.Error):
            for row in csv.DictReader(stream):
                with suppress(KeyError, ValueError, TypeError):  # lines of other measures, or cut off
                    losses[float(row["step"])] = float(row["train/loss"])
    return sorted(point for point in losses.items() if math.isfinite(point[1]))


def ruler_marks(summary: dict[str, Any], *, apart: float = 0.11) -> list[dict[str, Any]]:
    """Return the fidelities to mark on the ruler, each at a height where its number covers no other."""
    values = {**summary["stages"], "description": summary["description"] or {}}
    found = [(entry["fidelity"], name) for name, entry in values.items() if entry.get("fidelity") is not None]
    last_at = dict.fromkeys(("high", "low", "higher", "lower"), -1.0)
    marks = []
    for value, name in sorted(found):
        position = min(max(value, 0.0), 1.0)
        free = [height for height, at in last_at.items() if position - at >= apart or at < 0]
        height = free[0] if free else "high"
        last_at[height] = position
        marks.append({"name": name, "value": value, "left": round(100 * position, 1), "height": height})
    return marks


def concept_record(path: Path) -> str | None:
    """Return the record of a concept for people; None where it is missing or damaged."""
    try:
        return json.dumps(read_json(path), indent=2, ensure_ascii=False)
    except (OSError, ValueError):
        return None


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def stage_titles(run: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return a title and a word on what was learned, for each state of the model."""
    stages = (run.get("settings") or {}).get("method", {}).get("stages", {})
    titles = {"base": ("Base model", "before")}
    for number, name in enumerate(stage_names(run)[1:], 1):
        trains = stages.get(name, {})
        network = trains.get("parameters") or (trains.get("lora") or {}).get("rank") or trains.get("adapters")
        titles[name] = (f"After stage {number}", "weights tuned" if network else "word learned")
    return titles


def next_commands(run_dir: Path, run: dict[str, Any], stages: list[str]) -> list[dict[str, str]]:
    """Return commands that a reader may want next, with the reason."""
    noun = run.get("noun") or "subject"
    near = Path(os.path.relpath(run_dir))  # what a person in the same folder can type
    shown = run_dir if near.parts[:1] == ("..",) else near
    concept = shlex.quote(f"concept={as_value(str(shown / 'concept'))}")
    prompts = shlex.quote(f'prompts=["a photo of [V] {noun} in the snow"]')
    text = f"python -m personalar.sample {concept} {prompts} {shlex.quote('seeds=[0,1,2,3]')}"
    commands = [{"why": "Make new pictures of it", "text": text}]
    left = [name for name in stage_names(run) if name not in stages]
    if left and run.get("command"):
        command = run["command"].replace(f"stage={stages[-1]}", f"stage={left[0]}")
        commands.append({"why": f"Go on with stage {stage_names(run).index(left[0])}", "text": command})
    if run.get("command"):
        commands.append({"why": "Do this run again", "text": run["command"]})
    return commands


def gather(run_dir: Path) -> dict[str, Any]:
    """Return everything that the template shows."""
    run = defaultdict(lambda: None, read_run(run_dir))  # a page shows what the record knows
    summary = write_summary(run_dir)
    samples, unreadable = read_samples(run_dir, run)
    stages = [stage for stage in stage_names(run) if stage in summary["stages"]]
    last, own = stages[-1] if stages else None, added(measures_of(run))
    final, titles = summary["stages"].get(last, {}), stage_titles(run)
    losses = {stage: read_losses(run_dir, stage) for stage in stages}
    by_kind = {
        kind: [sample for sample in samples if sample["kind"] == kind]
        for kind in ("subject", "class", "description")
    }
    # Class prompts are compared with the base, where the subject's prompts are class prompts.
    drift = by_kind["class"] + [sample for sample in by_kind["subject"] if sample["stage"] == "base"]
    return {
        "run": run,
        "summary": summary,
        "stages": stages,
        "titles": titles,
        "last": last,
        "added": own,
        "scored": any(final.get(name) is not None for name in ("dino", *own)),
        "marks": ruler_marks(summary),
        "memorised": MEANING,
        "references": read_references(run_dir / "references"),
        "groups": prompt_groups(by_kind["subject"], stages),
        "class_groups": prompt_groups(drift, stages) if by_kind["class"] else [],
        "description_groups": prompt_groups(by_kind["description"], ["base"]),
        "charts": {
            stage: line_chart(points, title=f"Training loss, {titles[stage][0].lower()}")
            for stage, points in losses.items()
            if points
        },
        "final_loss": {stage: points[-1][1] for stage, points in losses.items() if points},
        "commands": next_commands(run_dir, run, stages),
        "config": _text_of(run_dir / ".hydra" / "config.yaml"),
        "concept": concept_record(run_dir / "concept" / "concept.json"),
        "unreadable": unreadable,
    }


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Return `value` for a table; a dash when it was not measured."""
    return "–" if value is None else f"{value:{'+' if sign else ''}z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return "–" if value is None else f"{value:z.0%}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Return a wall time as a person says it."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def memory(size_bytes: float | None) -> str:
    """Return a size in decimal gigabytes."""
    return "–" if size_bytes is None else f"{size_bytes / 1e9:.1f} GB"


def render(context: dict[str, Any], template: str = "report.html.j2") -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, duration=duration, memory=memory)
    return environment.get_template(template).render(context)


def write_report(run_dir: Path) -> Path:
    """Write `summary.json` and `report.html` from the folder's files and return the page's path."""
    run_dir = Path(run_dir)
    path = run_dir / "report.html"
    write_text(path, render(gather(run_dir)))
    return path
