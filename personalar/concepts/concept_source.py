"""Find a concept: a folder, the folder of a run, or a repository of the Hugging Face hub.

A concept of the hub is written `hub://OWNER/NAME` or `hub://OWNER/NAME@REVISION`. Only the files of a concept
are downloaded, safetensors and JSON; `Concept.load` checks them like those of any folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from personalar.config.command_line import as_value
from personalar.config.fields import parse
from personalar.core.errors import hub_errors
from personalar.core.own_files import LORA_FILES, RECORD_FILE, ROWS_FILE, WEIGHTS_FILE

SCHEME = "hub://"
ADDRESS = re.compile(r"hub://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
FILES = [RECORD_FILE, ROWS_FILE, WEIGHTS_FILE, *LORA_FILES, "adapters/*.safetensors"]


def concept_folder(where: str) -> Path:
    """Return the concept folder for `where`: a concept folder, the folder of a finished run, or hub://...

    Raises:
        FileNotFoundError: there is no concept, or it cannot be downloaded.
        ValueError: an invalid address.
    """
    folder = Path(local_concept(where)).expanduser()
    for candidate in (folder, folder / "concept"):
        if (candidate / RECORD_FILE).is_file():
            return candidate
    raise FileNotFoundError(
        f"concept={where} contains no concept.json: give a concept folder, or the folder of a finished run"
    )


def local_concept(where: str) -> str:
    """Return `where`, or the folder of the hub's cache if it is hub://OWNER/NAME[@REVISION].

    Raises:
        FileNotFoundError: it cannot be downloaded, or is no concept.
        ValueError: an invalid address.
    """
    if not where.startswith(SCHEME):
        return where
    found = ADDRESS.fullmatch(where)
    if found is None:
        raise ValueError(f"concept={where} is not an address: write hub://OWNER/NAME[@REVISION]")
    repo, revision = found.groups()
    with hub_errors(where, "give a folder"):
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=FILES)
    if not (Path(folder) / RECORD_FILE).is_file():
        raise FileNotFoundError(
            f"{where} contains no concept.json: give a repository that personalar.push wrote"
        )
    return folder


def with_local_concept(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, with `concept=hub://...` replaced by the downloaded folder.

    Hydra reads them afterwards: the base of a concept is chosen from the files of its folder.
    """
    local = list(words)
    for place, word in enumerate(words):
        override = parse(word) if word.startswith("concept=") and SCHEME in word else None
        if override is not None and not override.is_sweep_override():
            chosen = override.value()
            if isinstance(chosen, list):
                folders = [as_value(local_concept(str(where))) for where in chosen]
                local[place] = f"concept=[{','.join(folders)}]"
            else:
                local[place] = f"concept={as_value(local_concept(str(chosen)))}"
    return local
