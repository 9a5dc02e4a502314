"""Weights & Biases: one W&B run per run folder.

Lightning's logger sends the curves. This module sends the rest: the configuration, the photos, a `samples`
panel with a slider over the steps of all stages, a table of all pictures, the means, and the concept as an
artifact.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personalar.core.files import plain_name, read_json
from personalar.core.measures import measures_of
from personalar.core.run_folder import RunFolder, flatten, steps_after
from personalar.reports.run_page import read_samples
from personalar.training.callbacks.sample_grid import log_grid
from personalar.training.context import RunContext

NOT_FOR_INIT = ("_target_", "offline", "prefix", "save_dir", "log_model", "checkpoint_name", "settings")
"""Settings of Lightning's WandbLogger that are not arguments of `wandb.init`, or are passed separately."""


def wandb_settings(logger: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the first W&B logger in the group `logger`; None without one."""
    found = (node for node in logger.values() if node and node["_target_"].endswith("WandbLogger"))
    return next(found, None)


def start(session: RunContext, settings: Mapping[str, Any]) -> Any:
    """Start or resume the W&B run of the run folder, offline without an account or a network; return it."""
    import wandb

    folder = session.folder
    # A resumed run continues its W&B run.
    known = folder.record.get("wandb_id")
    # An agent of a W&B sweep sets WANDB_RUN_ID. The id is stored before the start: a run that is killed here
    # resumes the same W&B run.
    folder.update(wandb_id=known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    mode = "offline" if settings.get("offline") else settings.get("mode") or os.environ.get("WANDB_MODE")
    if mode in (None, "online") and wandb.api.api_key is None:
        session.reporter.say("W&B: no account on this machine (wandb login); the run is stored offline")
        mode = "offline"
    try:
        run = _open(session, settings, mode=mode)
    except wandb.errors.CommError as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        session.reporter.say(f"W&B: not available ({reason}); the run is stored offline")
        wandb.teardown()  # its service process still has a run with this id
        mode = "offline"
        run = _open(session, settings, mode=mode)
    # Curves use Lightning's step within a stage; the panel of grids has its own, over all stages.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")
    run.define_metric("samples_step")
    run.define_metric("samples", step_metric="samples_step")
    if mode == "offline":
        kept = Path(run.dir).parent
        session.reporter.say(f"W&B: offline in {kept.parent}; to upload it: wandb sync {kept}")
    return run


def run_name(settings: Mapping[str, Any], folder: Path) -> str | None:
    """Return the name of the W&B run; in a group, such as a sweep, followed by the folder's name."""
    name = settings.get("name")
    grouped = settings.get("group") or os.environ.get("WANDB_RUN_GROUP")
    return f"{name} {folder.name}" if name and grouped and "WANDB_NAME" not in os.environ else name


def own_tags(settings: Mapping[str, Any]) -> list[str]:
    """Return the tags of the settings, or those of WANDB_TAGS (separated by commas) if there are none."""
    standard = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    return list(settings.get("tags") or standard)


def _open(session: RunContext, settings: Mapping[str, Any], *, mode: str | None) -> Any:
    """Return the W&B run with the id in run.json. Raises wandb.errors.CommError without a network."""
    import wandb

    logs = Path(settings.get("save_dir", "{folder}/logs").replace("{folder}", str(session.folder.path)))
    logs.mkdir(parents=True, exist_ok=True)
    # Our values, then the user's, then name and tags, which are made of both. Settings of the user's
    # environment (WANDB_...) take precedence over our defaults.
    mine = {
        "id": session.folder.record["wandb_id"],
        "resume": None if mode == "offline" else "allow",
        "dir": os.environ.get("WANDB_DIR", logs),
        "config": asdict(session.config),
    }
    theirs = {name: value for name, value in settings.items() if name not in NOT_FOR_INIT}
    config = session.config
    theirs["name"] = run_name(settings, session.folder.path)
    theirs["tags"] = [*own_tags(settings), config.model.name, config.method.name, config.subject.name]
    more = wandb.Settings(**(settings.get("settings") or {}))
    return wandb.init(**{**mine, **theirs, "mode": mode}, settings=more)


def log_references(run: Any, folder: RunFolder) -> None:
    """Log the training photos, once per W&B run."""
    import wandb

    photos = sorted((folder.path / "references").glob("*.png"))
    # A resumed W&B run has them already; logging again would add a second set.
    if photos and not folder.record.get("wandb_references"):
        run.log({"references": [wandb.Image(str(path), caption=path.stem) for path in photos]})
        folder.update(wandb_references=True)


def log_means(run: Any, folder: RunFolder) -> None:
    """Copy the means of summary.json to the summary of the W&B run."""
    for stage, measures in read_json(folder.path / "summary.json")["stages"].items():
        means = {name: value for name, value in flatten(measures).items() if isinstance(value, int | float)}
        # In the summary, so that W&B's tables and sweeps can sort runs by them.
        run.summary.update({f"{stage}/{name}": value for name, value in means.items()})


def log_pictures_and_concept(run: Any, session: RunContext) -> None:
    """Log a table of all pictures, and the concept as an artifact.

    Raises:
        wandb.errors.CommError: no connection; unlike curves, artifacts are not queued.
    """
    import wandb

    folder = session.folder
    facts = ("stage", "kind", "prompt", "seed")
    scores = [name for name, measure in measures_of(folder.record).items() if measure.is_scored]
    table = wandb.Table(columns=["step", *facts, "image", *scores])
    for sample in read_samples(folder.path, folder.record)[0]:
        step, picture = steps_after(folder.record, sample["stage"]), wandb.Image(str(sample["path"]))
        table.add_data(step, *map(sample.get, facts), picture, *map(sample.get, scores))
    run.log({"pictures": table})
    if (folder.path / "concept").is_dir():
        name = plain_name(f"concept-{session.config.model.name}-{session.subject.name}", longest=128)
        artifact = wandb.Artifact(name, type="concept", metadata=session.base)
        artifact.add_dir(str(folder.path / "concept"))
        run.log_artifact(artifact)


@contextmanager
def dashboard(session: RunContext) -> Iterator[Callable[[str], None]]:
    """Start the W&B run, and finish it at the end of the block.

    Yields:
        A function to call with the name of each finished stage. It does nothing without a W&B logger.
    """
    settings = wandb_settings(session.config.logger)
    if settings is None or not session.reporter.enabled:
        yield lambda stage: None
        return
    with kept_in(session.folder.path / "logs" / "wandb"):
        # Before Lightning's logger exists, which then uses this run instead of starting its own.
        run = start(session, settings)

        def after(stage: str) -> None:
            path = session.folder.path / "grids" / f"{stage}.png"
            if path.is_file():
                step = steps_after(session.folder.record, stage)
                with harmless(session, run):
                    log_grid(run, path, step=step, caption=f"after {stage}")

        try:
            with harmless(session, run):
                log_references(run, session.folder)
            yield after
        except BaseException:  # SystemExit after a signal too, so that W&B shows the run as stopped
            with harmless(session, run):  # its own error must not replace this one
                run.finish(exit_code=1)
            raise
        with harmless(session, run):
            log_means(run, session.folder)
            log_pictures_and_concept(run, session)
        with harmless(session, run):
            run.finish()


@contextmanager
def harmless(session: RunContext, run: Any) -> Iterator[None]:
    """Print an error of the block and continue: a dashboard must not stop a run."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        session.reporter.say(
            f"W&B: some results were not stored there ({reason}); the run is not affected, and everything is "
            f"in {session.folder.path}; to upload what W&B has kept: wandb sync {Path(run.dir).parent}"
        )


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Make W&B write its data, cache and artifacts below `folder`, unless the user's environment sets them.

    Its default is the home directory, which is small on many clusters.
    """
    places = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "artifacts"}
    mine = [name for name in places if name not in os.environ]
    for name in mine:
        os.environ[name] = str((folder / places[name]).absolute())
    try:
        yield
    finally:  # the next run of a sweep has its own folder
        for name in mine:
            os.environ.pop(name, None)
