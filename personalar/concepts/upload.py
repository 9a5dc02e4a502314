"""Upload a concept to a repository of the Hugging Face hub.

Everything is one commit: readers see the old concept or the new one. An upload that was interrupted can be
repeated, and then sends only what the hub does not have yet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import disable_progress_bars

from personalar.concepts.concept import Concept
from personalar.concepts.concept_source import SCHEME
from personalar.concepts.model_card import concept_files, model_card
from personalar.core.errors import LOGIN, hub_errors
from personalar.core.own_files import CARD_FILE, OWN, RECORD_FILE


def contents(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """Return what belongs to the concept in `folder`: name in the repository -> file, or its content.

    Other files in the folder are left out.

    Args:
        folder: a concept folder.
        repo: OWNER/NAME, which the command in the model card names.

    Raises:
        FileNotFoundError, ValueError: the concept is incomplete or damaged.
    """
    concept = Concept.load(folder)
    path, paths = folder / CARD_FILE, concept_files(folder)
    card = path.read_text(encoding="utf-8") if path.is_file() else model_card(concept, folder, files=paths)
    files: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in paths}
    return {CARD_FILE: card.replace("concept=DIR ", f"concept={SCHEME}{repo} ").encode(), **files}


def size(content: Path | bytes) -> int:
    """Return the size in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def check_repo(repo: str) -> None:
    """Raise ValueError unless `repo` is OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"repo={repo} is not the name of a repository: write repo=OWNER/NAME")


def obstacle() -> str | None:
    """Return the reason why nothing can be uploaded from this machine, with what to do; None without one."""
    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it"
    if huggingface_hub.get_token() is None:
        return f"there is no token for the hub: {LOGIN}"
    return None


def upload(files: dict[str, Path | bytes], repo: str, *, private: bool) -> str:
    """Upload the files of `contents` and return the address of the commit.

    Files of an earlier concept that this one does not have are deleted in the same commit.

    Args:
        files: see `contents`.
        repo: OWNER/NAME, created if it does not exist.
        private: whether only its owner may see it.

    Raises:
        FileNotFoundError: the hub refuses the repository.
        ValueError: no token, no network, or the repository exists and is not as `private` says, or contains
            files, but no concept.
    """
    if reason := obstacle():
        raise ValueError(reason)
    if not sys.stderr.isatty():
        disable_progress_bars()  # they would fill a log with lines
    hub = HfApi()
    with hub_errors(f"repo={repo}", "choose another repository"):
        hub.create_repo(repo, private=private, exist_ok=True)
        there = hub.model_info(repo)
        if private and not there.private:
            raise ValueError(
                f"repo={repo} exists and everybody can see it: add private=false, or choose another name"
            )
        if there.private and not private:  # the hub leaves an existing repository as it is
            raise ValueError(
                f"repo={repo} exists and is private: make it public on its page, or leave out private=false"
            )
        present = {file.rfilename for file in there.siblings or []}
        others = sorted(present - {".gitattributes"})  # the hub creates this one
        if others and RECORD_FILE not in present:
            raise ValueError(
                f"repo={repo} contains files, but no concept ({', '.join(others[:3])}): choose another name, "
                "or delete its files"
            )
        earlier = present - set(files)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, data) for name, data in files.items()
        ]
        # Not files of other names, which the owner has added.
        old = [name for name in sorted(earlier) if OWN.fullmatch(f"concept/{name}")]
        changes += [CommitOperationDelete(name) for name in old]
        try:
            commit = hub.create_commit(repo, changes, commit_message="Upload a concept with personalar")
        except RuntimeError as error:  # the client's class for a large file that was not accepted
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(
                f"repo={repo}: the upload stopped ({reason}): repeat the command, which sends only what is "
                "missing"
            ) from error
    return str(commit.commit_url)
