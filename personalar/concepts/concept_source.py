"""Find a concept: a folder, the folder of a run, or a repository of the Hugging Face hub.

A concept of the hub is written `hub://OWNER/NAME` or `hub://OWNER/NAME@REVISION`. Only the files of a concept
are downloaded, safetensors and JSON; `Concept.load` checks them like those of any folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import huggingface_hub

from personalar.config.command_line import as_value, quote
from personalar.config.compose import conf_dir, group_options
from personalar.config.fields import key_of, parse
from personalar.config.model_config import PARTS, is_commit
from personalar.core.errors import hub_errors
from personalar.core.files import read_json
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


def with_concept(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the base of `concept=`, and with hub://... as the local folder.

    Hydra reads them afterwards.
    """
    places = [place for place, word in enumerate(words) if word.startswith("concept=")]
    override = parse(words[places[-1]]) if places else None
    if override is None or override.is_sweep_override():
        return list(words)
    value, local = override.value(), list(words)
    several = value if isinstance(value, list) else [value]
    folders = [local_concept(str(where)) for where in several]
    if any(str(where).startswith(SCHEME) for where in several):
        texts = ",".join(map(as_value, folders))
        local[places[-1]] = f"concept=[{texts}]" if isinstance(value, list) else f"concept={texts}"
    return [*local, *(base_settings(folders[0], words) if folders else [])]


def base_settings(where: str, words: Sequence[str]) -> list[str]:
    """Return the overrides that select the base of the concept or run in the folder `where`.

    A local base is selected by its folder, a base from the hub by its commit. Empty if `words` have `model=`,
    or for a folder without a readable record: the error is raised when it is opened.
    """
    keys, folder = set(map(key_of, words)), Path(where).expanduser()
    # A record can be damaged in any way, and reading it thoroughly needs torch.
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        record = read_json((folder if (folder / RECORD_FILE).is_file() else folder / "concept") / RECORD_FILE)
        name, model = record["base"]["name"], record["config"]["model"]
        if "model" in keys or name not in group_options(conf_dir(), "model"):
            return []
        # The user chose other files: take only the name of the model from the concept.
        if {"model.path", "model.hub.repo"} & keys:
            return [f"model={name}"]
        # A concept from another machine contains a path that does not exist here.
        local = {key: Path(model[key]).expanduser() for key in ("path", "vq_path") if model.get(key)}
        found = [f"model.{key}={quote(path.absolute())}" for key, path in local.items() if path.is_dir()]
        # A branch can have changed since the training; only a commit identifies the same files.
        for key in PARTS if model.get("path") is None else ():
            if is_commit(commit := (model.get(key) or {}).get("revision", "")):
                found.append(f"model.{key}.revision={commit}")
        return [f"model={name}", *(word for word in found if key_of(word) not in keys)]
    return []
