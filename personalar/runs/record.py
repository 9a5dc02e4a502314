"""Entries of run.json at the start and at the end of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.fingerprint import learning_settings, request_of
from personalar.config.run_config import RunConfig
from personalar.core.files import is_whole, sync_files
from personalar.core.own_files import PICTURE_FOLDERS, RECORD_FILE, delete_own, own_files
from personalar.core.png import is_whole_png
from personalar.core.process import package_versions
from personalar.core.run_folder import RunFolder, stage_names
from personalar.data.prompts import class_prompt
from personalar.reports.summary import result_lines, stage_notes

if TYPE_CHECKING:  # torch is loaded with the run
    from personalar.training.context import RunContext


def is_finished(config: RunConfig, folder: RunFolder) -> bool:
    """Return whether the folder contains all results that `config` asks for, undamaged."""
    results = ["summary.json", "report.html", f"concept/{RECORD_FILE}"]
    results += ["scores.jsonl"] if config.scorer.scores else []
    finished, wanted = folder.record.get("finished") or {}, request_of(config)
    # More stages than requested are fine, other samples or scorers are not.
    if any(finished.get(name) != wanted[name] for name in ("samples", "scorer")):
        return False
    if set(wanted["stages"]) - set(finished["stages"]) or not all(map(folder.has_concept, config.selected)):
        return False
    # The entry in run.json is not enough: a user may have deleted files, or a disk may have damaged them.
    if not all(is_whole(folder.path / name) for name in results):
        return False
    pictures = own_pictures(folder)
    return len(pictures) >= finished["pictures"] and all(map(is_whole_png, pictures))


def own_pictures(folder: RunFolder) -> list[Path]:
    """Return the PNG files that the run wrote."""
    return [path for path in own_files(folder.path, *PICTURE_FOLDERS) if path.suffix == ".png"]


def record_settings(session: RunContext) -> None:
    """Write what identifies the run, so that the same settings are accepted in its folder."""
    if session.folder.record.get("photos", session.subject.fingerprint) != session.subject.fingerprint:
        delete_own(session.folder.path, "references")
    session.folder.update(
        settings=learning_settings(session.config),
        photos=session.subject.fingerprint,
        base=session.base["fingerprint"],
    )


def record_start(session: RunContext, *, command: str) -> None:
    """Write what is known before the first step (settings, versions, scorers), and print the warnings."""
    from personalar.data.references import save_references
    from personalar.generation.requests import words_note
    from personalar.runs.pictures import all_requests
    from personalar.training.callbacks.subject_scores import describe_selection, reported_note
    from personalar.training.memory_fit import describe_sampling

    config, subject = session.config, session.subject
    plain = [class_prompt(spec.text, subject.noun) for spec in session.specs]
    strange = words_note(session.model_files.layout, plain)
    prompts: set[str] = set()
    for stage in ("base", *config.method.stages):
        prompts.update(request.prompt for request in all_requests(session, stage))
    unread = session.scorer.note(sorted(prompts)) if session.scorer else None
    noted = [note for note in (strange, unread) if note]
    selected = [note] if (note := reported_note(session)) else []
    warnings = [*config.photo_warnings, *noted, *selected, *stage_notes(session.folder.record)]
    for warning in warnings:
        session.reporter.say(f"note: {warning}", style="yellow")
    judged = {}  # empty without scorers, so that the scores of an earlier command keep their meaning
    if scorer := session.scorer:
        judged = {
            "scorers": scorer.names,
            "measures": [measure.record() for measure in scorer.measures],
            "bounds": scorer.bounds(),
        }
        # Lines of other scorers would be averaged with the new ones: all pictures are scored again.
        if session.folder.record.get("scorers", scorer.names) != scorer.names:
            (session.folder.path / "scores.jsonl").unlink(missing_ok=True)
    record_settings(session)
    session.folder.update(
        subject=subject.name,
        noun=subject.noun,
        live=subject.live,
        rendered=not config.subject.photographs,
        description=subject.description,
        model=config.model.name,
        method=config.method.name,
        stage=config.stage.name,
        command=command,
        # A resumed run keeps the time of its first start.
        started=session.folder.record.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
        versions=package_versions(),
        warnings=warnings,
        selection=describe_selection(session),
        **judged,
    )
    session.reporter.say(describe_sampling(session.sampling))
    session.folder.update_stage("base", steps=0, seconds=0.0)
    save_references(session.folder.path / "references", subject.images, session.model_files.layout)


def finish(session: RunContext) -> None:
    """Write summary.json and report.html, and print the results."""
    from personalar.reports.run_page import write_report
    from personalar.runs.pictures import note_cost

    note_cost(session)
    session.reporter.say(f"report: {write_report(session.folder.path)}")
    for line in result_lines(session.folder.path):
        session.reporter.say(line)


def record_end(session: RunContext) -> None:
    """Write to run.json that all requested results are complete; delete what only training needs."""
    request, folder = request_of(session.config), session.folder
    stages = stage_names(folder.record)
    # Stages of earlier commands are sampled and scored in every run, so they are complete too.
    learned = [name for name in stages if name in request["stages"] or folder.has_concept(name)]
    sync_files(folder.path / "logs")  # loggers do not sync; the entry must not be older than their files
    folder.update(finished={**request, "stages": learned, "pictures": len(own_pictures(folder))})
    if all(map(folder.has_concept, session.config.method.stages)):
        # Most of a small run's bytes. More steps for the run compute it again.
        (folder.path / "cache" / "class_logits.safetensors").unlink(missing_ok=True)
