"""Write `summary.json`, the results of a run, from the files in its folder; no model is loaded.

docs/run_folder.md documents the files, including `run.json` and `summary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalar.core.files import read_json, write_text
from personalar.core.measures import Measure, added, mean, means, measures_of
from personalar.core.run_folder import read_record, stage_names
from personalar.reports.bootstrap import interval
from personalar.reports.memorised import memorised_share
from personalar.reports.protocol import protocol
from personalar.scoring.score_file import read_scores

FORMAT_VERSION = 1
OWN_FACTS = ("steps", "seconds", "v_moved", "pictures_changed")
"""Keys of a stage in run.json that are copied to its summary."""

DESCRIPTION = "Best text description"
"""Title of the row of the base's pictures for the subject's description."""

Lines = list[dict[str, Any]]
Measures = Mapping[str, Measure]


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return the content of `run_dir`/run.json.

    Raises:
        FileNotFoundError: `run_dir` is not a run folder.
        ValueError: the file is damaged or has another format version.
    """
    path = run_dir / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} is not a run folder (run.json is missing): give the folder that python -m "
            "personalar.run wrote"
        )
    try:
        run = read_record(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it, or run the command again in another folder"
        ) from error
    if run.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {run.get('format_version')!r}; this version of personalar reads "
            f"{FORMAT_VERSION}: update personalar, or run the command again in another folder"
        )
    return run


def fidelity_of(dino: float | None, bounds: dict[str, Any] | None) -> float | None:
    """Return the fidelity, (dino - floor) / (ceiling - floor).

    0 means as similar as other individuals of the class, 1 as similar as unseen views of the subject. None
    without bounds (photographs), or if the ceiling is not above the floor.
    """
    bounds = bounds or {}
    low = (bounds.get("floor") or {}).get("dino")
    high = (bounds.get("ceiling") or {}).get("dino")
    if dino is None or low is None or high is None or high <= low:
        return None
    return mean([(dino - low) / (high - low)])


def _select(lines: Lines, **wanted: str) -> Lines:
    return [line for line in lines if all(line[key] == value for key, value in wanted.items())]


def _value(lines: Lines, scorer: str, **wanted: str) -> float | None:
    """Return the mean of one scorer's values over the lines with the given fields; None without lines."""
    return mean([line["value"] for line in _select(lines, scorer=scorer, **wanted)])


def _measures(lines: Lines, bounds: dict[str, Any] | None, measures: Measures) -> dict[str, Any]:
    """Return the means of all measures over the lines of one stage and kind."""
    of_lines = [m for m in measures.values() if m.field is not None and m.kind == "subject"]
    found = means(lines, of_lines)
    images = len({(line["prompt"], line["seed"]) for line in lines})
    return {**found, "fidelity": fidelity_of(found["dino"], bounds), "images": images}


def _intervals(
    lines: Lines, bounds: dict[str, Any] | None, measures: Measures
) -> dict[str, list[float] | None]:
    """Return the 95 % confidence interval of each mean over the images of one stage and kind."""
    found: dict[str, list[float] | None] = {}
    for name in [name for name, measure in measures.items() if measure.is_scored]:
        pair = interval([[line["value"] for line in _select(lines, scorer=name)]])
        found[name] = list(pair) if pair else None
    # Fidelity is linear in DINO, so its interval is that of DINO on the other scale.
    ends = [fidelity_of(end, bounds) for end in found["dino"] or ()]
    found["fidelity"] = [float(end) for end in ends if end is not None] or None
    return found


def _categories(lines: Lines, measures: Measures) -> dict[str, dict[str, Any]]:
    """Return the means by category of prompts: "recontext", "accessory", "property", "plain"."""
    groups: dict[str, Lines] = {}
    for line in lines:
        groups.setdefault(line.get("category", "plain"), []).append(line)
    scored = [measure for measure in measures.values() if measure.is_scored]
    found: dict[str, dict[str, Any]] = {}
    for category, group in sorted(groups.items()):
        images = {(line["prompt"], line["seed"]) for line in group}
        found[category] = {**means(group, scored), "images": len(images)}
    return found


def _side_effects(
    lines: Lines, stage: str, bounds: dict[str, Any] | None, measures: Measures
) -> dict[str, Any]:
    """Return prior preservation, diversity, drift and memorisation of one stage.

    A picture counts as memorised if it is more similar to some photo than any two photos to each other.
    """
    likeness = _select(lines, scorer="dino", stage=stage, kind="subject")
    nearest = [line["nearest"] for line in likeness if "nearest" in line]
    return {
        "pres": _value(lines, "dino", stage=stage, kind="prior"),
        **{
            name: _value(lines, name, stage=stage, kind=measure.kind)
            for name, measure in measures.items()
            if measure.kind != "subject"
        },
        "nearest": mean(nearest),
        "memorised": memorised_share(likeness, bounds or {}),
    }


def _by_question(lines: Lines) -> dict[tuple[str, int], float]:
    """Return DINO by (template, seed), which identify the same picture at different stages."""
    return {(line.get("template") or line["prompt"], line["seed"]): line["value"] for line in lines}


def _class_drift(
    lines: Lines, stage: str, bounds: dict[str, Any] | None
) -> tuple[float | None, float | None]:
    """Return the mean DINO on class prompts, and the increase of fidelity on them since the base.

    The increase is over prompts and seeds that both stages sampled. For the base, subject prompts contain no
    [V] and equal class prompts, so their lines are used if there are no samples of kind "class".
    """
    dino = _select(lines, scorer="dino")
    base = _by_question(
        _select(dino, stage="base", kind="subject") + _select(dino, stage="base", kind="class")
    )
    now = _by_question(_select(dino, stage=stage, kind="class")) if stage != "base" else base
    # Only pictures that exist at both stages, otherwise the means would be of different prompts.
    common = sorted(now.keys() & base.keys())
    before = fidelity_of(mean([base[key] for key in common]), bounds)
    after = fidelity_of(mean([now[key] for key in common]), bounds)
    drift = None if before is None or after is None else mean([after - before])
    return mean(now.values()), drift


def stage_notes(run: Mapping[str, Any]) -> list[str]:
    """Return the notes of all stages in a run.json."""
    return [stage["note"] for stage in run.get("stages", {}).values() if stage.get("note")]


def summarise(run: dict[str, Any], lines: Lines) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        run: content of run.json.
        lines: lines of scores.jsonl; may be empty.
    """
    bounds, measures = run.get("bounds") or {}, measures_of(run)
    stages: dict[str, Any] = {}
    for stage in stage_names(run):
        ran = run.get("stages", {}).get(stage, {})
        subject_lines = _select(lines, stage=stage, kind="subject")
        if "steps" not in ran and not subject_lines:
            continue  # neither trained to the end nor scored yet
        class_dino, class_drift = _class_drift(lines, stage, bounds)
        stages[stage] = {
            **_measures(subject_lines, bounds, measures),
            "class_dino": class_dino,
            "class_drift": class_drift,
            **_side_effects(lines, stage, bounds, measures),
            **{name: ran.get(name) for name in OWN_FACTS},
            "selected_step": (ran.get("selected") or {}).get("step"),
            "intervals": _intervals(subject_lines, bounds, measures),
            "categories": _categories(subject_lines, measures),
        }
    described = _select(lines, stage="base", kind="description")
    return {
        "subject": run.get("subject"),
        "model": run.get("model"),
        "noun": run.get("noun"),
        "stages": stages,
        "description": _measures(described, bounds, measures) if described else None,
        "ceiling": bounds.get("ceiling"),
        "floor": bounds.get("floor"),
        "photos": bounds.get("photos"),
        "protocol": protocol([run], lines),
        "notes": stage_notes(run),
        "scorers": run.get("scorers"),
        "total_seconds": run.get("total_seconds"),
        "peak_memory_bytes": run.get("peak_memory_bytes"),
    }


def scores_of_concept(folder: Path, stage: str) -> dict[str, float]:
    """Return the scores of a concept in its run folder, by title; empty if it is not in one.

    Args:
        folder: the concept: RUN/concept, RUN/stages/STAGE/concept or RUN/earlier/STAGE_STEPS/concept.
        stage: the stage that learned it.

    Raises:
        ValueError: the run's files are damaged.
    """
    # Padded, because a folder at the root of the disk has one parent only.
    parent, above, top = [*folder.resolve().parents, folder, folder][:3]
    inside = above.name in ("stages", "earlier") and (top / "run.json").is_file()
    run_dir = top if inside else parent
    if not (run_dir / "run.json").is_file():
        return {}
    # The results of fewer steps are beside their concept; those in the run folder are of more steps.
    scored = parent if inside and above.name == "earlier" else run_dir
    run = read_run(run_dir)
    values = summarise(run, read_scores(scored / "scores.jsonl"))["stages"].get(stage, {})
    shown = {name: measure.title for name, measure in measures_of(run).items() if measure.title}
    shown.pop("seconds")
    return {title: values[name] for name, title in shown.items() if values.get(name) is not None}


def stage_titles(run: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return for each stage a title and a short description of what it trained."""
    stages = (run.get("settings") or {}).get("method", {}).get("stages", {})
    titles = {"base": ("Base model", "before")}
    for number, name in enumerate(stage_names(run)[1:], 1):
        trains = stages.get(name, {})
        network = trains.get("parameters") or (trains.get("lora") or {}).get("rank")
        learned = "adapters trained" if trains.get("adapters") else "[V] learned"
        titles[name] = (f"After stage {number}", "weights trained" if network else learned)
    return titles


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write `run_dir`/summary.json and return its content."""
    run_dir = Path(run_dir)
    summary = summarise(read_run(run_dir), read_scores(run_dir / "scores.jsonl"))
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_text(run_dir / "summary.json", text)
    return summary


def result_lines(run_dir: Path) -> list[str]:
    """Return the table of results of a finished run as lines of text, for the terminal."""
    summary = read_json(run_dir / "summary.json")
    names = ["fidelity", "dino", "clip_i", "clip_t", "context_accuracy", "class_drift", "memorised"]
    names += [*added(measures_of(read_run(run_dir))), "seconds"]
    lines = [f"{'':12}" + "".join(f"{name:>18}" for name in names)]
    for stage, values in summary["stages"].items():
        cells = ["-" if values.get(name) is None else f"{values[name]:.3f}" for name in names]
        lines.append(f"{stage:12}" + "".join(f"{cell:>18}" for cell in cells))
    lines += [summary["protocol"]] if summary.get("protocol") else []
    lines += [f"note: {note}" for note in summary.get("notes", [])]
    total = summary.get("total_seconds")
    return [*lines, f"total: {total:.0f} s"] if total else lines
