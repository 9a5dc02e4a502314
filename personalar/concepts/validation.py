"""Checks of a concept folder that may come from a stranger: plain facts and finite tensors only.

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

from personalar.core.files import read_json
from personalar.core.own_files import ADAPTER_FILE, LORA_FILES, RECORD_FILE, ROWS_FILE, WEIGHTS_FILE

FORMAT_VERSION = 2
NAME = re.compile(r"\[(V|S[1-9]\d{0,3})\]")
"""Names that may stand for a learned row: a shorter one could hide in anybody's prompt."""
FACTS = {"base": {"name", "fingerprint"}, "subject": {"name", "noun", "fingerprint"}}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the checked content of the concept.json in `folder`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, of another version, or contains a fact that is not allowed.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no concept: {path.name} is missing (a finished run has it in concept/)"
        )
    try:
        record = read_json(path)
        found = record["format_version"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.200}): make the concept again") from error
    if found != FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {found!r:.40}, this program reads {FORMAT_VERSION}")
    if problem := _problem(record):
        raise ValueError(f"{path} is damaged: {problem}; make the concept again")
    return record


def _problem(record: Mapping[str, Any]) -> str | None:
    """Return an error in a record, or None."""
    missing = {*FACTS, "stage", "identifier", "config", "files"} - set(record)
    if missing:
        return f"{sorted(missing)} is missing"
    for fact, names in FACTS.items():
        if not _texts(record[fact]) or not names <= set(record[fact]):
            return f"{fact} must hold the texts {', '.join(sorted(names))}"
    if not isinstance(record["stage"], str) or not isinstance(record["config"], dict):
        return "stage must be a text and config an object"
    allowed = {ROWS_FILE, WEIGHTS_FILE, *LORA_FILES}
    files = set(record["files"]) if _texts(record["files"]) else set()
    if ROWS_FILE not in files or any(not ADAPTER_FILE.fullmatch(name) for name in files - allowed):
        return f"{ROWS_FILE} is missing or it names foreign files"
    return _identifier_problem(record["identifier"])


def _identifier_problem(tokens: Any) -> str | None:
    if not isinstance(tokens, dict) or "[V]" not in tokens:
        return "identifier must name [V]"
    if strange := [name for name in tokens if not NAME.fullmatch(name)]:
        return f"identifier names {strange[0]!r:.40}; only [V] and [S1], [S2], ... can be learned"
    if not all(type(index) is int and index >= 0 for index in tokens.values()):
        return "identifier must give ids, whole numbers from 0"
    if len(set(tokens.values())) != len(tokens):
        return "identifier gives two names one id"
    return None


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def read_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file's bytes.

    Raises:
        ValueError: damaged file, tensors of whole numbers, or NaN.
    """
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is no safetensors file ({error!s:.200})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path}: {name} holds {tensor.dtype}, not floating-point weights")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; the training diverged, use a lower lr")
    return tensors


def join_rows(path: Path, rows: Mapping[str, Tensor], names: Collection[str]) -> Tensor:
    """Return (K, D), one row per name in their order.

    Raises:
        ValueError: other names, or a row that is not (1, D).
    """
    if set(rows) != set(names):
        raise ValueError(f"{path.parent}: rows {sorted(rows)} do not match names {sorted(names)}")
    shapes = {tuple(rows[name].shape) for name in names}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != 1 for shape in shapes):
        raise ValueError(f"{path}: rows have shapes {sorted(shapes)}, expected (1, width) each")
    return torch.cat([rows[name] for name in names])
