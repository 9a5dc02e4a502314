"""The command line before Hydra sees it: `subject=cat` is understood, mistakes are told with what may be."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from personalar.compose import group_options
from personalar.targets import check_arguments

SHOW_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)

KINDS = {
    int: (r"[+-]?\d[\d_]*", "a whole number"),
    float: (r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", "a number"),
    bool: (r"true|false|yes|no|on|off|y|n|1|0", "true or false"),
}
"""How a value of each type is written, as a pattern and in words."""


def _suggest(value: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _subject_help(conf: Path) -> str:
    named = [name for name in group_options(conf, "subject") if name not in ("folder", "dreambench")]
    return (
        f"allowed: {', '.join(named)}\n"
        "  python -m personalar.run +subject=cat stage=both\n"
        "or your own photos:\n"
        "  python -m personalar.run +subject=folder subject.path=DIR subject.noun=dog"
    )


def _check_choice(conf: Path, group: str, value: str) -> None:
    if any(sign in value for sign in "(*[${'\""):  # a sweep or an interpolation is Hydra's business
        return
    options = group_options(conf, group)
    for choice in value.split(","):
        if choice in options or (choice == "null" and group == "experiment"):
            continue
        if group == "subject":
            raise ValueError(
                f"subject={choice!r} is not known{_suggest(choice, options)}\n{_subject_help(conf)}"
            )
        raise ValueError(
            f"{group}={choice!r} is not known{_suggest(choice, options)}\nallowed: {', '.join(options)}"
        )


def _inner_type(hint: Any) -> Any:
    """Strip "| None" from a type."""
    arguments = [part for part in typing.get_args(hint) if part is not type(None)]
    return arguments[0] if type(None) in typing.get_args(hint) and len(arguments) == 1 else hint


def check_key(key: str, schema: type) -> Any:
    """Return the type of the setting `key` (a.b.c) of `schema`.

    Raises:
        ValueError: there is no such setting; the allowed ones are named.
    """
    hint: Any = schema
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if typing.get_origin(hint) is dict:
            hint = _inner_type(typing.get_args(hint)[1])
            continue
        if not dataclasses.is_dataclass(hint):
            return Any
        hints = typing.get_type_hints(hint)
        if part not in hints:
            where = ".".join(parts[:depth]) or "the command"
            names = [f.name for f in dataclasses.fields(hint)]
            allowed = f"{_suggest(part, names)}\nallowed: {', '.join(names)}"
            raise ValueError(f"{key} is no setting: {where} has no {part!r}{allowed}")
        hint = hints[part] if depth == len(parts) - 1 else _inner_type(hints[part])
    return hint


def check_value(key: str, text: str, hint: Any) -> None:
    """Raise ValueError unless `text` can be a value of type `hint`; Hydra reads lists and formulas."""
    if any(sign in text for sign in "(*[${'\""):
        return
    kind, may_lack = _inner_type(hint), _inner_type(hint) is not hint
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) in (list, dict):
        if text == "null" and may_lack:
            return
        form = "a list, as [a,b]" if typing.get_origin(kind) is list else f"what it holds, as {key}.x=..."
        raise ValueError(f"{key}={text!r} is no value; allowed: {form}")
    if kind not in KINDS:
        return
    for choice in text.split(","):
        if (choice == "null" and may_lack) or re.fullmatch(KINDS[kind][0], choice.strip(), re.IGNORECASE):
            continue
        allowed = f"{KINDS[kind][1]}{', or null' if may_lack else ''}"
        raise ValueError(f"{key}={choice!r} is no value; allowed: {allowed}")


def prepare_arguments(
    arguments: Sequence[str], *, schema: type, conf: Path, needs_subject: bool
) -> list[str]:
    """Return the arguments for Hydra: `subject=NAME` becomes `+subject=NAME`.

    Args:
        schema: the dataclass of the whole configuration.
        conf: folder of the named choices.
        needs_subject: whether the command is nothing without one.

    Raises:
        ValueError: for an unknown setting, an unknown choice, or a missing subject, with what is allowed.
    """
    check_arguments(arguments)
    groups = {path.relative_to(conf).as_posix() for path in conf.rglob("*") if path.is_dir()}
    foreign_conf = any(a.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for a in arguments)
    prepared, subject_given = [], False
    for argument in arguments:
        bare = argument.lstrip("+~")
        key, equals, value = bare.partition("=")
        if not equals or argument.startswith("-") or key.startswith("hydra"):
            prepared.append(argument)
            continue
        if key in groups:
            if not foreign_conf:
                _check_choice(conf, key, value)
            subject_given |= key in ("subject", "experiment")
            # a subject is added to the defaults; an experiment replaces the default null, with or without "+"
            prepared.append({"subject": f"+{bare}", "experiment": bare}.get(key, argument))
            continue
        if "@" not in key and "/" not in key:
            check_value(key, value, check_key(key, schema))
        prepared.append(argument)
    shows_only = any(argument.split("=")[0] in SHOW_FLAGS for argument in arguments)
    given = [argument.lstrip("+~").partition("=")[0] for argument in arguments]
    if (
        not shows_only
        and "+subject=folder" in prepared
        and not {"subject.path", "subject.noun"} <= set(given)
        and "experiment" not in given
    ):
        raise ValueError(
            "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
        )
    if needs_subject and not subject_given and not shows_only:
        raise ValueError(f"no subject: say what to learn\n{_subject_help(conf)}")
    return prepared
