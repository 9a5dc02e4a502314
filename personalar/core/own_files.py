"""Names of the files that a run writes into its folder. Only files with these names are ever deleted.

Users may store their own files in a run folder, or pass the wrong folder by mistake.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from personalar.core.files import TEMPORARY
from personalar.core.png import SAMPLE_NAME

RECORD_FILE, ROWS_FILE, WEIGHTS_FILE = "concept.json", "learned_embeds.safetensors", "weights.safetensors"
LORA_WEIGHTS, LORA_CONFIG = LORA_FILES = ("lora/adapter_model.safetensors", "lora/adapter_config.json")
ADAPTER_FILE = re.compile(r"adapters/[a-z][a-z0-9_]{0,39}\.safetensors")
CARD_FILE, PICTURES = "README.md", "pictures"
"""File names in a concept folder; see `concepts/concept.py`."""
FOLDERS = ("stages", "cache", "images", "grids", "concept", "references", "logs", "earlier")
PICTURE_FOLDERS = ("images", "grids", "concept", "references")
PROGRESS_FILE = "progress.json"
RESULTS = ("scores.jsonl", "summary.json", "report.html")
ABANDONED_AFTER = 3600.0
"""An unfinished file whose process does not exist on this machine may belong to another machine. It is
deleted after this many seconds without a write."""

_STAGE = "[a-z][a-z0-9_]{0,39}"
_FILES = "|".join(map(re.escape, (RECORD_FILE, ROWS_FILE, WEIGHTS_FILE, *LORA_FILES)))
_CONCEPT = rf"({_FILES}|{ADAPTER_FILE.pattern})"
_PUBLISHED = rf"concept/({_CONCEPT}|{re.escape(CARD_FILE)}|{PICTURES}/{SAMPLE_NAME})"
_RESULTS = "|".join(map(re.escape, RESULTS))
OWN = re.compile(
    "|".join(
        [
            rf"stages/{_STAGE}/(concept/{_CONCEPT}|best/step_\d{{6,}}|checkpoints/step_\d{{6,}}\.ckpt)",
            rf"cache/(((photo|class|proxy)_codes|photo_masks|class_logits)\.safetensors|start/{_CONCEPT})",
            rf"images/{_STAGE}/{SAMPLE_NAME}",
            r"grids/(overview|(?P<grid_of>[a-z][a-z0-9_]*?)(_\d{5,})?)\.png",
            _PUBLISHED,
            rf"earlier/{_STAGE}_\d+/({_RESULTS}|{_PUBLISHED}|images/{_STAGE}/{SAMPLE_NAME}|grids/{_STAGE}\.png)",
            r"references/((cropped|redrawn)/)?\d{2,}\.png",
            rf"logs/{_STAGE}/(part_\d+|tensorboard)/(metrics\.csv|hparams\.yaml|events\.out\.tfevents\..+)",
            r"logs/wandb/((offline-)?run-\d{8}_\d{6}-[^/]+|latest-run|data|cache|artifacts|debug[^/]*\.log)",
        ]
    )
)
"""Paths in a run folder. A folder that matches (checkpoints, W&B) belongs to the run with all its content."""


def own_files(root: Path, *below: str) -> Iterator[Path]:
    """Yield the paths that a run wrote, in the subfolders `below` of the run folder `root`."""
    # A grid is named after its stage. With any other name (grids/my_cat.png) it is a user's file.
    stages = {None, "base", *(path.name for path in (root / "stages").glob("*"))}
    for folder in below:
        for path in sorted((root / folder).rglob("*")):
            own = OWN.fullmatch(path.relative_to(root).as_posix())
            if own and own["grid_of"] in stages:
                yield path


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():  # a link is deleted, but never its target
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def delete_own(root: Path, *below: str) -> None:
    """Delete `own_files(root, *below)` and the folders that become empty."""
    for path in own_files(root, *below):
        remove(path)
        # Innermost first, and without "." (the run folder itself).
        for parent in path.relative_to(root).parents[:-1]:
            with suppress(OSError):  # not empty
                (root / parent).rmdir()


def delete_abandoned(*folders: Path) -> None:
    """Delete unfinished files of killed commands in `folders`, but not those of running commands."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            found = TEMPORARY.fullmatch(path.name)
            with suppress(OSError):  # another command deleted it, or it cannot be deleted
                if found and not _at_work(int(found[1]), path.stat().st_mtime):
                    path.unlink()


def _at_work(pid: int, written: float) -> bool:
    """Return whether process `pid` can still be writing a file.

    Args:
        written: time of the last write, in seconds since 1970.
    """
    try:
        # Systems reuse process ids: a process that started later cannot have written the file.
        return psutil.Process(pid).create_time() <= written
    except psutil.Error:
        # It can be a process of another machine or container that uses the same folder.
        return time.time() - written < ABANDONED_AFTER


def delete_temporaries(root: Path) -> None:
    """Delete unfinished files of a killed run in the run folder `root`; the caller has its lock."""
    for path in root.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            remove(path)
    for folder in FOLDERS:
        for path in (root / folder).rglob(".*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                remove(path)
