"""Checks of single values: limits of numbers, words of a list, names of folders.

Limits are metadata of the dataclass fields. They are checked on the composed configuration, before anything
is loaded; what contradicts what is checked by the dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf

MANY, LARGEST_SEED = 10**9, 2**63 - 1
FOLDER_NAMES = ("model.name", "subject.name", "benchmark.name")
"""Each names a folder: outputs/MODEL/SUBJECT, outputs/BENCHMARK, sweeps/MODEL."""
LONGEST = 255
"""Bytes that a file system allows a name."""


def limits(low: float, high: float = MANY) -> dict[str, Any]:
    """Return metadata of a field: the smallest and largest value of its number, or of all its numbers."""
    return {"limits": (low, high)}


SEED = limits(0, LARGEST_SEED)


def check_number(knob: str, number: object, low: float, high: float) -> None:
    """Raise ValueError, naming the knob and what is allowed, for a number out of range or not finite."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    if not low <= number <= high or not math.isfinite(number):
        most = f" to {high:g}" if high < MANY else " and more"
        raise ValueError(f"{knob}={number} is out of range; allowed: {low:g}{most}, a finite number")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError for a seed out of range."""
    for seed in seeds:
        check_number("seeds", seed, *SEED["limits"])


def check_limits(values: Mapping[str, Any], node: DictConfig, prefix: str = "", outer: Any = None) -> None:
    """Check every number of a configuration.

    Args:
        values: of `node`, resolved.
        outer: limits of the field that holds `node`, where it is a dict of numbers.

    Raises:
        ValueError: a number is out of range, with its knob and what is allowed.
    """
    schema = OmegaConf.get_type(node)
    declared = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
    metadata = {field.name: field.metadata for field in declared}
    for name, value in values.items():
        found = metadata.get(name, {}).get("limits", outer)
        if isinstance(value, Mapping):
            check_limits(value, node[name], f"{prefix}{name}.", found)
            continue
        for number in value if isinstance(value, list) else [value]:
            check_number(f"{prefix}{name}", number, *(found or (-math.inf, math.inf)))


def one_of(knob: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is among `allowed`."""
    if value not in allowed:
        near = get_close_matches(str(value), allowed, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{knob}={value!r} is not known{meant}; allowed: {', '.join(allowed)}")


def check_folder_names(cfg: DictConfig) -> None:
    """Raise ValueError where one of `FOLDER_NAMES` is more than the name of one folder."""
    for knob in FOLDER_NAMES:
        name = OmegaConf.select(cfg, knob)
        if name is None:
            continue
        strange = not name.strip() or name in (".", "..") or not name.isprintable()
        if strange or "/" in name or "\\" in name or len(name.encode()) > LONGEST:
            raise ValueError(
                f"{knob}={name[:60]!r} is not the name of one folder; allowed: printable characters on one "
                f"line without / and \\, at most {LONGEST} bytes, and not . or ..; a run is put elsewhere "
                "with hydra.run.dir=DIR"
            )


def inside(path: str) -> str:
    """Return `path` with every step upwards (..) replaced, so that it stays where it is joined to."""
    return "/".join("__" if part == ".." else part for part in str(path).split("/"))
