"""Parts of the screens in plain HTML; all texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from html import escape
from pathlib import Path
from urllib.parse import quote

from personalar.core.files import read_json
from personalar.core.image_sizes import written
from personalar.core.measures import measures_of
from personalar.core.run_folder import read_record
from personalar.data.photos.photo_folder import Photo
from personalar.data.subject import count_note
from personalar.reports.charts import line_chart
from personalar.reports.run_page import read_losses
from personalar.reports.score_table import cell, heading, score_columns, score_rows
from personalar.reports.summary import read_run, stage_titles
from personalar.runs.web.jobs import Jobs, State, grids

SERVED = "/runs"
"""URL path of the runs' files."""
ARCHIVE = "/concept.zip"
"""URL path of the concept of a run, as one file."""
STATUS = {
    "": "not started",
    "starting": "starting: reading the settings and loading the model",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped; Resume goes on from here",
    "failed": "failed; see the log",
    "killed": "ended without saving; Resume goes on from the last checkpoint",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML, titles are escaped here."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="scrolled"><table class="plain"><tr>{titles}</tr>{lines}</table></div>'


def link(jobs: Jobs, path: Path, text: str) -> str:
    """Return a link to a file in the folder of the runs."""
    where = quote(f"{SERVED}/{path.relative_to(jobs.outputs).as_posix()}")
    return f'<a href="{where}" target="_blank" rel="noopener">{escape(text)}</a>'


def picture(jobs: Jobs, path: Path | None, title: str) -> str:
    """Return a picture with a title; empty without a file."""
    if path is None:
        return ""
    where = quote(f"{SERVED}/{path.relative_to(jobs.outputs).as_posix()}")
    # With the time of the file, so that browsers do not show an older version from their cache.
    source = f"{where}?{path.stat().st_mtime_ns}"
    return f'<div><h4>{escape(title)}</h4><img src="{source}" alt="{escape(title)}"></div>'


def verdict_table(photos: Sequence[Photo], noun: str) -> str:
    """Return a table with the check of each photo; `noun` is the class of the subject, if it is known."""
    rows = []
    for photo in photos:
        size = written(photo.image.size) if photo.image else "–"
        cut = "–" if photo.cut is None else f"{photo.cut:.0%}"
        verdict = f'<span class="{photo.verdict}">{photo.verdict}</span>'
        rows.append([escape(photo.path.name), size, cut, verdict, escape("; ".join(photo.notes))])
    used = sum(photo.image is not None for photo in photos)
    note = count_note(used, noun) if used else "no photo can be used: add 3 to 6 photos of one thing"
    lines = f"<p>{escape(note)}</p>" if note else ""
    files = sum(photo.kind is None for photo in photos)  # without masks and captions
    return f"<p><b>{used} of {files} can be used.</b></p>{lines}" + table(
        ("photo", "pixels", "cut off", "verdict", ""), rows
    )


def status_panel(name: str, state: State) -> str:
    """Return phase, progress bar, loss and remaining time of a run."""
    facts, words = state.progress, [f"<b>{escape(name)}</b>", escape(STATUS.get(state.status, state.status))]
    bar = ""
    if facts and facts["of"] and state.status != "starting":
        bar = f'<progress max="{max(1, facts["of"])}" value="{facts["step"]}"></progress>'
        words.append(f"{escape(facts['phase'])}: {facts['step']} of {facts['of']}")
        if facts.get("loss") is not None:
            words.append(f"loss {facts['loss']:.3f}")
        if state.status == "running" and facts.get("eta") is not None:
            words.append(f"about {timedelta(seconds=round(facts['eta']))} left in this phase")
    elif state.at_work:
        bar = "<progress></progress>"
    spans = "".join(f"<span>{word}</span>" for word in words)
    return f'<div class="status" data-status="{state.status}"><div class="line">{spans}</div>{bar}</div>'


def output_panel(state: State, text: str, *, working: str) -> str:
    """Return the state and the output of a command; `working` is the word for one that is active."""
    word = working if state.at_work else state.status
    return f'<div data-status="{state.status}"><b>{word}</b><pre class="output">{escape(text)}</pre></div>'


def watch_panel(jobs: Jobs, folder: Path) -> str:
    """Return the loss curve of each stage, the base's grid and the newest grid."""
    parts = []
    for stage in sorted(path.name for path in (folder / "logs").glob("*") if path.name != "wandb"):
        if points := read_losses(folder, stage):
            chart = line_chart(points, title=f"loss of stage {stage}")
            parts.append(f"<div><h4>loss of stage {escape(stage)}</h4>{chart}</div>")
    base, newest = grids(folder)
    pictures = picture(jobs, base, "the base") + picture(
        jobs, newest, f"newest: {newest.stem}" if newest else ""
    )
    return f'<div class="pictures">{"".join(parts)}</div><div class="pictures">{pictures}</div>'


def result_panel(jobs: Jobs, folder: Path) -> str:
    """Return the results of a finished run, and links to its report and its concept."""
    try:
        scores = scores_table(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return '<p class="soft">No result yet: it comes with the end of the run.</p>'
    links = [link(jobs, folder / "report.html", "report")] if (folder / "report.html").is_file() else []
    if (folder / "concept").is_dir():
        where = quote(folder.relative_to(jobs.outputs).as_posix())
        links.append(f'<a href="{ARCHIVE}?run={where}" download>download the concept</a>')
    return f'{scores}<p class="links">{"".join(links)}</p>'


def scores_table(folder: Path) -> str:
    """Return the scores of a finished run as in its report, and the line about how they were measured."""
    run, summary = read_run(folder), read_json(folder / "summary.json")
    rows = score_rows(summary, stage_titles(run))
    columns = score_columns(measures_of(run), [row["values"] for row in rows])
    cells = [[escape(row["title"]), *(cell(row["values"].get(c), c) for c in columns)] for row in rows]
    titles = [heading(measure.title or "") for measure in columns.values()]
    return table(("", *titles), cells) + f'<p class="soft">{escape(summary["protocol"] or "")}</p>'


def concepts_table(jobs: Jobs) -> str:
    """Return a table of all runs with subject, base and method."""
    rows = []
    for name in jobs.runs():
        folder, record = jobs.folder(name), {}
        with suppress(OSError, ValueError):
            record = read_record(folder / "run.json")
        report = folder / "report.html"
        title = link(jobs, report, name) if report.is_file() else escape(name)
        facts = [jobs.state(folder).status or "not started", *map(record.get, ("subject", "model", "method"))]
        rows.append([title, *(escape(str(fact or "–")) for fact in facts)])
    if not rows:
        return '<p class="soft">Nothing is learned yet.</p>'
    return table(("run", "", "subject", "base", "method"), rows)
