"""One run: check the settings, sample the base, train the stages, sample after each, score, summarize.

A run started again in the same folder finds what is done and goes on. Heavy libraries are imported where they
are used, so that a mistake is answered before torch loads.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.compose import build_decoder
from personalar.config.fingerprint import covers, learning_settings, request_of
from personalar.config.run_config import RunConfig
from personalar.core.files import is_whole, sync_files
from personalar.core.own_files import PICTURE_FOLDERS, own_files
from personalar.core.png import is_whole_png
from personalar.core.process import check_memory, global_rank, local_rank, prepare_torch
from personalar.core.run_folder import RunFolder
from personalar.core.types import STAGE_NAMES, Subject
from personalar.data.prompts import fill
from personalar.data.subject import load_subject, validation_prompts
from personalar.models.loading import obtain_model, offline_model, pin
from personalar.reports.summary import result_lines

if TYPE_CHECKING:
    from personalar.config.run_config import Stage
    from personalar.models.stored_base import ModelFiles
    from personalar.scoring.subject_scorer import SubjectScorer
    from personalar.training.context import RunContext

    Stages = list[tuple[Stage, str]]
    """Stages to run, each with the one it starts from."""


def prepare(config: RunConfig, run_dir: Path) -> tuple[RunContext, Stages] | None:
    """Check everything a user can get wrong, then load what a run needs; None where it was finished before.

    Raises:
        ValueError, FileNotFoundError: with what to do.
    """
    started = time.perf_counter()
    check_memory()
    subject, files = read_inputs(config)
    folder = RunFolder(run_dir)
    if global_rank() == 0:
        claim_folder(config, folder, subject, files)
    from personalar.training.stage import selected_stages

    stages = selected_stages(config, folder)
    if global_rank() == 0 and is_finished(config, folder):
        print(f"finished before; overwrite=true starts afresh\nreport: {run_dir / 'report.html'}")
        print("\n".join(result_lines(run_dir)))
        return None
    return open_session(config, subject, folder, files, stages, started=started), stages


def read_inputs(config: RunConfig) -> tuple[Subject, ModelFiles]:
    """Return the subject and the base's files, downloaded if need be; pin the base to their commit."""
    found = offline_model(config.model)  # before the photos: a folder without a model is an error at once
    layout = found.layout if found else config.model.layout
    subject = load_subject(config.subject, layout.sizes if layout else None)
    files = found or obtain_model(config.model, say=print)
    config.model = pin(config.model)
    return subject, files


def claim_folder(config: RunConfig, folder: RunFolder, subject: Subject, files: ModelFiles) -> None:
    """Say what is learned where, make sure that the folder is this run's, and take over `reuse`."""
    from personalar.runs.reuse import check_started_alone, take_over

    check_started_alone(config)
    photos = f"{len(subject.images)} photo{'s' if len(subject.images) > 1 else ''}"
    where = f"on the {config.trainer.accelerator.upper()}, in {folder.path}"
    print(f"{subject.name}: {photos}, learned on {config.model.name} {where}")
    folder.claim(learning_settings(config), photos=subject.fingerprint, overwrite=config.overwrite)
    if config.reuse:
        print(take_over(config, folder, weights=files.weights(), subject=subject))


def is_finished(config: RunConfig, folder: RunFolder) -> bool:
    """Tell whether all that the run asks for is in its folder."""
    results = ["summary.json", "report.html", *(["scores.jsonl"] if config.scorer.scores else [])]
    done = covers(folder.record.get("finished"), request_of(config))
    if not done or not all(is_whole(folder.path / name) for name in results):
        return False
    return all(
        is_whole_png(path) for path in own_files(folder.path, *PICTURE_FOLDERS) if path.suffix == ".png"
    )


def open_session(
    config: RunConfig,
    subject: Subject,
    folder: RunFolder,
    files: ModelFiles,
    stages: Stages,
    *,
    started: float,
) -> RunContext:
    """Check the memory, load the judges and gather what every phase needs."""
    from personalar.concepts.concept import base_fingerprint
    from personalar.core.console import Reporter
    from personalar.training.context import RunContext
    from personalar.training.memory_fit import preflight, sampling_work

    prepare_torch(config.trainer.threads)
    device = f"cuda:{local_rank()}" if config.trainer.accelerator == "gpu" else "cpu"
    specs = validation_prompts(subject.noun, config.samples, live=subject.live)
    undone = [stage for stage, _ in stages if not folder.has_concept(stage.name)]
    plans = preflight(config, undone, files)
    return RunContext(
        config=config,
        subject=subject,
        specs=specs,
        folder=folder,
        reporter=Reporter(enabled=global_rank() == 0),
        decoder=build_decoder(config.decoder),
        scorer=load_judges(config, subject, specs, device),
        base={"name": config.model.name, "fingerprint": base_fingerprint(files.weights())},
        model_files=files,
        device=device,
        plans=plans,
        sampling=sampling_work(config, stages[0][0], files),
        started=started - folder.record.get("total_seconds", 0.0),
    )


def load_judges(config: RunConfig, subject: Subject, specs: tuple, device: str) -> SubjectScorer | None:
    """Return the scorer of the subject's pictures; None without scores, or above rank zero."""
    from personalar.scoring.registry import load_scorers
    from personalar.scoring.subject_scorer import SubjectScorer

    own = config.scorer
    if global_rank() > 0 or not own.scores:
        return None
    scorers = load_scorers(own.clip, own.dino, device=device, dino_preprocess=own.dino_preprocess)
    return SubjectScorer(scorers.clip, scorers.dino, subject, prompts=specs, text=own.clip_text)


def personalize(session: RunContext, stages: Stages, *, command: str) -> None:
    """Do what is not done yet: pictures of the base, each stage, scores, summary, report.

    Args:
        command: the command line, for the report.
    """
    from personalar.runs import pictures
    from personalar.runs.publish import publish_concept, show_pictures
    from personalar.runs.wandb_run import dashboard
    from personalar.training.callbacks.learning_check import note_pictures
    from personalar.training.train import train_stage

    if global_rank() > 0:
        follow(session, stages)
        return
    folder, reporter = session.folder, session.reporter
    record_start(session, command=command)
    chosen = {stage.name: (stage, start) for stage, start in stages}
    with dashboard(session) as after:
        samples = {"base": pictures.sample_and_score(session, "base", [])}
        after("base")
        for name in STAGE_NAMES[1:]:
            if folder.has_concept(name):
                reporter.say(f"stage {name}: already learned")
            elif name in chosen:
                stage, start = chosen[name]
                grid = pictures.grid_requests(session, name)
                train_stage(session, stage, start=start, grid=grid, base_samples=samples["base"])
            else:
                continue
            folder.drop_checkpoints(name)
            is_last = name == folder.last_stage  # a later one, learned before, stays the result
            if is_last:
                publish_concept(folder, name)
            samples[name] = pictures.sample_and_score(session, name, samples["base"])
            note_pictures(session, samples)
            if is_last:
                show_pictures(folder, samples[name])
            after(name)
        reporter.say(f"overview: {pictures.draw_overview(session, samples)}")
        finish(session)
    record_end(session)  # last: a run that was killed before it goes on


def follow(session: RunContext, stages: Stages) -> None:
    """Take part in training as a process above rank zero, which alone samples, scores and writes."""
    from personalar.runs.pictures import grid_requests
    from personalar.training.train import train_stage

    # Decided before the first stage, which no process can end alone.
    undone = [(stage, start) for stage, start in stages if not session.folder.has_concept(stage.name)]
    for stage, start in undone:
        grid = grid_requests(session, stage.name)
        train_stage(session, stage, start=start, grid=grid, base_samples=[])


def record_start(session: RunContext, *, command: str) -> None:
    """Write the facts of run.json that are known before the first step."""
    from personalar.concepts.concept import package_versions
    from personalar.data.references import save_references
    from personalar.generation.requests import words_note
    from personalar.training.callbacks.learning_check import notes
    from personalar.training.memory_fit import describe_sampling

    config, subject = session.config, session.subject
    strange = words_note(session.model_files.layout, [fill(s.text, subject.noun) for s in session.specs])
    warnings = [*config.photo_warnings, *([strange] if strange else []), *notes(session.folder.record)]
    for warning in warnings:
        session.reporter.say(f"note: {warning}", style="yellow")
    session.folder.update(
        settings=session.settings,
        photos=subject.fingerprint,
        subject=subject.name,
        noun=subject.noun,
        live=subject.live,
        rendered=not config.subject.photographs,
        description=subject.description,
        model=config.model.name,
        method=config.method.name,
        stage=config.stage.name,
        command=command,
        started=session.folder.record.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
        versions=package_versions(),
        warnings=warnings,
        scorers=session.scorer.describe() if session.scorer else {},
        bounds=session.scorer.bounds() if session.scorer else {"floor": None, "ceiling": None},
    )
    session.reporter.say(describe_sampling(session.sampling))
    session.folder.update_stage("base", steps=0, seconds=0.0)
    save_references(session.folder.path / "references", subject.images, session.model_files.layout)


def finish(session: RunContext) -> None:
    """Write the summary and the report, and say where they are."""
    from personalar.reports.run_page import write_report
    from personalar.runs.pictures import note_cost

    note_cost(session)
    session.reporter.say(f"report: {write_report(session.folder.path)}")
    for line in result_lines(session.folder.path):
        session.reporter.say(line)


def record_end(session: RunContext) -> None:
    """Write into run.json that all that was asked for is done; stages learned before were judged alike."""
    request, folder = request_of(session.config), session.folder
    learned = [name for name in STAGE_NAMES if name in request["stages"] or folder.has_concept(name)]
    sync_files(folder.path / "logs")
    folder.update(finished={**request, "stages": learned})
