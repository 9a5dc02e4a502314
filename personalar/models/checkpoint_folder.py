"""Folders as Hugging Face writes them: json files, and safetensors in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalar.core.files import write_atomic

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a json object. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder contains base/, vq/ and protocol.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a json object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a json object, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def shard_names(folder: Path) -> list[str]:
    """Return the names of the safetensors files of `folder`, which may be missing."""
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise ValueError(f"{index} has no weight_map: copy it again")
    return sorted(set(shards.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of `folder`. Raises FileNotFoundError if one is missing."""
    files = [folder / name for name in shard_names(folder)]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {folder} needs {WEIGHTS} or all shards of {INDEX}")
    return files
