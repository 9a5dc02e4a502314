"""Folders in the format of Hugging Face: JSON files, and weights in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from personalar.config.fields import check_number
from personalar.core import files
from personalar.core.files import write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The older format, which is read if a folder has no safetensors."""
MOST_LEVELS = 16
"""Maximum length of a list in config.json, such as the levels of an image tokenizer."""
Numbers = TypeVar("Numbers")


@dataclass(frozen=True, kw_only=True)
class PeftBase:
    """The class of transformers for a family; adapters are exported for it."""

    class_name: str
    stack: str
    """Dotted path of the decoder in that class, which is `model` in this package."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy it from the repository of the model")
    try:
        value = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} contains a {type(value).__name__}, expected a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_config(path: Path, parse: Callable[[dict[str, Any]], Numbers]) -> Numbers:
    """Return the dataclass that `parse` makes of a JSON object.

    Raises:
        ValueError: a value is missing, of a wrong type or out of range; the message names the file.
    """
    values = read_json(path)
    try:
        config = parse(values)
        check_numbers(config)
        return config
    except ValueError as error:
        text = str(error)
        named = text.replace(path.name, str(path), 1) if path.name in text else f"{path}: {text}"
        raise ValueError(named) from error
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.200}): copy it again") from error


def check_numbers(config: Any) -> None:
    """Raise ValueError for a number outside of the `limits` of its field.

    A damaged or hostile config.json could otherwise allocate all memory.

    Args:
        config: a dataclass. The limits of a tuple apply to each of its numbers.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        many = value if isinstance(value, tuple) else (value,)
        # A number instead of a list would otherwise fail somewhere in the network.
        if isinstance(field.default, tuple) != isinstance(value, tuple):
            raise ValueError(f"config.json has {field.name}={value!r:.40}; it must be like {field.default}")
        if len(many) > MOST_LEVELS:
            raise ValueError(f"config.json has {len(many)} values of {field.name}; allowed: {MOST_LEVELS}")
        for number in many if "limits" in field.metadata else ():
            low, high = field.metadata["limits"]
            kind = int if isinstance(low, int) else int | float
            # In Python a bool is an int, in JSON it is not a number.
            if isinstance(number, bool) or not isinstance(number, kind):
                raise ValueError(f"config.json has {field.name}={number!r:.40}; a number is needed")
            check_number(f"config.json: {field.name}", number, low, high)


def shard_names(folder: Path) -> list[str]:
    """Return the names of the weight files that `folder` should contain; they may be missing.

    Raises:
        ValueError: the index is damaged.
    """
    newer = (folder / INDEX).is_file() or (folder / WEIGHTS).is_file()
    index = folder / (INDEX if newer else OLD_INDEX)
    if not index.is_file():
        # Without any file, the newer name appears in the message on missing files.
        return [OLD_WEIGHTS if not newer and (folder / OLD_WEIGHTS).is_file() else WEIGHTS]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise ValueError(f"{index} has no weight_map: copy it again")
    return sorted(set(shards.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of `folder`. Raises FileNotFoundError if one is missing."""
    files = [folder / name for name in shard_names(folder)]
    for file in files:
        # The names come from a downloaded index: "../x" must not leave the folder.
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {folder} needs {WEIGHTS} or all shards of its index")
    return files
