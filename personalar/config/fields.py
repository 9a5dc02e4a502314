"""Checks of single values: syntax, ranges of numbers, allowed words, names of keys and folders.

Ranges are metadata of the dataclass fields. They are checked on the composed configuration, before anything
is loaded. Contradictions between settings are checked by the dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalar.core.files import plain_name

MANY, LARGEST_SEED = 10**9, 2**63 - 1  # "no upper limit" in messages; int64 of torch
MOST_SEEDS, SEED_LISTS = 10_000, ("seeds", "samples.seeds", "grid.x.seed", "grid.y.seed")
FOLDER_NAMES = ("model.name", "subject.name", "benchmark.name")
"""Settings that are used as folder names: outputs/MODEL/SUBJECT, outputs/BENCHMARK, sweeps/MODEL."""
LONGEST = 255
"""Bytes of a file name; the limit of common file systems."""
READABLE = 60
"""Bytes of the readable part of a sweep job's folder name, before the hash."""

STAGE = "model.recipe.stages.NAME"
ENDLESS = f"{STAGE}.steps (a stage is one endless epoch)"
SET_ELSEWHERE = {
    "trainer.max_steps": f"{STAGE}.steps",
    "trainer.min_steps": f"{STAGE}.steps",
    "trainer.max_epochs": ENDLESS,
    "trainer.min_epochs": ENDLESS,
    "trainer.limit_train_batches": ENDLESS,
    "trainer.overfit_batches": ENDLESS,
    "trainer.fast_dev_run": "experiment=quick",
    "trainer.max_time": f"{STAGE}.steps; `timeout -s INT 1h COMMAND` ends a run, which can be resumed",
    "trainer.accumulate_grad_batches": f"{STAGE}.accumulate",
    "trainer.gradient_clip_val": f"{STAGE}.gradient_clip",
    "trainer.val_check_interval": "samples.grid_every_steps",
    "trainer.check_val_every_n_epoch": "samples.grid_every_steps",
    "trainer.limit_val_batches": "samples.grid_every_steps (0: no sample grids)",
    "trainer.callbacks": "+callbacks.NAME._target_=my_package.MyCallback",
    "trainer.logger": "logger=tensorboard or +logger.NAME._target_=my_package.MyLogger",
    "trainer.default_root_dir": "hydra.run.dir",
}
"""Arguments of Lightning's trainer that are set by another setting -> that setting."""


def limits(low: float, high: float = MANY) -> dict[str, Any]:
    """Return field metadata with the allowed range [low, high] of a number, or of all numbers in a list."""
    return {"limits": (low, high)}


SEED = limits(0, LARGEST_SEED)


def check_number(key: str, number: object, low: float, high: float) -> None:
    """Raise ValueError if `number` is outside [low, high] or not finite; other types are ignored.

    Args:
        key: name of the setting, for the message.
        number: any value; bool is not counted as a number.
        low: smallest allowed value.
        high: largest allowed value.
    """
    # bool is a subclass of int, so it must be excluded first.
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    if not low <= number <= high or not math.isfinite(number):
        # "and more" would contradict the error of a number that is too large.
        most = " and more" if number < low and high >= MANY else f" to {high}"
        raise ValueError(f"{key}={number} is out of range; allowed: {low:g}{most}, a finite number")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError for a seed outside [0, 2**63 - 1]."""
    for seed in seeds:
        check_number("seeds", seed, *SEED["limits"])


def check_values(
    values: Mapping[str, Any], node: DictConfig, prefix: str = "", outer: Any = None, *, ranges: bool = True
) -> None:
    """Check the keys and the numbers of a configuration against its schema, recursively.

    Args:
        values: the values of `node`; interpolations may be unresolved.
        node: the configuration.
        prefix: path of `node`, such as "model.recipe.".
        outer: range for the numbers of a `dict[str, float]`, declared on the field that contains it.
        ranges: check the numbers too, and not only the keys.

    Raises:
        ValueError: a key that was added with +key=value is not a field, or a number is out of range.
    """
    schema = OmegaConf.get_type(node)
    fields = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else None
    allowed = {field.name: field.metadata.get("limits") for field in fields or ()}
    for name, value in values.items():
        if fields is not None and name not in allowed:
            raise ValueError(unknown_setting(f"{prefix}{name}", allowed))
        # The field's own range, otherwise that of the dict it is in.
        found = allowed.get(name) or outer
        if isinstance(value, Mapping):
            check_values(value, node[name], f"{prefix}{name}.", found, ranges=ranges)
        elif found and ranges:
            for number in value if isinstance(value, list) else [value]:
                check_number(f"{prefix}{name}", number, *found)


def suggest(value: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" with the most similar name, or "" if none is similar."""
    near = get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_setting(key: str, names: Iterable[object]) -> str:
    """Return the message for an unknown `key` (a.b.c) whose parent has the settings `names`."""
    if key in SET_ELSEWHERE:
        return f"{key} is set by another setting: {SET_ELSEWHERE[key]}"
    parent, _, last = key.rpartition(".")
    known = [str(name) for name in names if name != "hydra"]
    allowed = f"{suggest(last, known)}\nallowed: {', '.join(known) or 'none yet'}"
    return f"unknown setting {key}: {parent or 'the command'} has no {last!r}{allowed}"


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the setting `key` has one of the `allowed` values."""
    if value not in allowed:
        meant = suggest(value, allowed)
        raise ValueError(f"invalid value {key}={value!r}{meant}; allowed: {', '.join(allowed)}")


def check_folder_names(cfg: DictConfig) -> None:
    """Raise ValueError if one of the settings in `FOLDER_NAMES` cannot be the name of a folder."""
    for key in FOLDER_NAMES:
        name = OmegaConf.select(cfg, key)
        if name is None:
            continue
        # isprintable() is False for line breaks and control characters.
        invalid = not name.strip() or name in (".", "..") or not name.isprintable()
        # Bytes and not characters: file systems count bytes.
        if invalid or "/" in name or "\\" in name or len(name.encode()) > LONGEST:
            raise ValueError(
                f"{key}={name[:60]!r} is not a valid folder name; allowed: one line of printable characters "
                f"without / and \\, at most {LONGEST} bytes, and not . or ..; to choose another folder for a "
                "run, set hydra.run.dir=DIR"
            )


def job_folder(overrides: str) -> str:
    """Return the folder name of a sweep job: a short readable part, and a hash of all its overrides.

    Args:
        overrides: Hydra's `override_dirname`: "key=value,key=value".
    """
    # Only the last part of each key and the last component of a path, so that the name stays readable.
    words = []
    for word in overrides.split(","):
        key, equals, value = word.rpartition("=")
        words.append(re.split(r"[./]", key)[-1].lstrip("+~") + equals + value.rsplit("/", 1)[-1][:20])
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:10]
    return f"{plain_name(','.join(words), longest=READABLE, kept='=,')}-{digest}"


def check_measures(objective: Sequence[object], allowed: Sequence[str]) -> None:
    """Raise ValueError if `objective` (such as ["dino*clip_t"]) contains a measure that is not `allowed`."""
    for product in objective:
        for factor in str(product).split("*"):
            one_of("objective", factor.strip(), tuple(allowed))


def parse(word: str) -> Override | None:
    """Parse `key=value` with Hydra's grammar; return None if it, or an interpolation in it, is invalid."""
    try:
        override = OverridesParser.create().parse_override(word)
        # Hydra accepts some broken interpolations, which OmegaConf would reject much later.
        if "${" in word and not override.is_sweep_override():
            OmegaConf.create([override.value()])
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError):
        return None  # ValueError: Python refuses to convert more than 4300 digits
    return override


def key_of(word: str) -> str:
    """Return the key of an override, such as "model.name" for "+model.name=x"."""
    return word.lstrip("+~").partition("=")[0]


def with_list(word: str) -> str:
    """Return `seeds=range(0,3)` as `seeds=[0,1,2]`: Hydra reads a range as a sweep; others unchanged."""
    override = parse(word) if key_of(word) in SEED_LISTS else None
    if override is None or not override.is_range_sweep():
        return word
    numbers = list(islice(override.sweep_iterator(), MOST_SEEDS + 1))
    if len(numbers) > MOST_SEEDS:
        raise ValueError(f"{word} has more than {MOST_SEEDS} seeds: give a shorter range")
    return f"{key_of(word)}=[{','.join(map(str, numbers))}]"


HYDRA_FORM = {
    "subject=": "+subject=",
    "+experiment=": "experiment=",
    "selection.scorer=": "scorer@selection.scorer=",
}
"""Prefixes that users may type -> what Hydra needs: `subject=` is not in the defaults list, so Hydra wants
`+subject=`."""


def in_hydra_form(words: Iterable[str]) -> list[str]:
    """Return settings as Hydra needs them, see `HYDRA_FORM`."""
    found = []
    for word in words:
        prefix = next((prefix for prefix in HYDRA_FORM if word.startswith(prefix)), "")
        found.append(HYDRA_FORM.get(prefix, "") + word.removeprefix(prefix))
    return found
