"""Reuse of stage 1 of another run (`reuse=DIR`), if this run would train exactly the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings, stage_settings
from personalar.config.run_config import RunConfig
from personalar.core.files import sync_files, write_atomic
from personalar.core.own_files import RECORD_FILE
from personalar.core.run_folder import SHARED, RunFolder, differences, first_few
from personalar.core.types import Subject

if TYPE_CHECKING:
    from personalar.training.context import RunContext


def copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files and folders `names` from `source` to `target`, each file atomically; skip missing ones."""
    for name in names:
        found = source / name
        for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if path.is_file():
                # Pictures are synced together at the end.
                write_atomic(target / path.relative_to(source), path.read_bytes(), sync=path.suffix != ".png")
    sync_files()


def check_reuse(config: RunConfig, folder: RunFolder, *, base: str, subject: Subject) -> None:
    """Check that the first stage of the run in `config.reuse` can be copied, and set `folder.copied`.

    Nothing is set if `folder` has this stage already.

    Args:
        base: fingerprint of the base.

    Raises:
        FileNotFoundError: the first stage of that run is missing or unfinished.
        ValueError: it is damaged, or was trained with other settings, another base or other photos; or it is
            in `folder` itself, which `overwrite` replaces.
    """
    first = next(iter(config.method.stages))
    if folder.has_concept(first):
        return
    source = Path(config.reuse or "").expanduser()
    if folder.replaced and source.resolve() == folder.path.resolve():
        raise ValueError(f"reuse={source} is the folder that overwrite=true replaces: omit one of them")
    other = RunFolder(source)
    if not other.has_concept(first) or "settings" not in other.record:
        raise FileNotFoundError(
            f"reuse={source} contains no finished stage 1 (run.json, {other.concept(first)}): choose the "
            f"folder of a run that has finished stage={first}, or omit reuse"
        )
    concept = Concept.load(other.concept(first))
    # The same settings on another base would give other embeddings.
    concept.check_base(name=config.model.name, fingerprint=base)
    settings = learning_settings(config)
    theirs, ours = stage_settings(other.record["settings"], first), stage_settings(settings, first)
    changed = differences(theirs, ours) if theirs and ours else ["the method has no first stage"]
    if concept.subject["fingerprint"] != subject.fingerprint:
        changed.append("other photos")
    if changed:
        raise ValueError(
            f"reuse={source}: stage 1 of this run would be different ({first_few(changed)}): omit reuse, or "
            "use the same settings"
        )
    folder.copied = first


def take_over(session: RunContext) -> str:
    """Copy the stage `folder.copied` of the run in `config.reuse`, and return a message."""
    config, folder, first = session.config, session.folder, session.folder.copied
    assert first is not None
    source = Path(config.reuse or "").expanduser()
    other = RunFolder(source)
    # First the settings: if the copy is interrupted, the folder belongs to this run, which copies again.
    photos, base = session.subject.fingerprint, session.base["fingerprint"]
    folder.update(settings=learning_settings(config), photos=photos, base=base)
    facts = {**other.record.get("stages", {}).get(first, {}), "reused": str(source.resolve())}
    facts.pop("checkpoint", None)  # the checkpoint is not copied
    folder.update_stage(first, **facts)
    copy_files(source, folder.path, [*SHARED, f"images/{first}", f"logs/{first}"])
    parts = sorted(path.name for path in other.concept(first).iterdir() if path.name != RECORD_FILE)
    # The record comes last, because a concept with a record counts as finished.
    copy_files(other.concept(first), folder.concept(first), [*parts, RECORD_FILE])
    folder.copied = None
    return f"stage {first}: copied from {source}"


def started_alone(config: RunConfig) -> bool:
    """Return whether this is the only process of the run so far; torchrun and srun start all at once."""
    # Lightning's own launcher starts the others only in `Trainer.fit`.
    started_outside = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    return not started_outside or config.trainer.devices * config.trainer.num_nodes == 1


def check_started_alone(config: RunConfig) -> None:
    """Raise ValueError if the folder must be changed while processes of torchrun or srun read it."""
    if (config.overwrite or config.reuse) and not started_alone(config):
        raise ValueError(
            f"{'overwrite=true' if config.overwrite else 'reuse=DIR'} cannot be used with torchrun or srun: "
            "start one process with trainer.devices=N, or do without it in another folder"
        )
