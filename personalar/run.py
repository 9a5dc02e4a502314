"""Personalize a base model on a subject: `python -m personalar.run +subject=cat stage=both`.

Check the subject, sample the base, train the stages, sample after each, score, summarize. A run started
again in the same folder finds what is done and goes on.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from personalar.config.command_line import prepare_arguments
from personalar.config.compose import build_decoder, conf_dir, read_config, register
from personalar.config.fingerprint import covers, learning_settings, request_of
from personalar.config.run_config import RunConfig
from personalar.core.errors import told
from personalar.core.process import global_rank, keep_memory, local_rank, prepare_torch
from personalar.core.run_lock import locked, refusable
from personalar.core.types import STAGE_NAMES, Subject
from personalar.data.prompts import fill
from personalar.data.subject import load_subject, validation_prompts
from personalar.models.loading import obtain_model, offline_model, pin
from personalar.runs.sweep import (
    Objective,
    SweepReport,
    check_objective,
    join_sweep,
    keep_sweeping,
    objective_value,
    searches,
)

if TYPE_CHECKING:  # imported where used: a mistake is answered before torch loads
    from personalar.config.run_config import Stage
    from personalar.core.run_folder import RunFolder
    from personalar.models.stored_base import ModelFiles
    from personalar.training.context import Session


def open_session(
    config: RunConfig,
    subject: Subject,
    folder: RunFolder,
    files: ModelFiles,
    stages: list[tuple[Stage, str]],
    *,
    started: float,
) -> Session:
    """Check the memory, load the judges and gather what every phase needs."""
    from personalar.concepts.concept import base_fingerprint
    from personalar.core.console import Reporter
    from personalar.scoring.registry import load_scorers
    from personalar.scoring.subject_scorer import SubjectScorer
    from personalar.training.context import Session
    from personalar.training.memory_fit import preflight, sampling_work

    prepare_torch(config.trainer.threads)
    device = f"cuda:{local_rank()}" if config.trainer.accelerator == "gpu" else "cpu"
    leads = global_rank() == 0
    specs = validation_prompts(subject.noun, config.samples, live=subject.live)
    undone = [stage for stage, _ in stages if not folder.has_concept(stage.name)]
    plans = preflight(config, undone, files)
    scorer = None
    if leads and config.scorer.scores:
        own = config.scorer
        scorers = load_scorers(own.clip, own.dino, device=device, dino_preprocess=own.dino_preprocess)
        scorer = SubjectScorer(
            scorers.clip, scorers.dino, subject, prompts=specs, text=config.scorer.clip_text
        )
    return Session(
        config=config,
        subject=subject,
        specs=specs,
        folder=folder,
        reporter=Reporter(enabled=leads),
        decoder=build_decoder(config.decoder),
        scorer=scorer,
        base={"name": config.model.name, "fingerprint": base_fingerprint(files.weights())},
        model_files=files,
        device=device,
        plans=plans,
        sampling=sampling_work(config, stages[0][0], files),
        started=started - folder.record.get("total_seconds", 0.0),
    )


def record_start(session: Session, *, command: str) -> None:
    """Write the facts of run.json that are known before the first step."""
    from personalar.concepts.concept import package_versions
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
    session.save_references()


def finish(session: Session) -> None:
    """Write the summary and the report, and say where they are."""
    from personalar.reports.run_page import write_report
    from personalar.reports.summary import result_lines

    session.note_cost()
    session.reporter.say(f"report: {write_report(session.folder.path)}")
    for line in result_lines(session.folder.path):
        session.reporter.say(line)


def record_end(session: Session) -> None:
    """Write into run.json that all that was asked for is done; stages learned before were judged alike."""
    request, folder = request_of(session.config), session.folder
    learned = [name for name in STAGE_NAMES if name in request["stages"] or folder.has_concept(name)]
    folder.update(finished={**request, "stages": learned})


def follow(session: Session, stages: list[tuple[Stage, str]]) -> None:
    """Take part in training as a process above rank zero, which alone samples, scores and writes."""
    from personalar.training.train import train_stage

    # Decided before the first stage: none can end without this process.
    for stage, start in [pair for pair in stages if not session.folder.has_concept(pair[0].name)]:
        train_stage(session, stage, start=start, base_samples=[])


def personalize(session: Session, stages: list[tuple[Stage, str]], *, command: str) -> None:
    """Do what is not done yet: pictures of the base, each stage, scores, summary, report."""
    from personalar.runs.publish import publish_concept, show_pictures
    from personalar.runs.wandb_run import dashboard
    from personalar.training.callbacks.learning_check import note_pictures
    from personalar.training.train import train_stage

    if global_rank() > 0:
        follow(session, stages)
        return
    folder, reporter = session.folder, session.reporter
    record_start(session, command=command)
    with dashboard(session) as after:
        samples = {"base": session.sample_and_score("base", [])}
        after("base")
        for stage in ("embedding", "transformer"):
            pair = next((pair for pair in stages if pair[0].name == stage), None)
            if pair is None and not folder.has_concept(stage):
                continue
            if folder.has_concept(stage):
                reporter.say(f"stage {stage}: already learned")
            elif pair is not None:
                train_stage(session, pair[0], start=pair[1], base_samples=samples["base"])
            folder.drop_checkpoints(stage)
            if stage == folder.last_stage:  # a later one, learned before, stays the result
                publish_concept(folder, stage)
            samples[stage] = session.sample_and_score(stage, samples["base"])
            note_pictures(session, samples)
            if stage == folder.last_stage:
                show_pictures(folder, samples[stage])
            after(stage)
        reporter.say(f"overview: {session.draw_overview(samples)}")
        finish(session)
    record_end(session)  # last: a run that was killed before it goes on


def prepare(config: RunConfig, run_dir: Path) -> tuple[Session, list[tuple[Stage, str]]] | None:
    """Check everything a user can get wrong, then load what a run needs; None where it was finished before.

    Raises:
        ValueError, FileNotFoundError: with what to do.
    """
    started = time.perf_counter()
    found = offline_model(config.model)  # a folder that is no model is said at once
    layout = found.layout if found else config.model.layout
    subject = load_subject(config.subject, layout.sizes if layout else None)
    files = found or obtain_model(config.model, say=print)  # photos before a download
    config.model = pin(config.model)
    from personalar.core.run_folder import RunFolder
    from personalar.runs.reuse import check_started_alone, take_over
    from personalar.training.stage import selected_stages

    folder = RunFolder(run_dir)
    if global_rank() > 0:
        stages = selected_stages(config, folder)
        return open_session(config, subject, folder, files, stages, started=started), stages
    check_started_alone(config)
    where = f"on the {config.trainer.accelerator.upper()}, in {run_dir}"
    photos = f"{len(subject.images)} photo{'s' if len(subject.images) > 1 else ''}"
    print(f"{subject.name}: {photos}, learned on {config.model.name} {where}")
    folder.claim(learning_settings(config), photos=subject.fingerprint, overwrite=config.overwrite)
    if config.reuse:
        print(take_over(config, folder, weights=files.weights(), subject=subject))
    stages = selected_stages(config, folder)
    report, scores = run_dir / "report.html", ["scores.jsonl"] if config.scorer.scores else []
    asked = covers(folder.record.get("finished"), request_of(config))
    if asked and all((run_dir / name).is_file() for name in ("summary.json", report.name, *scores)):
        print(f"finished before; overwrite=true starts afresh\nreport: {report}")
        from personalar.reports.summary import result_lines

        print("\n".join(result_lines(run_dir)))
        return None
    return open_session(config, subject, folder, files, stages, started=started), stages


def run_one(cfg: DictConfig) -> Objective | None:
    """Run one composed configuration and return its worth; what a person can mend ends in one sentence."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    leads, sweeps = global_rank() == 0, hydra_config.mode == RunMode.MULTIRUN
    with told("personalar.run"), locked(run_dir, leads=leads):
        with refusable(run_dir) if leads and not sweeps else nullcontext():
            if sweeps:
                join_sweep(hydra_config, cfg.trainer.devices)
            config = read_config(cfg)
            if sweeps and searches(hydra_config):
                check_objective(config)
            prepared = prepare(config, run_dir)
        if prepared is not None:
            command = ["python", "-m", "personalar.run", *hydra_config.overrides.task]
            personalize(*prepared, command=shlex.join(command))
        if global_rank():  # another process writes the summary, perhaps later, and is the one that is asked
            return None
        return objective_value(json.loads((run_dir / "summary.json").read_text()), config.objective)


class Job:
    """What Hydra calls with each composed configuration, here or in a launcher's process."""

    def __call__(self, cfg: DictConfig) -> Objective | None:
        """Run it; in a sweep a failure is kept and the sweep goes on."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode != RunMode.MULTIRUN:
            return run_one(cfg)
        run_dir = Path(hydra_config.runtime.output_dir)
        learns = searches(hydra_config)
        return keep_sweeping(lambda: run_one(cfg), run_dir, len(cfg.objective), searches=learns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Bring our resolvers along to a launcher's process, which composes before it calls."""
        return restore_job, ()


def restore_job() -> Job:
    """Return a job in a process that has not called `main`."""
    register()
    return Job()


def main() -> None:
    """Entry point: check the arguments, then let Hydra compose the configuration."""
    keep_memory()
    conf = conf_dir()
    with told("personalar.run"):
        sys.argv[1:] = prepare_arguments(sys.argv[1:], schema=RunConfig, conf=conf, needs_subject=True)
    register()
    from personalar.run import Job  # not __main__'s: a launcher's process must be able to import it

    hydra.main(config_path=str(conf), config_name="run", version_base="1.3")(Job())()
    if SweepReport.failed:
        raise SystemExit(
            f"personalar.run: {len(SweepReport.failed)} jobs failed: {', '.join(SweepReport.failed)}"
        )


if __name__ == "__main__":
    main()
