"""Where a base model's files lie: in the package, in a folder of the user's, or in the hub's cache.

What lacks is said before anything is downloaded or allocated: which files, from where, under which licence,
how large, where they will be kept and how much room is there. `HF_HUB_OFFLINE=1` never asks the network.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from personalar.config.compose import package_path
from personalar.config.run_config import HubFiles, ModelConfig
from personalar.models.chameleon.model_files import (
    VQ_CHECKPOINT,
    ModelFiles,
    find_vq,
    missing_base,
    open_folder,
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One repository's share of a base model, and the folder in the cache that holds all of it, if any."""

    what: str
    hub: HubFiles
    folder: Path | None


def obtain_model(config: ModelConfig, *, say: Say) -> ModelFiles:
    """Return the model's files, downloading what lacks after saying so.

    Raises:
        FileNotFoundError: when files lack and cannot be fetched, with all that there is to know about them.
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
        say(f"{told}\ndownloading now")
        return _assemble(config, [part if part.folder else _download(part) for part in parts])


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of a machine at a time look for room and download; the others wait, then look again.

    The hub locks each file it writes, so two downloads cannot spoil each other. But a second process would
    count the disk as too full for what the first has half fetched, and say everything twice. A process that
    fails lets the next one try, which then fails with its own message: nobody waits for the dead.
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
    """Return `config` with each revision as the commit that lies in the hub's cache.

    A branch such as "main" is then, for a run and in what it leaves, what it was when it was downloaded.
    """
    if config.path is not None:
        return config
    commits = {
        part.hub.repo: part.folder.name
        for part in hub_parts(config)
        if part.folder is not None and is_commit(part.folder.name)
    }
    hub, vq_hub = (
        replace(one, revision=commits.get(one.repo, one.revision)) if one is not None else None
        for one in (config.hub, config.vq_hub)
    )
    return replace(config, hub=hub, vq_hub=vq_hub)


def is_commit(revision: str) -> bool:
    """Tell whether `revision` names one state of a repository, and not a branch, which moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def hub_parts(config: ModelConfig) -> list[Part]:
    """Return the repositories that a model without `path` comes from, the transformer's first; no network."""
    assert config.hub is not None
    wanted = [("transformer", config.hub)]
    if config.vq_hub is not None and config.vq_path is None:
        wanted.append(("image tokenizer", config.vq_hub))
    return [Part(what=what, hub=hub, folder=cached(hub)) for what, hub in wanted]


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
    whole = (find_vq(folder) / VQ_CHECKPOINT).is_file() or not missing_base(folder)
    return folder if whole and all(any(folder.glob(name)) for name in hub.files) else None


def statement(config: ModelConfig, parts: list[Part]) -> str:
    """Return what lacks, from where, under which licence, how large, and where it will be kept."""
    folder = cache_folder()
    lines = [f"model={config.name} needs files that are not on this machine:"]
    for part in parts:
        if part.folder is None:
            hub = part.hub
            lines += [
                f"  {part.what}: {', '.join(hub.files)}",
                f"    from https://huggingface.co/{hub.repo} (revision {hub.revision}), "
                f"about {hub.gigabytes:g} GB",
                f"    licence to accept there: {hub.licence}",
            ]
    free = free_bytes(folder) / 1e9
    return "\n".join(
        [*lines, f"  they are kept in {folder} (HF_HOME moves it), where {free:.1f} GB are free"]
    )


def obstacle(parts: list[Part]) -> str | None:
    """Return why what lacks cannot be downloaded, or None."""
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
    if missing := files.missing():
        raise FileNotFoundError(
            f"model={config.name}: {', '.join(missing)} missing (model.path={config.path}); set "
            "model.path=DIR to a folder with base/ and vq/, or to a whole Hugging Face checkpoint"
        )
    return files


def _assemble(config: ModelConfig, parts: list[Part]) -> ModelFiles:
    base, *others = (part.folder for part in parts)
    assert base is not None
    vq = Path(config.vq_path).expanduser() if config.vq_path else next(iter(others), None)
    return open_folder(base, vq=vq, layout=config.layout)


def _download(part: Part) -> Part:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    hub = part.hub
    page = f"https://huggingface.co/{hub.repo}"
    try:
        folder = snapshot_download(hub.repo, revision=hub.revision, allow_patterns=hub.files)
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{page} gives its files to those who accepted its licence ({hub.licence}): accept it there, "
            "then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{page} has no revision {hub.revision}; choose another, for instance model.hub.revision=main"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{page} could not be read ({str(error).splitlines()[0]})") from error
    return Part(what=part.what, hub=hub, folder=Path(folder))
