"""More steps for a finished run: continue from its last state, or explain why this is not possible."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.command_line import as_value
from personalar.config.fields import key_of
from personalar.config.fingerprint import STAGES, learning_settings
from personalar.config.run_config import RunConfig
from personalar.core.own_files import RECORD_FILE, RESULTS, delete_own
from personalar.core.run_folder import OtherSettingsError, RunFolder, changes
from personalar.runs.reuse import copy_files, started_alone, take_over
from personalar.scoring.score_file import read_scores, write_scores

if TYPE_CHECKING:
    from personalar.training.context import RunContext

REPLACED = ("hydra.run.dir", "reuse", "overwrite")
"""Settings that are not copied to the suggested command for a new folder."""


def claim(config: RunConfig, folder: RunFolder, *, photos: str, base: str, command: Sequence[str]) -> None:
    """Check that the folder contains no other run, or one that can be trained longer with `config`.

    In the second case `folder.longer` is set to the stage that continues. No file is changed; see
    `keep_shorter`.

    Args:
        photos, base: fingerprints.
        command: the words of the command line.

    Raises:
        ValueError: a run with other settings; the message has the reason and a command for a new folder.
    """
    settings = learning_settings(config)
    try:
        folder.claim(settings, photos=photos, base=base, overwrite=config.overwrite)
    except OtherSettingsError as error:
        same_inputs = folder.record.get("photos") == photos and folder.record.get("base", base) == base
        reason = obstacle(config, folder) if same_inputs else ""
        if reason is None:  # only the number of steps differs, and the stage can continue
            return
        why = f". It cannot be trained longer: {reason}" if reason else ""
        raise ValueError(
            f"{error.found}{why}. Nothing was changed; choose another folder with\n"
            f"  {new_command(command, folder.path)}\n"
            "(overwrite=true deletes all results in this folder)"
        ) from error


def new_command(command: Sequence[str], path: Path) -> str:
    """Return `command` for the first free folder PATH-2, PATH-3 and so on."""
    number = 2
    # The message must contain a command that works, so the folder must be free.
    while (new := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    words = [word for word in command if key_of(word) not in REPLACED]
    return shlex.join([*words, f"hydra.run.dir={as_value(str(new))}"])


def obstacle(config: RunConfig, folder: RunFolder) -> str | None:
    """Return why the run in `folder` cannot continue with the settings of `config`; None if it can.

    It can if nothing differs but the steps of stages that have not begun, or more steps of the last one that
    has begun. Sets `folder.longer` if that stage is finished.

    Returns:
        None: the run can continue. "": settings other than steps differ; the caller lists them. Otherwise:
        the reason why this change of steps is impossible.
    """
    changed = changes(folder.record["settings"], learning_settings(config))
    begun = [name for name in config.method.stages if has_begun(folder, name)]
    longer = None
    for key, (before, now) in changed.items():
        numbers = key.removeprefix(f"{STAGES}.").removesuffix(".steps")
        if key != f"{STAGES}.{numbers}.steps" or None in (before, now):
            return ""
        for stage in begun:
            if config.method.stages[stage].numbers != numbers:
                continue
            reason = _stage_obstacle(config, folder, stage, lowered=now < before, last=begun[-1])
            if reason is not None:
                return reason
            longer = stage
    # Only a finished stage has "steps". An interrupted one resumes as usual, up to the new number of steps.
    if longer is not None and "steps" in folder.record["stages"].get(longer, {}):
        folder.longer = longer
    return None


def has_begun(folder: RunFolder, stage: str) -> bool:
    """Return whether `stage` has a concept or a checkpoint."""
    return folder.has_concept(stage) or bool(folder.checkpoint_of(stage))


def _stage_obstacle(
    config: RunConfig, folder: RunFolder, stage: str, *, lowered: bool, last: str
) -> str | None:
    """Return why `stage`, which has begun, cannot get another number of steps; None if it can.

    Args:
        lowered: the new number is smaller.
        last: the last stage that has begun.
    """
    from personalar.training.stage import depends_on_steps

    schedule = config.model.recipe.stages[config.method.stages[stage].numbers].schedule
    if stage != last:  # the later stage started from the result of the old number of steps
        return f"stage {last} has begun after stage {stage}"
    if lowered:
        return f"stage {stage} would have fewer steps than before"
    if stage not in config.selected:
        return f"stage {stage} is not among those to train (stage={config.stage.name})"
    if depends_on_steps(config.scheduler, schedule):
        return (
            f"the learning rate of stage {stage} depends on its number of steps, so its first steps would "
            "have had other rates"
        )
    if not is_whole_state(state_of(folder, stage)):
        return (
            f"the optimizer state of stage {stage} is missing or damaged (it is kept after the last stage, "
            "up to 1 GB, and not with DeepSpeed)"
        )
    if not started_alone(config):
        return (
            "torchrun and srun start all processes at once, while this folder must be changed by one; start "
            "one process with trainer.devices=N"
        )
    return None


def state_of(folder: RunFolder, stage: str) -> Path | None:
    """Return the checkpoint that run.json names for `stage`; None without one."""
    file = folder.checkpoint_of(stage).get("file")
    return folder.checkpoints(stage) / file if file else None


def is_whole_state(path: Path | None) -> bool:
    """Return whether a checkpoint is complete and undamaged; False for None."""
    if path is None or path.is_dir():  # a folder of DeepSpeed is checked when it is loaded
        return path is not None
    try:  # torch writes zip files, which have a checksum for each part; nothing is unpickled
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def change_folder(session: RunContext) -> None:
    """Replace the results of an earlier run, copy stage 1 of `reuse`, or keep the result of fewer steps.

    Called when all checks have passed, so that a command with a mistake changes nothing.
    """
    folder, config = session.folder, session.config
    if folder.replaced:
        folder.clear()
    if folder.copied is not None:
        session.reporter.say(take_over(session))
    if folder.longer is not None:
        session.reporter.say(keep_shorter(config, folder))


def keep_shorter(config: RunConfig, folder: RunFolder) -> str:
    """Move the results of stage `folder.longer` to `earlier/STAGE_STEPS/`, and mark it as unfinished.

    If it is interrupted, the same command does it again.

    Returns:
        A message for the user.
    """
    # The new settings are written last: until then the previous command still matches the folder, and would
    # complete the run as it was, from the checkpoint of its last step.
    stage = folder.longer
    assert stage is not None
    entry, steps = folder.checkpoint_of(stage), folder.record["stages"][stage]["steps"]
    kept, learned = folder.path / f"earlier/{stage}_{steps}", folder.concept(stage) / RECORD_FILE
    if learned.is_file():
        grids = [f"grids/{stage}.png", "grids/overview.png"]
        copy_files(folder.path, kept, [*RESULTS, "concept", f"images/{stage}", *grids])
        folder.update(finished=None)
        learned.unlink()  # before the other files: without its record the stage is unfinished
    delete_own(folder.path, f"stages/{stage}/concept", f"images/{stage}")
    scores = folder.path / "scores.jsonl"
    if scores.is_file():
        write_scores(scores, [line for line in read_scores(scores) if line["stage"] != stage])
    kept_entries = {"checkpoint": entry}
    if best := folder.selected(stage):  # the later steps compete with it
        kept_entries["selected"] = best
    stages = {**folder.record["stages"], stage: kept_entries}
    folder.update(settings=learning_settings(config), stages=stages)
    folder.longer = None
    result = f"; the result of {steps} steps is kept in {kept}" if kept.is_dir() else ""
    return f"stage {stage} continues from step {entry['step']}{result}"


def drop_states(config: RunConfig, folder: RunFolder) -> None:
    """Delete the checkpoints of finished stages, except that of the last one if it can be trained longer."""
    for stage in config.method.stages:
        # Records of older runs do not have "kept"; there only a checkpoint that is kept is left.
        kept = stage == folder.last_stage and folder.checkpoint_of(stage).get("kept", True)
        if folder.has_concept(stage) and not kept:
            folder.drop_checkpoints(stage)
