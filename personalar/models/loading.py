"""Find a base model's files: in the package, in a folder of the user, or in the hub's cache.

Before a download everything about the missing files is printed: source, licence, size, place and free space.
`HF_HUB_OFFLINE=1` never asks the network.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from personalar.config.compose import package_path
from personalar.config.model_config import PARTS, HubFiles, ModelConfig, is_commit
from personalar.models.chameleon.model_files import TOKENIZER, WEIGHTS, ModelFiles, open_folder, shard_names

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One repository's share of a base model, and the folder in the cache that holds all of it, if any."""

    key: str
    """Its setting, one of `PARTS`."""
    hub: HubFiles
    folder: Path | None


def obtain_model(config: ModelConfig, *, say: Say) -> ModelFiles:
    """Return the model's files; print what is missing and download it.

    Raises:
        FileNotFoundError: when files are missing and cannot be fetched; the message names them.
        ValueError: when a file of the folder is damaged.
    """
    if (found := offline_model(config)) is not None:
        return found
    with one_at_a_time():
        if (found := offline_model(config)) is not None:  # another process fetched it meanwhile
            return found
        parts = hub_parts(config)
        told = statement(config, parts)
        if reason := obstacle(parts):
            raise FileNotFoundError(f"{told}\n{reason}; or set model.path=DIR to a folder that holds them")
        wanted = sorted((part for part in parts if not part.folder), key=lambda part: part.hub.gigabytes)
        for part in wanted:
            check_listed(config, part)
        say(f"{told}\ndownloading now")
        for part in wanted:  # the smallest first: what is refused is then refused before 14 GB are here
            download(part)
        if (found := offline_model(config)) is None:
            repos = ", ".join(part.hub.repo for part in hub_parts(config) if part.folder is None)
            raise FileNotFoundError(
                f"{repos}: its index names files that the repository does not hold; choose another revision, "
                "or set model.path=DIR to a folder that holds all files"
            )
        return found


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of a machine download at a time; the others wait, then look again.

    The hub locks each file. Without this lock a second process would count the disk as too full for what the
    first has half fetched, and print everything twice.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import WeakFileLock

    if is_offline_mode():
        yield
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache_folder() / ".personalar.lock"):
        yield


def offline_model(config: ModelConfig) -> ModelFiles | None:
    """Return the model's files where all are on this machine, or None where the hub must be asked.

    Raises:
        FileNotFoundError, ValueError: when `model.path` names a folder that is not a whole model.
    """
    if config.path is not None:
        return _local(config)
    parts = hub_parts(config)
    return None if any(part.folder is None for part in parts) else _assemble(config, parts)


def pin(config: ModelConfig) -> ModelConfig:
    """Return `config` with each revision as the commit in the hub's cache.

    A run and its results then name a fixed state instead of a branch, which moves.
    """
    if config.path is not None:
        return config
    pinned = {
        part.key: replace(part.hub, revision=part.folder.name)
        for part in hub_parts(config)
        if part.folder is not None and is_commit(part.folder.name)
    }
    return replace(config, **pinned)


def hub_parts(config: ModelConfig) -> list[Part]:
    """Return the repositories that a model without `path` comes from, the transformer's first; no network."""
    wanted = {key: hub for key in PARTS if (hub := getattr(config, key)) is not None}
    if config.vq_path is not None:
        wanted.pop("vq_hub", None)
    return [Part(key=key, hub=hub, folder=cached(hub)) for key, hub in wanted.items()]


def cached(hub: HubFiles) -> Path | None:
    """Return the folder of the hub's cache that holds `hub` completely, or None; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            hub.repo, revision=hub.revision, allow_patterns=hub.files, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    holds_weights = any(name.endswith(".safetensors") for name in hub.files)
    whole = not holds_weights or set(shard_names(folder)) <= set(files)
    return folder if whole and not lacking(hub, files) else None


def lacking(hub: HubFiles, files: Collection[str]) -> list[str]:
    """Return the names of `hub` that are missing in `files`; weights in one file need no index."""

    def is_there(pattern: str) -> bool:
        alike = (file for file in files if fnmatchcase(file, pattern))
        return any(file.count("/") == pattern.count("/") for file in alike)

    optional = ".index.json" if WEIGHTS in files else "\0"
    return [name for name in hub.files if not is_there(name) and not name.endswith(optional)]


def statement(config: ModelConfig, parts: list[Part]) -> str:
    """Describe the missing files: source, licence, size, and the folder they are kept in."""
    folder = cache_folder()
    lines = [f"model={config.name} needs files that are not on this machine:"]
    for part in parts:
        if part.folder is None:
            hub = part.hub
            lines += [
                f"  {PARTS[part.key]}: {', '.join(hub.files)}",
                f"    from https://huggingface.co/{hub.repo} (revision {hub.revision}), "
                f"about {hub.gigabytes:g} GB",
                f"    licence to accept there: {hub.licence}",
            ]
    free = free_bytes(folder) / 1e9
    return "\n".join(
        [*lines, f"  they are kept in {folder} (HF_HOME moves it), where {free:.1f} GB are free"]
    )


def obstacle(parts: list[Part]) -> str | None:
    """Return the reason the missing files cannot be downloaded, or None."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it"
    needed = 1e9 * sum(part.hub.gigabytes for part in parts if part.folder is None)
    if needed > free_bytes(cache_folder()):
        return "the disk has not enough room; free some, or set HF_HOME to another"
    return None


def cache_folder() -> Path:
    """Return the folder where the hub's files are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk on which `folder` is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def _local(config: ModelConfig) -> ModelFiles:
    assert config.path is not None
    vq = Path(config.vq_path).expanduser() if config.vq_path else None
    files = open_folder(package_path(config.path), vq=vq, layout=config.layout)
    missing = files.missing()
    told = f"model={config.name}: {', '.join(missing)} missing (model.path={config.path}); "
    source = config.tokenizer_hub or config.hub
    if missing == [str(files.tokenizer)] and source is not None:
        raise FileNotFoundError(
            f"{told}it is the one of https://huggingface.co/{source.repo}: copy it there, or run "
            f"`hf download {source.repo} {TOKENIZER} --revision {source.revision} "
            f"--local-dir {shlex.quote(str(files.tokenizer.parent))}`"
        )
    if missing:
        raise FileNotFoundError(
            f"{told}set model.path=DIR to a folder with base/ and vq/, or to a whole Hugging Face checkpoint"
        )
    return files


def _assemble(config: ModelConfig, parts: list[Part]) -> ModelFiles:
    folders = {part.key: part.folder for part in parts}
    base, tokens = folders["hub"], folders.get("tokenizer_hub")
    assert base is not None
    tokenizer = None if tokens is None else tokens / TOKENIZER
    vq = Path(config.vq_path).expanduser() if config.vq_path else folders.get("vq_hub")
    return open_folder(base, vq=vq, tokenizer=tokenizer, layout=config.layout)


def check_listed(config: ModelConfig, part: Part) -> None:
    """Raise FileNotFoundError where the repository's list of files does not have all files of `part`."""
    from huggingface_hub import HfApi

    hub = part.hub
    with _told(part):
        files = HfApi().list_repo_files(hub.repo, revision=hub.revision)
    if missing := lacking(hub, files):
        raise FileNotFoundError(
            f"https://huggingface.co/{hub.repo} (revision {hub.revision}) has no {', '.join(missing)}, which "
            f"model={config.name} takes from there; nothing was downloaded. Choose another revision "
            f"(model.{part.key}.revision=COMMIT) or repository (model.{part.key}.repo=OWNER/NAME), or set "
            "model.path=DIR to a folder that has all files"
        )


def download(part: Part) -> None:
    """Fetch the files of `part` into the hub's cache. Raises FileNotFoundError with what the hub answered."""
    from huggingface_hub import snapshot_download

    with _told(part):
        snapshot_download(part.hub.repo, revision=part.hub.revision, allow_patterns=part.hub.files)


@contextmanager
def _told(part: Part) -> Iterator[None]:
    """Turn an error of the hub within the block into a FileNotFoundError with a fix."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    hub = part.hub
    page = f"https://huggingface.co/{hub.repo}"
    try:
        yield
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{page} gives its files to those who accepted its licence ({hub.licence}): accept it there, "
            "then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{page} has no revision {hub.revision}; choose another, for instance "
            f"model.{part.key}.revision=main"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{page} could not be read ({str(error).splitlines()[0]})") from error
