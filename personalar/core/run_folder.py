"""The folder of one run: its paths, and the record run.json of its settings and progress.

`reports/summary.py` documents the result files. A run resumes from `stages/{stage}/{concept,checkpoints}`
and `cache/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from personalar.core.files import TEMPORARY, fits, is_whole, read_json, write_text
from personalar.core.own_files import (
    FOLDERS,
    PROGRESS_FILE,
    RECORD_FILE,
    RESULTS,
    delete_own,
    delete_temporaries,
    own_files,
    remove,
)

FORMAT_VERSION = 1
SHARED = (
    "images/base",
    "references/redrawn",
    "cache/photo_codes.safetensors",
    "cache/photo_masks.safetensors",
    "cache/proxy_codes.safetensors",
    "cache/class_codes.safetensors",
    "cache/class_logits.safetensors",
)
"""Files that depend only on base, photos, prompts and seeds, so another run's copies can be used."""


RECORD = {
    "settings": {
        "model": {"*": object, "recipe": {"*": object, "stages": {"*": object}}},
        "method": {"*": object, "stages": {"*": {"*": object, "numbers": str}}},
        "*": object,
    },
    "photos": str,
    "subject": (str, None),
    "noun": (str, None),
    "model": (str, None),
    "description": (str, None),
    **dict.fromkeys(("command", "started", "device", "stage", "method"), (str, None)),
    "warnings": [str],
    "versions": {"*": str},
    "scorers": ({"*": (str, None)}, None),
    "selection": (str, None),
    "bounds": ({"*": ({"dino!": float, "clip_i!": float, "images!": int, "*": float}, None)}, None),
    "stages": {
        "*": {
            "steps": int,
            "seconds": float,
            "note": (str, None),
            "v_moved": (float, None),
            "pictures_changed": (float, None),
            "selected": {"step!": int, "value!": float},
            "checkpoint": {"file!": str, "step!": int, "world!": int, "strategy!": str, "*": object},
            "*": object,
        }
    },
    "total_seconds": (float, None),
    "peak_memory_bytes": (float, None),
    "finished": ({"stages": [str], "pictures!": int, "*": object}, None),
    "*": object,
}
"""Schema of run.json, see `files.fits`. Run folders are shared, so the file is checked before use."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a run.json. Raises ValueError, with the reason, if it is not valid."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    invalid = [name for name, value in record.items() if not fits(value, RECORD.get(name, object))]
    if invalid:
        raise ValueError(f"invalid value of {', '.join(map(repr, invalid[:4]))}")
    return record


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {"a.b": (old, new)} for every nested setting that differs; None stands for a missing one."""
    before, after = flatten(old), flatten(new)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return {name: (before.get(name), after.get(name)) for name in names}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "a.b old -> new" for every nested setting that differs."""
    return [f"{name} {before!r} -> {after!r}" for name, (before, after) in changes(old, new).items()]


def first_few(items: Sequence[str], most: int = 4) -> str:
    """Return the first items, separated by commas, for a message."""
    ending = ["..."] if len(items) > most else []
    return ", ".join([*items[:most], *ending])


def stage_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the states of the model that a run samples and scores, in order: "base", then its stages."""
    # "stages" alone has only those that have begun, and that in the order of their entries.
    trained = record.get("settings", {}).get("method", {}).get("stages") or record.get("stages", {})
    return ("base", *(name for name in trained if name != "base"))


def steps_before(record: Mapping[str, Any], stage: str) -> int:
    """Return the number of optimizer steps of all stages before `stage`, for curves over the whole run."""
    names = stage_names(record)
    earlier = names[: names.index(stage)]
    return sum(record.get("stages", {}).get(name, {}).get("steps", 0) for name in earlier)


def steps_after(record: Mapping[str, Any], stage: str) -> int:
    """Return the number of optimizer steps of all stages up to and including `stage`."""
    return steps_before(record, stage) + record.get("stages", {}).get(stage, {}).get("steps", 0)


class OtherSettingsError(ValueError):
    """The run folder contains a run with other settings."""

    def __init__(self, path: Path, changed: Sequence[str]) -> None:
        """Make the message from `changed`, a list of differences."""
        self.found = f"{path} contains a run with other settings ({first_few(changed)})"
        super().__init__(
            f"{self.found}: choose another folder with hydra.run.dir=DIR (overwrite=true deletes what was "
            "learned here)"
        )


class RunFolder:
    """The paths in a run folder and its record, `run.json`.

    Attributes:
        path: the folder.
        record: the content of run.json; empty if there is none yet.
    """

    def __init__(self, path: Path) -> None:
        """Read run.json if it exists; nothing is written. Raises ValueError if it is damaged."""
        self.path = path
        self.longer: str | None = None
        """The finished stage that is to be trained with more steps; it counts as unfinished."""
        self.replaced = False
        """Whether all results are to be deleted after all checks; no stage counts as finished."""
        self.copied: str | None = None
        """The stage that is to be copied from another run after all checks; it counts as finished."""
        record = path / "run.json"
        try:
            self.record: dict[str, Any] = read_record(record) if record.is_file() else {}
        except ValueError as error:
            raise ValueError(
                f"{record} is damaged ({error}): restore it, or choose another folder with hydra.run.dir=DIR"
            ) from error

    @property
    def is_run(self) -> bool:
        """Whether run.json was written by a run, and not by another program or by hand."""
        learned = isinstance(self.record.get("settings"), dict) and "photos" in self.record
        return learned and self.record.get("format_version") == FORMAT_VERSION

    def concept(self, stage: str) -> Path:
        """Return the folder of the concept that `stage` writes when it is finished."""
        return self.path / "stages" / stage / "concept"

    def checkpoints(self, stage: str) -> Path:
        """Return the folder of the checkpoints of `stage`."""
        return self.path / "stages" / stage / "checkpoints"

    def checkpoint_of(self, stage: str) -> dict[str, Any]:
        """Return the entry of run.json for the last checkpoint of `stage`; empty without one."""
        return self.record.get("stages", {}).get(stage, {}).get("checkpoint", {})

    def selected(self, stage: str) -> dict[str, Any] | None:
        """Return "step" and "value" of the best step of `stage` so far; None if no step was selected."""
        return self.record.get("stages", {}).get(stage, {}).get("selected")

    def best(self, stage: str, step: int) -> Path:
        """Return the folder of the concept of `stage` at its best step."""
        return self.path / "stages" / stage / "best" / f"step_{step:06d}"

    def select(self, stage: str, *, step: int, value: float) -> None:
        """Record the best step so far, whose concept is written, and delete that of the previous one."""
        before = self.selected(stage)
        self.update_stage(stage, selected={"step": step, "value": value})
        if before and before["step"] != step:
            remove(self.best(stage, before["step"]))

    def has_concept(self, stage: str) -> bool:
        """Return whether `stage` is finished."""
        if stage == self.copied:
            return True
        # The record is the last file that `Concept.save` writes.
        return not self.replaced and stage != self.longer and is_whole(self.concept(stage) / RECORD_FILE)

    @property
    def last_stage(self) -> str | None:
        """The last finished stage; None if no stage is finished."""
        return next((stage for stage in reversed(stage_names(self.record)) if self.has_concept(stage)), None)

    def claim(self, settings: Mapping[str, Any], *, photos: str, base: str, overwrite: bool) -> None:
        """Check that the folder is empty or contains a run with the same `settings`.

        Args:
            settings: all settings that determine the result.
            photos, base: fingerprints; that of the photos includes the proxies.
            overwrite: set `replaced` if a run is there, whatever its settings.

        Raises:
            OtherSettingsError: the run has other settings, which the message lists.
            ValueError: files are in the way that no run of this package wrote.
        """
        if not self.is_run and (found := self.foreign_files()):
            raise ValueError(
                f"{self.path} contains {first_few(found)} but no settings of a run in run.json: nothing was "
                "changed; choose another folder with hydra.run.dir=DIR"
            )
        delete_temporaries(self.path)
        if overwrite and self.is_run:
            self.replaced = True
            self.record = {name: self.record[name] for name in ("format_version", "settings", "photos")}
            return
        changed = differences(self.record.get("settings", {}), settings)
        pictures = "photos or proxies" if settings.get("subject", {}).get("proxies") else "photos"
        for name, now, words in (("photos", photos, pictures), ("base", base, "base")):
            if self.record.get(name, now) != now:
                changed.insert(0, f"other {words}")
        # Without pictures and stages nothing has been learned yet, and any settings may be used.
        if self.record and changed and any(own_files(self.path, "images", "stages")):
            raise OtherSettingsError(self.path, changed)

    def foreign_files(self) -> list[str]:
        """Return the names of existing files and folders that a run would write, except `SHARED`."""
        found = []
        for name in ("run.json", PROGRESS_FILE, *RESULTS, *FOLDERS):
            path, inside = self.path / name, {name}
            if path.is_dir():
                # Unfinished files come from a killed command and can be deleted.
                names = [entry.name for entry in path.iterdir()]
                inside = {f"{name}/{entry}" for entry in names if not TEMPORARY.fullmatch(entry)}
            if path.exists() and not inside <= set(SHARED):
                found.append(name)
        return found

    def clear(self) -> None:
        """Delete the files that a run wrote, except run.json, which `claim` has reduced."""
        # run.json is written first: a command that is killed here must recognise the folder.
        self.update()
        for name in (*RESULTS, PROGRESS_FILE):
            (self.path / name).unlink(missing_ok=True)
        delete_own(self.path, *FOLDERS)
        self.replaced = False

    def update(self, **facts: Any) -> None:
        """Add or replace entries of run.json, and write it."""
        self.record = {"format_version": FORMAT_VERSION, **self.record, **facts}
        write_text(self.path / "run.json", json.dumps(self.record, indent=1, ensure_ascii=False))

    def update_stage(self, stage: str, **facts: Any) -> None:
        """Add or replace facts in the entry of `stage` in run.json, and write it."""
        stages = self.record.get("stages", {})
        # New dicts, so that a failed write leaves the record in memory unchanged.
        self.update(stages={**stages, stage: {**stages.get(stage, {}), **facts}})

    def drop_checkpoints(self, stage: str) -> None:
        """Delete the checkpoints and the best step of `stage`, which is finished."""
        # The entry first: run.json must never name a checkpoint that is missing.
        stages = self.record.get("stages", {})
        if "checkpoint" in stages.get(stage, {}):
            facts = {name: fact for name, fact in stages[stage].items() if name != "checkpoint"}
            self.update(stages={**stages, stage: facts})
        delete_own(self.path, f"stages/{stage}/checkpoints", f"stages/{stage}/best")
