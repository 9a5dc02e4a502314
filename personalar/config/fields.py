"""Checks of single values: notation, limits of numbers, words of a list, names of keys and folders.

Limits are metadata of the dataclass fields. They are checked on the composed configuration, before anything
is loaded; what contradicts what is checked by the dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from personalar.core.files import plain_name
from personalar.core.measures import IN_SUMMARY

MANY, LARGEST_SEED = 10**9, 2**63 - 1
FOLDER_NAMES = ("model.name", "subject.name", "benchmark.name")
"""Each names a folder: outputs/MODEL/SUBJECT, outputs/BENCHMARK, sweeps/MODEL."""
LONGEST = 255
"""Bytes that a file system allows a name."""
READABLE = 60
"""Bytes of a sweep job's folder name that say what it is, before the hash."""


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
    allowed = {field.name: field.metadata["limits"] for field in declared if "limits" in field.metadata}
    for name, value in values.items():
        found = allowed.get(name, outer)
        if isinstance(value, Mapping):
            check_limits(value, node[name], f"{prefix}{name}.", found)
            continue
        for number in value if isinstance(value, list) else [value]:
            check_number(f"{prefix}{name}", number, *(found or (-math.inf, math.inf)))


def suggest(value: str, allowed: Iterable[str]) -> str:
    """Return the question after the name that is nearest to `value`; "" where none is near."""
    near = get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_setting(key: str, names: Iterable[object]) -> str:
    """Return the message about `key` (a.b.c), where its parent has `names` only."""
    parent, _, last = key.rpartition(".")
    known = [str(name) for name in names if name != "hydra"]
    allowed = f"{suggest(last, known)}\nallowed: {', '.join(known) or 'none yet'}"
    return f"unknown setting {key}: {parent or 'the command'} has no {last!r}{allowed}"


def check_keys(values: Mapping[str, Any], node: DictConfig, prefix: str = "") -> None:
    """Raise ValueError for a key that was added (+key=value) where the schema of `node` has no such field.

    Args:
        values: of `node`; interpolations may be unresolved.
    """
    schema = OmegaConf.get_type(node)
    names = [field.name for field in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else None
    for name, value in values.items():
        if names is not None and name not in names:
            raise ValueError(unknown_setting(f"{prefix}{name}", names))
        if isinstance(value, Mapping):
            check_keys(value, node[name], f"{prefix}{name}.")


def one_of(knob: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is among `allowed`."""
    if value not in allowed:
        meant = suggest(value, allowed)
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


PATHS = (
    "subject.path", "model.path", "model.vq_path", "reuse", "concept", "out", "prompts_file", "like",
    "benchmark.path", "scorer.clip", "scorer.dino",
)  # fmt: skip
"""Settings that are paths, or may be."""


def from_where_typed(cfg: DictConfig, base: Path) -> None:
    """Make relative paths absolute, from the folder `base` where the command was typed.

    Hydra has moved elsewhere by then where hydra.job.chdir=true. Names of the hub stay as they are.
    """
    with open_dict(cfg):
        for key in PATHS:
            value = OmegaConf.select(cfg, key, default=None)
            if not isinstance(value, str) or "://" in value or value.startswith("~"):
                continue
            if key == "out" or (base / value).exists():
                OmegaConf.update(cfg, key, str(base / value))


def inside(path: str) -> str:
    """Return `path` with every step upwards (..) replaced, so that it stays where it is joined to."""
    return "/".join("__" if part == ".." else part for part in str(path).split("/"))


def job_folder(overrides: str, sweep_dir: str) -> str:
    """Return the name of a sweep job's folder: a short readable part, and a hash of all its overrides.

    A folder that is named by the overrides alone, as earlier versions did, is used where it exists.

    Args:
        overrides: Hydra's `override_dirname`: "key=value,key=value".
    """
    if overrides and os.path.isdir(os.path.join(sweep_dir, inside(overrides))):  # False if it is too long
        return inside(overrides)
    words = []
    for word in overrides.split(","):
        key, equals, value = word.rpartition("=")
        words.append(re.split(r"[./]", key)[-1].lstrip("+~") + equals + value.rsplit("/", 1)[-1][:20])
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:10]
    return f"{plain_name(','.join(words), longest=READABLE, kept='=,')}-{digest}"


def check_names(values: dict[str, Any]) -> None:
    """Raise ValueError for unknown names in lists, which would fail at the very end or never."""
    if not (values.get("scorer") or {}).get("extra"):  # more measures, which are known once it is loaded
        check_measures(values.get("objective", []), IN_SUMMARY)


def check_measures(objective: Sequence[object], allowed: Sequence[str]) -> None:
    """Raise ValueError where an objective names a measure that is not `allowed`."""
    for product in objective:
        for factor in str(product).split("*"):
            one_of("objective", factor.strip(), tuple(allowed))


def parse(word: str) -> Override | None:
    """Return Hydra's reading of `key=value`; None: it cannot, or OmegaConf cannot read a ${...} in it."""
    try:
        override = OverridesParser.create().parse_override(word)
        if "${" in word and not override.is_sweep_override():
            OmegaConf.create([override.value()])
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError):
        return None  # ValueError: a number of more than 4300 digits
    return override


def key_of(word: str) -> str:
    """Return the setting that an argument names."""
    return word.lstrip("+~").partition("=")[0]


def read_word(words: Sequence[str], place: int) -> Override:
    """Return Hydra's reading of an argument. Raises ValueError, saying how to write it, where it has none."""
    word, before = words[place], words[place - 1] if place else ""
    if (override := parse(word)) is not None:
        return override
    if "=" not in word:
        spaces = f"; what has spaces needs single quotes, as '{before} {word} ...'" if "=" in before else ""
        raise ValueError(f"{word!r} is not a setting: write key=value{spaces}")
    raise ValueError(
        f"{word[:200]} could not be read: text that contains commas, brackets, braces, quotes, = "
        f"or ~ needs quotes inside those of the shell, as '{key_of(word)}=\"a, b\"', a list "
        f"'{key_of(word)}=[\"a, b\"]'"
    )
