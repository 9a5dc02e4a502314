"""The folder of one run: its paths, and its record run.json of what is done.

`reports/summary.py` documents the files that others read; a run goes on from
`stages/{stage}/{concept,checkpoints}` and `cache/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from personalar.core.files import TEMPORARY, fits, is_whole, read_json, write_text
from personalar.core.older_runs import modernized
from personalar.core.own_files import (
    FOLDERS,
    PROGRESS_FILE,
    RECORD_FILE,
    RESULTS,
    delete_own,
    delete_temporaries,
    own_files,
)

FORMAT_VERSION = 1
SHARED = (
    "images/base",
    "references/redrawn",
    "cache/photo_codes.safetensors",
    "cache/class_codes.safetensors",
)
"""Files that depend on base, photos, prompts and seeds alone; they may be copied before a run begins."""


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
    "bounds": ({"*": ({"dino!": float, "clip_i!": float, "images!": int, "*": float}, None)}, None),
    "stages": {
        "*": {
            "steps": int,
            "seconds": float,
            "note": (str, None),
            "v_moved": (float, None),
            "pictures_changed": (float, None),
            "*": object,
        }
    },
    "total_seconds": (float, None),
    "peak_memory_bytes": (float, None),
    "finished": ({"stages": [str], "*": object}, None),
    "*": object,
}
"""The shape of run.json (`files.fits`)."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a run.json. Raises ValueError, with the reason, where no run wrote it."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError("no object with stages")
    strange = [name for name, value in record.items() if not fits(value, RECORD.get(name, object))]
    if strange:
        raise ValueError(f"{', '.join(map(repr, strange[:4]))} of another kind than a run writes")
    return record


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (old, new)} for every nested setting that is not the same."""
    before, after = flatten(modernized(old)), flatten(modernized(new))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return {name: (before.get(name), after.get(name)) for name in names}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "name old -> new" for every nested setting that is not the same."""
    return [f"{name} {before!r} -> {after!r}" for name, (before, after) in changes(old, new).items()]


def first_few(items: Sequence[str], most: int = 4) -> str:
    """Join the first items for a message."""
    return ", ".join([*items[:most], *(["..."] if len(items) > most else [])])


def stage_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the states of the model that a run samples and scores, in order: "base", then its stages."""
    trained = record.get("settings", {}).get("method", {}).get("stages") or record.get("stages", {})
    return ("base", *(name for name in trained if name != "base"))


def steps_before(record: Mapping[str, Any], stage: str) -> int:
    """Return the number of optimizer steps of the stages before `stage`: its start on the slider."""
    names = stage_names(record)
    earlier = names[: names.index(stage)]
    return sum(record.get("stages", {}).get(name, {}).get("steps", 0) for name in earlier)


def steps_after(record: Mapping[str, Any], stage: str) -> int:
    """Return the number of steps after which `stage` was finished."""
    return steps_before(record, stage) + record.get("stages", {}).get(stage, {}).get("steps", 0)


class OtherSettingsError(ValueError):
    """A run folder contains a run with other settings."""

    def __init__(self, path: Path, changed: Sequence[str]) -> None:
        """Name what `changed`."""
        self.found = f"{path} holds a run with other settings ({first_few(changed)})"
        super().__init__(
            f"{self.found}: choose another folder with hydra.run.dir=DIR (overwrite=true deletes what was "
            "learned here)"
        )


class RunFolder:
    """Paths and the record `run.json` of one run."""

    def __init__(self, path: Path) -> None:
        """Look at `path`; nothing is written yet."""
        self.path = path
        self.longer: str | None = None
        """The finished stage that goes on with more steps, and so counts as unfinished."""
        record = path / "run.json"
        try:
            self.record: dict[str, Any] = read_record(record) if record.is_file() else {}
        except ValueError as error:
            raise ValueError(
                f"{record} is damaged ({error}): restore it, or choose another folder with hydra.run.dir=DIR"
            ) from error

    @property
    def is_run(self) -> bool:
        """Its run.json is one that a run wrote."""
        learned = isinstance(self.record.get("settings"), dict) and "photos" in self.record
        return learned and self.record.get("format_version") == FORMAT_VERSION

    def concept(self, stage: str) -> Path:
        """The folder of the concept that `stage` leaves."""
        return self.path / "stages" / stage / "concept"

    def checkpoints(self, stage: str) -> Path:
        """The folder of the last checkpoint of `stage`."""
        return self.path / "stages" / stage / "checkpoints"

    def checkpoint_of(self, stage: str) -> dict[str, Any]:
        """Return the entry of run.json on the last checkpoint of `stage`; empty without one."""
        return self.record.get("stages", {}).get(stage, {}).get("checkpoint", {})

    def has_concept(self, stage: str) -> bool:
        """Tell whether `stage` is finished."""
        return stage != self.longer and is_whole(self.concept(stage) / RECORD_FILE)

    @property
    def last_stage(self) -> str | None:
        """The last stage that is finished."""
        return next((stage for stage in reversed(stage_names(self.record)) if self.has_concept(stage)), None)

    def claim(self, settings: Mapping[str, Any], *, photos: str, base: str, overwrite: bool) -> None:
        """Make sure that the run here was learned with the same `settings`.

        Args:
            photos, base: fingerprints.

        Raises:
            OtherSettingsError: other settings, which are named.
            ValueError: not the folder of a run.
        """
        if not self.is_run and (found := self.strangers()):
            raise ValueError(
                f"{self.path} holds {first_few(found)} but no run.json that says what they were made with: "
                "they are left as they are; choose another folder with hydra.run.dir=DIR"
            )
        delete_temporaries(self.path)
        if overwrite and self.is_run:
            self.clear()
        changed = differences(self.record.get("settings", {}), settings)
        for name, now in (("photos", photos), ("base", base)):
            if self.record.get(name, now) != now:
                changed.insert(0, f"other {name}")
        if self.record and changed and any(own_files(self.path, "images", "stages")):
            raise OtherSettingsError(self.path, changed)

    def strangers(self) -> list[str]:
        """Return names in the way of a run: all that it would write, without `SHARED`."""
        found = []
        for name in ("run.json", PROGRESS_FILE, *RESULTS, *FOLDERS):
            path, inside = self.path / name, {name}
            if path.is_dir():
                names = [entry.name for entry in path.iterdir()]
                inside = {f"{name}/{entry}" for entry in names if not TEMPORARY.fullmatch(entry)}
            if path.exists() and not inside <= set(SHARED):
                found.append(name)
        return found

    def clear(self) -> None:
        """Delete the files of runs; run.json stays with settings and photos, as the mark of a run."""
        kept = {name: self.record[name] for name in ("settings", "photos")}
        self.record = {}
        self.update(**kept)
        for name in (*RESULTS, PROGRESS_FILE):
            (self.path / name).unlink(missing_ok=True)
        delete_own(self.path, *FOLDERS)

    def update(self, **facts: Any) -> None:
        """Put `facts` into run.json."""
        self.record = {"format_version": FORMAT_VERSION, **self.record, **facts}
        write_text(self.path / "run.json", json.dumps(self.record, indent=1, ensure_ascii=False))

    def update_stage(self, stage: str, **facts: Any) -> None:
        """Put `facts` into the stage's entry of run.json."""
        stages = self.record.get("stages", {})
        self.update(stages={**stages, stage: {**stages.get(stage, {}), **facts}})

    def drop_checkpoints(self, stage: str) -> None:
        """Delete the checkpoints of a finished `stage`, after their entry in run.json."""
        stages = self.record.get("stages", {})
        if "checkpoint" in stages.get(stage, {}):
            facts = {name: fact for name, fact in stages[stage].items() if name != "checkpoint"}
            self.update(stages={**stages, stage: facts})
        delete_own(self.path, f"stages/{stage}/checkpoints")
