"""One run: check the settings, sample the base, train the stages and sample after each, score, summarize.

A run that is started again in the same folder skips what is finished and resumes. Heavy libraries are
imported where they are used, so that a mistake in the settings is reported before torch is loaded.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.command_line import as_value
from personalar.config.compose import composed, read_config
from personalar.config.fingerprint import check_read
from personalar.config.plugins import build, check_classes
from personalar.config.run_config import RunConfig, Stage
from personalar.config.scorer_config import ScorerConfig
from personalar.core.files import base_fingerprint
from personalar.core.own_files import PROGRESS_FILE
from personalar.core.process import check_memory, global_rank, local_rank, prepare_torch
from personalar.core.run_folder import RunFolder
from personalar.core.run_lock import locked, refusable
from personalar.core.types import Subject
from personalar.data.subject import load_subject, validation_prompts
from personalar.models.loading import obtain_model, offline_model, pin
from personalar.reports.summary import result_lines
from personalar.runs.record import finish, is_finished, record_end, record_settings, record_start

if TYPE_CHECKING:
    from personalar.models.stored_base import ModelFiles
    from personalar.scoring.judges import Judges
    from personalar.training.context import RunContext

    Stages = list[Stage]


def from_settings(settings: Sequence[str], folder: str | PathLike[str] | None) -> tuple[RunConfig, Path]:
    """Return the configuration for command-line settings, and the absolute path of the run folder."""
    check_read(config := read_config(composed("run", settings)), settings)
    # The same default as hydra.run.dir in conf/run.yaml, which does not apply without Hydra's main function.
    where = Path("outputs", config.model.name, config.subject.name) if folder is None else Path(folder)
    return config, where.expanduser().absolute()


def run(*settings: str, folder: str | PathLike[str] | None = None) -> Path:
    """Learn a subject, like `python -m personalar.run`, and return the run folder.

    A finished run is not repeated, an interrupted one resumes.

    Args:
        settings: settings as on the command line: "subject=cat", "stage=both", "seed=1".
        folder: the run folder; default: outputs/MODEL/SUBJECT.

    Raises:
        ValueError: an invalid setting or photo, or a folder with another run.
        FileNotFoundError: photos or files of the base are missing.
    """
    config, run_dir = from_settings(settings, folder)
    leads = global_rank() == 0
    with locked(run_dir, leads=leads), refusable(run_dir, leads=leads):
        command = ["python", "-m", "personalar.run", *settings, f"hydra.run.dir={as_value(str(run_dir))}"]
        prepared = prepare(config, run_dir, command)
        if prepared is not None:
            personalize(*prepared, command=shlex.join(command))
    return run_dir


def open_run(*settings: str, folder: str | PathLike[str] | None = None) -> tuple[RunContext, list[Stage]]:
    """Return the context of a run and its stages, to train with your own `lightning.Trainer`.

    See docs/python.md. Arguments and errors are those of `personalize`; a finished run is a ValueError too.
    """
    config, run_dir = from_settings(settings, folder)
    leads = global_rank() == 0
    with locked(run_dir, leads=leads), refusable(run_dir, leads=leads):
        prepared = prepare(config, run_dir, ["python", "-m", "personalar.run", *settings])
        if prepared is None:
            raise ValueError(f"{run_dir} contains a finished run: choose another folder")
        if leads:  # training writes to cache/, which is refused in a folder without settings
            record_settings(prepared[0])
    return prepared


def prepare(
    config: RunConfig, run_dir: Path, command: Sequence[str] = ()
) -> tuple[RunContext, Stages] | None:
    """Check the settings, photos, base and folder, then load what a run needs.

    Args:
        run_dir: the run folder; the caller has its lock.
        command: the words of the command line, for messages.

    Returns:
        The context of the run and its stages, or None if the run is already finished.

    Raises:
        ValueError, FileNotFoundError: a user error, with a fix.
    """
    started = time.perf_counter()
    check_memory()
    # The order is that of cost: settings, files and folder are checked before torch is imported below.
    subject, files = read_inputs(config)
    folder, base = RunFolder(run_dir), base_fingerprint(files.weights())
    if global_rank() == 0:  # the others must not change the folder at the same time
        claim_folder(config, folder, subject, base, command)
    from personalar.training.stage import selected_stages

    stages = selected_stages(config, folder)
    if global_rank() == 0 and is_finished(config, folder):
        told = ["already finished; overwrite=true starts again", f"report: {run_dir / 'report.html'}"]
        print("\n".join([*told, *result_lines(run_dir)]))
        return None
    session = open_session(config, subject, folder, files, stages, base=base, started=started)
    session.check_tokens()
    if global_rank() == 0:
        from personalar.runs.longer import change_folder

        change_folder(session)
    return session, stages


def read_inputs(config: RunConfig) -> tuple[Subject, ModelFiles]:
    """Return the subject and the files of the base, which are downloaded if missing.

    `config.model` is changed to the exact commits of the files, so that run.json records them.
    """
    # The download of 14 GB comes last, so that a bad photo or a missing GPU is reported before.
    found = offline_model(config.model)
    layout = found.layout if found else config.model.layout
    subject = load_subject(config.subject, layout.sizes if layout else None)
    check_classes(config)
    if found is None:  # otherwise `preflight` does it
        from personalar.training.memory_fit import check_machine

        check_machine(config)
    files = found or obtain_model(config.model, say=print)
    config.model = pin(config.model)
    return subject, files


def claim_folder(
    config: RunConfig, folder: RunFolder, subject: Subject, base: str, command: Sequence[str]
) -> None:
    """Print what is learned where, and check that the folder belongs to this run and that `reuse` fits.

    Args:
        base: fingerprint of the base.
        command: the words of the command line, for messages.

    Raises:
        ValueError, FileNotFoundError: the folder contains another run, or `reuse` cannot be used.
    """
    from personalar.runs.longer import claim
    from personalar.runs.reuse import check_reuse, check_started_alone

    check_started_alone(config)
    photos = f"{len(subject.images)} photo{'s' if len(subject.images) > 1 else ''}"
    photos += f" and {len(subject.proxies)} proxies" if subject.proxies else ""
    where = f"on the {config.trainer.accelerator.upper()}, in {folder.path}"
    print(f"{subject.name}: {photos}, learned on {config.model.name} {where}")
    # After the line above, so that the user sees which folder an error is about.
    claim(config, folder, photos=subject.fingerprint, base=base, command=command)
    if config.reuse:
        check_reuse(config, folder, base=base, subject=subject)


def open_session(
    config: RunConfig,
    subject: Subject,
    folder: RunFolder,
    files: ModelFiles,
    stages: Stages,
    *,
    base: str,
    started: float,
) -> RunContext:
    """Check the memory, load the scorers, and return the context of the run.

    Args:
        base: fingerprint of the base.
        started: start of the run (`time.perf_counter`).
    """
    from personalar.core.console import Reporter
    from personalar.scoring.judges import check_scorers
    from personalar.training.context import RunContext
    from personalar.training.memory_fit import preflight, sampling_work

    prepare_torch(config.trainer.threads)
    # torchrun shows all GPUs of a machine to each process.
    device = f"cuda:{local_rank()}" if config.trainer.accelerator == "gpu" else "cpu"
    specs = validation_prompts(subject.noun, config.samples, live=subject.live)
    undone = [stage for stage in stages if not folder.has_concept(stage.name)]
    plans = preflight(config, undone, files)  # before the scorers are loaded, which takes seconds
    scorer = scorers_of(config.scorer, subject, specs, device)
    selector = scorers_of(config.selection.scorer, subject, specs, device)
    check_scorers(config, scorer, selector)
    return RunContext(
        config=config,
        subject=subject,
        specs=specs,
        folder=folder,
        reporter=Reporter(enabled=global_rank() == 0, file=folder.path / PROGRESS_FILE),
        decoder=build("decoder", config.decoder.settings),
        scorer=scorer,
        selector=selector,
        base={"name": config.model.name, "fingerprint": base},
        model_files=files,
        device=device,
        plans=plans,
        sampling=sampling_work(config, stages[0], files),
        started=started - folder.record.get("total_seconds", 0.0),
    )


def scorers_of(settings: ScorerConfig, subject: Subject, specs: tuple, device: str) -> Judges | None:
    """Return the scorers of `settings`; None if they are off, or above rank zero."""
    from personalar.scoring.judges import load_judges

    if global_rank() > 0 or not settings.scores:
        return None
    return load_judges(settings, subject, prompts=specs, device=device)


def personalize(session: RunContext, stages: Stages, *, command: str) -> None:
    """Do all phases of a run that are not finished: base pictures, stages, scores, summary, report.

    Args:
        stages: the stages to train.
        command: the command line, for the report.
    """
    if global_rank() > 0:
        follow(session, stages)
        return
    record_start(session, command=command)
    from personalar.runs.pictures import note_cost

    with session.reporter.recorded():
        try:
            learn(session, stages)
            record_end(session)  # last: without this entry the run counts as unfinished and resumes
        except BaseException:
            with suppress(OSError):  # such as a full disk, which must not replace the error
                note_cost(session)  # the resumed run adds its own time
            raise


def learn(session: RunContext, stages: Stages) -> None:
    """Do the phases of `personalize`; only rank zero calls it."""
    from personalar.runs import pictures
    from personalar.runs.longer import drop_states
    from personalar.runs.publish import publish_concept, show_pictures
    from personalar.runs.time_estimate import note_time
    from personalar.runs.wandb_run import dashboard
    from personalar.training.callbacks.learning_check import note_pictures
    from personalar.training.stage import resolve_stages
    from personalar.training.train import train_stage

    folder, reporter, config = session.folder, session.reporter, session.config
    all_stages = {stage.name: stage for stage in resolve_stages(config.method, config.model.recipe)}
    chosen = {stage.name: stage for stage in stages}
    note_time(session, stages)
    with dashboard(session) as after:
        samples = {"base": pictures.sample_and_score(session, "base", [])}
        after("base")
        for name in config.method.stages:
            if folder.has_concept(name):
                reporter.say(f"stage {name}: already learned")
            elif name in chosen:
                grid = pictures.grid_requests(session, name)
                train_stage(session, chosen[name], grid=grid, base_samples=samples["base"])
            else:
                continue
            drop_states(config, folder)
            # A later stage that was finished before stays the result of the run.
            is_last = name == folder.last_stage
            if is_last:  # before the pictures, so that a run killed in sampling has its result in concept/
                publish_concept(folder, name)
            samples[name] = pictures.sample_and_score(session, name, samples["base"])
            note_pictures(session, all_stages[name], samples)
            if is_last:
                show_pictures(folder, samples[name])
            after(name)
        reporter.say(f"overview: {pictures.draw_overview(session, samples)}")
        finish(session)


def follow(session: RunContext, stages: Stages) -> None:
    """Train all unfinished stages as a process above rank zero; only rank zero samples, scores and writes."""
    from personalar.runs.pictures import grid_requests
    from personalar.training.train import train_stage

    # Before the first stage, so that all processes train the same ones: rank zero is slower.
    undone = [stage for stage in stages if not session.folder.has_concept(stage.name)]
    for stage in undone:
        train_stage(session, stage, grid=grid_requests(session, stage.name), base_samples=[])
