"""Find the files of a base model: in the package, in a local folder, or in the cache of the Hugging Face hub.

Before a download the missing files are listed, with source, licence, size, folder and free space. With
`HF_HUB_OFFLINE=1` the network is not used.
"""

from __future__ import annotations

import importlib
import shlex
import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import WeakFileLock

from personalar.config.compose import package_path
from personalar.config.model_config import PARTS, HubFiles, ModelConfig, is_commit
from personalar.core.errors import hub_errors
from personalar.models.checkpoint_folder import OLD_WEIGHTS, WEIGHTS, PeftBase, shard_names

if TYPE_CHECKING:  # torch is loaded with the model
    from personalar.models.stored_base import ModelFiles

Say = Callable[[str], None]
"""Prints a message for the user."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a base model that has its own repository."""

    key: str
    """Its setting, one of `PARTS`."""
    hub: HubFiles
    folder: Path | None
    """Folder in the cache; None if a file is missing."""


def obtain_model(config: ModelConfig, *, say: Say) -> ModelFiles:
    """Return the files of a model; download missing ones, after a message to `say`.

    Raises:
        FileNotFoundError: files are missing and cannot be downloaded; the message gives the reason.
        ValueError: a file is damaged.
    """
    if (found := offline_model(config)) is not None:
        return found
    if huggingface_hub.is_offline_mode():
        return _download(config, say=say)  # raises the error with the reason
    cache_folder().mkdir(parents=True, exist_ok=True)
    # One process at a time: the check of free space would count unfinished files of another process.
    with WeakFileLock(cache_folder() / ".personalar.lock"):
        return offline_model(config) or _download(config, say=say)


def offline_model(config: ModelConfig) -> ModelFiles | None:
    """Return the files of a model if all are on this machine; None if some must be downloaded.

    Raises:
        FileNotFoundError, ValueError: `model.path` has no complete model, or a setting is wrong.
    """
    if config.path is not None:
        return _local(config, config.path)
    parts = {part.key: part for part in hub_parts(config)}
    folders = {key: part.folder for key, part in parts.items() if part.folder is not None}
    if len(folders) < len(parts):
        if config.layout is not None:  # otherwise it is in a file that is not here yet
            with TemporaryDirectory() as empty:
                open_family(config, Path(empty))  # finds a wrong setting before a download
        return None
    tokens = parts.get("tokenizer_hub")
    tokenizer = folders[tokens.key] / tokens.hub.files[0] if tokens else None
    return open_family(config, folders["hub"], vq=folders.get("vq_hub"), tokenizer=tokenizer)


def open_family(
    config: ModelConfig, folder: Path, *, vq: Path | None = None, tokenizer: Path | None = None
) -> ModelFiles:
    """Return the files in `folder`, located by the package `model.family`.

    Args:
        vq: folder of the image tokenizer, if it is not in `folder`; `model.vq_path` has priority.
        tokenizer: file of the text tokenizer, if it is not in `folder`.

    Raises:
        FileNotFoundError, ValueError: the family is unknown, or does not support these files or settings.
    """
    opened = _family(config).open_folder
    vq = Path(config.vq_path).expanduser() if config.vq_path else vq
    files = opened(folder, vq=vq, tokenizer=tokenizer, layout=config.layout)
    if (loss := config.recipe.loss) not in files.losses:
        raise ValueError(
            f"model.recipe.loss={loss} is not possible with model={config.name}, which predicts only image "
            f"codes; allowed: {', '.join(files.losses)}"
        )
    return files


def peft_base(config: ModelConfig) -> PeftBase | None:
    """Return the transformers class for which adapters of this family are exported; None if it has none."""
    return getattr(_family(config), "PEFT_BASE", None)


def _family(config: ModelConfig) -> ModuleType:
    try:
        family = importlib.import_module(config.family)
        family.open_folder  # noqa: B018 (raises AttributeError if it is missing)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model.family={config.family} is not a model family ({error}): set it to an importable package "
            "with a function open_folder, such as personalar.models.chameleon"
        ) from error
    return family


def pin(config: ModelConfig) -> ModelConfig:
    """Return `config` with every revision replaced by the commit in the cache.

    A branch such as "main" can change, and a run must resume with the weights it started with.
    """
    if config.path is not None:
        return config
    pinned: dict[str, Any] = {
        part.key: replace(part.hub, revision=part.folder.name)
        for part in hub_parts(config)
        if part.folder is not None and is_commit(part.folder.name)
    }
    return replace(config, **pinned)


def hub_parts(config: ModelConfig) -> list[Part]:
    """Return the parts of a model without `path`, the transformer first; the network is not used."""
    wanted = {key: hub for key in PARTS if (hub := getattr(config, key)) is not None}
    if config.vq_path is not None:
        wanted.pop("vq_hub", None)
    return [Part(key=key, hub=hub, folder=cached(hub)) for key, hub in wanted.items()]


def cached(hub: HubFiles) -> Path | None:
    """Return the folder in the cache with all files of `hub`, or None; the network is not used."""
    try:
        folder = _snapshot(hub, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    has_weights = any(name.endswith((".safetensors", ".bin")) for name in hub.files)
    whole = not has_weights or set(shard_names(folder)) <= set(files)
    return folder if whole and not missing_files(hub, files) else None


def missing_files(hub: HubFiles, files: Collection[str]) -> list[str]:
    """Return the file patterns of `hub` that match none of the `files` of its repository."""

    def is_there(pattern: str) -> bool:
        if pattern.endswith(".index.json") and {WEIGHTS, OLD_WEIGHTS} & set(files):
            return True  # weights in one file need no index
        alike = (file for file in files if fnmatchcase(file, pattern))
        return any(file.count("/") == pattern.count("/") for file in alike)  # "*" also matches "/"

    return [name for name in hub.files if not is_there(name)]


def statement(config: ModelConfig, parts: list[Part]) -> str:
    """Return a message with names, source, licence and size of the missing files, and the cache folder."""
    lines = [f"model={config.name} needs files that are not on this machine:"]
    for key, hub in [(part.key, part.hub) for part in parts if part.folder is None]:
        lines += [
            f"  {PARTS[key]}: {', '.join(hub.files)}",
            f"    from {page(hub)} (revision {hub.revision}), about {hub.gigabytes:g} GB",
            f"    licence to accept there: {hub.licence}",
            f"    to download it beforehand: {_download_command(hub)}",
        ]
    free = free_bytes(cache_folder()) / 1e9
    lines.append(f"  they are stored in {cache_folder()} (HF_HOME changes it), with {free:.1f} GB free")
    return "\n".join(lines)


def _download_command(hub: HubFiles) -> str:
    wanted = [word for name in hub.files for word in ("--include", name)]
    return shlex.join(["hf", "download", hub.repo, *wanted, "--revision", hub.revision])


def page(hub: HubFiles) -> str:
    """Return the URL of a repository."""
    return f"https://huggingface.co/{hub.repo}"


def obstacle(parts: list[Part]) -> str | None:
    """Return the reason that the missing files cannot be downloaded, or None."""
    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it"
    if sum(missing_bytes(part.hub) for part in parts if part.folder is None) > free_bytes(cache_folder()):
        return "the disk has too little space; free some, or set HF_HOME to a folder on another disk"
    return None


def missing_bytes(hub: HubFiles) -> float:
    """Return the size of `hub` without what an interrupted download has stored in the cache."""
    repo = cache_folder() / f"models--{hub.repo.replace('/', '--')}"  # also for a mistyped name
    # Finished and unfinished files. In blocks of 512 bytes, because an unfinished file can be sparse; Windows
    # has no st_blocks.
    found = [file.stat() for file in repo.glob("blobs/*")]
    stored = sum(512 * getattr(stat, "st_blocks", -(-stat.st_size // 512)) for stat in found)
    return max(0, 1e9 * hub.gigabytes - stored)


def cache_folder() -> Path:
    """Return the cache folder of the hub."""
    return Path(constants.HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def _local(config: ModelConfig, path: str) -> ModelFiles:
    files = open_family(config, package_path(path))
    missing = files.missing()
    what = f"model={config.name}: {', '.join(missing)} missing (model.path={path})"
    source, tokenizer = config.tokenizer_hub or config.hub, files.parts().get("text tokenizer")
    if tokenizer is not None and missing == [str(tokenizer)] and source is not None:
        raise FileNotFoundError(
            f"{what}; it is published at {page(source)}: copy it there, or run `hf download {source.repo} "
            f"{tokenizer.name} --revision {source.revision} --local-dir {shlex.quote(str(tokenizer.parent))}`"
        )
    if missing:
        raise FileNotFoundError(f"{what}: copy them there, or set model.path=DIR to a folder with all files")
    return files


def _download(config: ModelConfig, *, say: Say) -> ModelFiles:
    parts = hub_parts(config)
    text = statement(config, parts)
    if reason := obstacle(parts):
        raise FileNotFoundError(f"{text}\n{reason}; or set model.path=DIR to a folder that contains them")
    wanted = sorted((part for part in parts if not part.folder), key=lambda part: part.hub.gigabytes)
    for part in wanted:
        _check_listed(config, part)
    say(f"{text}\ndownloading now")
    for part in wanted:  # the smallest first, so that an error comes before 14 GB are downloaded
        with _explained(part):
            _snapshot(part.hub)
    if (found := offline_model(config)) is None:
        repos = ", ".join(part.hub.repo for part in hub_parts(config) if part.folder is None)
        raise FileNotFoundError(
            f"{repos}: the index lists files that the repository does not contain; choose another revision, "
            "or set model.path=DIR to a folder that contains all files"
        )
    return found


def _check_listed(config: ModelConfig, part: Part) -> None:
    """Raise FileNotFoundError if the repository does not contain all files of `part`."""
    hub = part.hub
    with _explained(part):
        files = huggingface_hub.HfApi().list_repo_files(hub.repo, revision=hub.revision)
    if missing := missing_files(hub, files):
        raise FileNotFoundError(
            f"{page(hub)} (revision {hub.revision}) has no {', '.join(missing)}, which model={config.name} "
            f"needs; nothing was downloaded. Choose another revision (model.{part.key}.revision=COMMIT) or "
            f"repository (model.{part.key}.repo=OWNER/NAME), or set model.path=DIR to a folder with all files"
        )


def _snapshot(hub: HubFiles, *, local_files_only: bool = False) -> Path:
    found = huggingface_hub.snapshot_download(
        hub.repo, revision=hub.revision, allow_patterns=hub.files, local_files_only=local_files_only
    )
    return Path(found)


def _explained(part: Part) -> AbstractContextManager[None]:
    """Turn an error of the hub in the block into a FileNotFoundError with a fix."""
    hub, key = part.hub, f"model.{part.key}"
    return hub_errors(
        f"{page(hub)} ({hub.licence}; revision {hub.revision})",
        f"set {key}.revision=COMMIT, {key}.repo=OWNER/NAME, or model.path=DIR to a folder with all files",
    )
