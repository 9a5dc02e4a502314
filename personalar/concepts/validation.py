"""Validate a concept folder that may come from a stranger: plain values and finite tensors only.

Hashes detect corruption, not tampering, so every field is validated before use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from personalar.core.files import fits, read_json
from personalar.core.own_files import ADAPTER_FILE, LORA_FILES, RECORD_FILE, ROWS_FILE, WEIGHTS_FILE

FORMAT_VERSION = 2
NAME = re.compile(r"\[(V:[2-9]|V:[1-9]\d{1,2}|[A-Z]\d{0,4})\]")
WORD = re.compile(r"\[[A-Za-z0-9_.-]{1,80}\]")
"""Names of learned tokens, and words of concepts. Without brackets they could match part of any prompt."""
ALLOWED = "[V], [V:2], or a capital letter with or without a number, such as [I] and [S1]"
SCHEMA = {
    "base": {"name!": str, "fingerprint!": str, "*": str},
    "subject": {"name!": str, "noun!": str, "fingerprint!": str, "*": str},
    "stage": str,
    "identifier": {"[V]!": int, "*": int},
    "files": {f"{ROWS_FILE}!": str, "*": str},
    "config": {
        "model": {
            "path": (str, None),
            "hub": ({"repo!": str, "licence": (str, None), "revision": (str, None)}, None),
            "recipe": {"data": {"templates": [str], "class_name": bool}},
        },
        "method": {"name": str},
    },
}
"""Required fields of concept.json and their schemas, see `core.files.fits`; those of config are optional."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the validated content of `folder`/concept.json.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, has another format version, or contains a value that is not allowed.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} contains no concept: {path.name} is missing (a finished run has it in concept/)"
        )
    try:
        record = read_json(path)
        found = record["format_version"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.200}): train the concept again") from error
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {found!r:.40}, this version of personalar reads {FORMAT_VERSION}"
        )
    if problem := _problem(record):
        raise ValueError(f"{path} is damaged: {problem}; train the concept again")
    return record


def _problem(record: Mapping[str, Any]) -> str | None:
    """Return a description of the first invalid field of a record, or None."""
    for name, schema in SCHEMA.items():
        if not fits(record.get(name), schema):
            return f"{name} is missing, or is not as personalar writes it"
    if not WORD.fullmatch(record["subject"].get("word", "[V]")):
        return f"subject has the word {record['subject']['word']!r:.40}; expected one such as [cat]"
    # The names become paths below the folder: only known ones, so that none leads out of it.
    for name in sorted(set(record["files"]) - {ROWS_FILE, WEIGHTS_FILE, *LORA_FILES}):
        if not ADAPTER_FILE.fullmatch(name):
            return f"files contains {name!r:.80}, which is not a file of a concept"
    return _identifier_problem(record["identifier"])


def _identifier_problem(tokens: Mapping[str, int]) -> str | None:
    if strange := [name for name in tokens if not NAME.fullmatch(name)]:
        return f"identifier contains {strange[0]!r:.40}; allowed: {ALLOWED}"
    if min(tokens.values()) < 0:
        return "identifier must map names to token ids, integers from 0"
    if len(set(tokens.values())) != len(tokens):
        return "identifier maps two names to the same id"
    return None


def read_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Args:
        path: for error messages.
        data: content of the file.

    Raises:
        ValueError: the file is damaged, or contains integer tensors, NaN or infinity.
    """
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is not a safetensors file ({error!s:.200})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path}: {name} has dtype {tensor.dtype}; expected floating-point weights")
        # A single NaN would spread to every logit, and the pictures would have one colour.
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path}: {name} contains NaN or infinity; the training diverged, use a lower lr"
            )
    return tensors


def join_rows(path: Path, rows: Mapping[str, Tensor], names: Collection[str]) -> Tensor:
    """Concatenate the embeddings (1, D) of `rows` to (K, D) in the order of `names`.

    Raises:
        ValueError: the names differ, or a tensor is not (1, D).
    """
    if set(rows) != set(names):
        raise ValueError(
            f"{path} contains the embeddings {sorted(rows)}, but concept.json names {sorted(names)}"
        )
    shapes = {tuple(rows[name].shape) for name in names}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != 1 for shape in shapes):
        raise ValueError(f"{path}: the embeddings have shapes {sorted(shapes)}; expected (1, width) each")
    return torch.cat([rows[name] for name in names])
