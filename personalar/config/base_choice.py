"""Which base a concept was learned on, as arguments: who gives a command a concept need not say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from personalar.config.arguments import parse, quote
from personalar.config.compose import conf_dir, group_options
from personalar.models.loading import PARTS, is_commit


def add_base(arguments: Sequence[str], concept: str | None = None) -> list[str]:
    """Return prepared `arguments`, with the base of the concept where they choose no `model=`.

    A folder that holds no concept adds nothing: what is wrong with it is told where it is opened.

    Args:
        concept: its folder; None: what `concept=` among the arguments says.
    """
    keys = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    where = given_concept(arguments) if concept is None else concept
    if "model" in keys or where is None:
        return list(arguments)
    words = base_arguments(Path(where).expanduser())
    if {"model.path", "model.hub.repo"} & keys:
        words = words[:1]
    return [*arguments, *(word for word in words if word.partition("=")[0] not in keys)]


def given_concept(arguments: Sequence[str]) -> str | None:
    """Return what the last `concept=` says, or None without one, or with several values."""
    given = [parse(argument) for argument in arguments if argument.startswith("concept=")]
    return None if not given or given[-1] is None or given[-1].is_sweep_override() else str(given[-1].value())


def base_arguments(folder: Path) -> list[str]:
    """Return the arguments that choose the base of the concept or run in `folder`, `model=NAME` first.

    Its folder is named where it lies on this machine; that of a hub is the very commit.
    """
    record = next(filter(None, (_read(folder / "concept.json"), _read(folder / "concept/concept.json"))), {})
    name = _within(record, "base", "name")
    if name not in group_options(conf_dir(), "model"):
        return []
    words, model = [f"model={name}"], _within(record, "config", "model")
    for key in ("path", "vq_path"):
        where = _within(model, key)
        if isinstance(where, str) and Path(where).is_dir():
            words.append(f"model.{key}={quote(Path(where).absolute())}")
    for key in PARTS:
        revision = _within(model, key, "revision")
        if isinstance(revision, str) and is_commit(revision) and _within(model, "path") is None:
            words.append(f"model.{key}.revision={revision}")
    return words


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _within(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
