"""The command line before Hydra sees it: `subject=cat` is understood, mistakes are told with what may be.

Free text needs no quotes (`quoting.py`); what Hydra's grammar still cannot read is answered here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from personalar.config.compose import COMMANDS, GROUPS, group_options, groups_of
from personalar.config.quoting import HydraSettings, list_value, parse, text_value

SHOW_FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc",
)  # fmt: skip
CONF_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")
VALUE_FLAGS = (*CONF_FLAGS, "--config-name", "-cn", "--package", "-p", "--cfg", "-c", "--info", "-i")
"""Flags whose value may be the next word."""
SWEEP_FLAGS = ("--multirun", "-m")
FLAGS = dict.fromkeys([*SHOW_FLAGS, *VALUE_FLAGS, *SWEEP_FLAGS, "--resolve", "--run", "-r"])

EXAMPLES = {
    "prompts": '["a photo of [V] cat in the snow"]',
    "samples.prompts": '["a photo of a {} in the snow"]',
}
"""Lists of prompts, which may be one prompt without brackets and quotes."""
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


def check_choice(conf: Path, group: str, value: str) -> None:
    """Raise ValueError unless `value` names a choice of `group`, or several with commas between them."""
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


def _form(key: str, hint: Any) -> str:
    """Return in words how a value of type `hint` is written."""
    kind, may_lack = _inner_type(hint), _inner_type(hint) is not hint
    if kind in KINDS:
        return f"{KINDS[kind][1]}{', or null' if may_lack else ''}"
    if typing.get_origin(kind) is list:
        return "a list, as [a,b]"
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return f"what it holds, as {key}.x=..."
    return f"a word, or text in two pairs of quotes, as '{key}=\"...\"'"


def check_value(key: str, text: str, hint: Any) -> None:
    """Raise ValueError unless `text` can be a value of type `hint`; Hydra reads lists and formulas."""
    if any(sign in text for sign in "(*[${'\""):
        return
    kind, may_lack = _inner_type(hint), _inner_type(hint) is not hint
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) in (list, dict):
        if text == "null" and may_lack:
            return
        raise ValueError(f"{key}={text!r} is no value; allowed: {_form(key, hint)}")
    if kind not in KINDS:
        return
    for choice in text.split(","):
        if (choice == "null" and may_lack) or re.fullmatch(KINDS[kind][0], choice.strip(), re.IGNORECASE):
            continue
        raise ValueError(f"{key}={choice!r} is no value; allowed: {_form(key, hint)}")


def check_group(group: str, schema: type) -> None:
    """Raise ValueError where the command that `schema` belongs to takes no choice of `group`."""
    own = groups_of(schema)
    if group not in own:
        owner = next(name for name, other in COMMANDS.items() if group in groups_of(other))
        takes = ", ".join(f"{name}=" for name in own)
        raise ValueError(f"{group}= belongs to personalar.{owner}; {_command(schema)} takes {takes}")


def _command(schema: type) -> str:
    return next(f"personalar.{name}" for name, other in COMMANDS.items() if other is schema)


def _word(argument: str, before: str) -> str:
    """Return a flag or a deletion (~key). Raises ValueError for another word without "="."""
    flag = argument.partition("=")[0]
    if argument.startswith("-"):
        if flag not in FLAGS:  # nor an abbreviation
            raise ValueError(f"{flag} is no flag{_suggest(flag, FLAGS)}\nallowed: {', '.join(FLAGS)}")
    elif not argument.startswith("~"):
        whole = (
            f"; what has spaces needs single quotes, as '{before} {argument} ...'" if "=" in before else ""
        )
        raise ValueError(f"{argument!r} is no setting: write key=value{whole}")
    return argument


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What is known of a command line when one of its arguments is read."""

    schema: type
    conf: Path
    sweeps: bool
    """Several values are several runs (-m)."""
    foreign: bool
    """Configurations from elsewhere take part, with choices that are not known here."""

    def read(self, argument: str, before: str) -> str:
        """Return `argument` for Hydra; `before` is the one before it.

        Raises:
            ValueError: Hydra could not use it; with what is allowed.
        """
        key, equals, value = argument.lstrip("+~").partition("=")
        if before in VALUE_FLAGS and not argument.startswith("-"):
            return argument
        if not equals or argument.startswith("-"):
            return _word(argument, before)
        if key in GROUPS or key == "experiment":
            return self.choice(argument, key, value)
        if "@" in key or "/" in key or key == "hydra":
            return self.checked(argument, "allowed: group=option")
        return self.setting(argument, key, value)

    def choice(self, argument: str, group: str, value: str) -> str:
        """Return a choice of a group; a subject is added to the defaults, an experiment replaces null."""
        check_group(group, self.schema)
        if not self.foreign:
            check_choice(self.conf, group, value)
        bare = argument.lstrip("+~")
        prepared = {"subject": f"+{bare}", "experiment": bare}.get(group, argument)
        return self.checked(prepared, f"allowed: {', '.join(group_options(self.conf, group))}")

    def setting(self, argument: str, key: str, value: str) -> str:
        """Return a setting, its text in quotes where Hydra needs them."""
        hydras, first = key.startswith("hydra."), key.split(".")[0]
        if first in GROUPS:
            check_group(first, self.schema)
        hint = check_key(key, HydraSettings if hydras else self.schema)
        kind, may_lack = _inner_type(hint), _inner_type(hint) is not hint
        how = f"allowed: {_form(key, hint)}"
        if kind is str:
            value = text_value(value, sweeps=self.sweeps, may_lack=may_lack)
        elif typing.get_origin(kind) is list and typing.get_args(kind) == (str,):
            value = list_value(value, sweeps=self.sweeps, prompts=key in EXAMPLES)
        if key in EXAMPLES:
            how = f"put the whole setting in single quotes, as '{key}={EXAMPLES[key]}'"
        if kind is str or "${" in value:
            how = "${ begins a reference to another setting, as ${model.name}; \\${ are the signs themselves"
        if not hydras:
            check_value(key, value, hint)
        return self.checked(f"{argument.partition(key)[0]}{key}={value}", how, typed=argument)

    def checked(self, argument: str, how: str, *, typed: str | None = None) -> str:
        """Return `argument` if Hydra can read it. Raises ValueError that says `how` it is written."""
        override, shown = parse(argument), (typed or argument).lstrip("+~")[:200]
        if override is None:
            raise ValueError(f"{shown} could not be read: {how}")
        if override.is_sweep_override() and not self.sweeps and not self.foreign:
            command = _command(self.schema)
            raise ValueError(f"{shown} is several values: give one, or run each with python -m {command} -m")
        return argument


def prepare_arguments(
    arguments: Sequence[str], *, schema: type, conf: Path, needs_subject: bool
) -> list[str]:
    """Return the arguments for Hydra: `subject=NAME` becomes `+subject=NAME`, free text gets its quotes.

    Args:
        schema: the dataclass of the whole configuration.
        conf: folder of the named choices.
        needs_subject: whether the command is nothing without one.

    Raises:
        ValueError: for an unknown setting, an unknown choice, or a missing subject, with what is allowed.
    """
    names = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    line = CommandLine(
        schema=schema,
        conf=conf,
        sweeps=bool(names & set(SWEEP_FLAGS)) or "hydra.mode=MULTIRUN" in arguments,
        foreign=bool(names & set(CONF_FLAGS)),
    )
    before = ["", *arguments[:-1]]
    prepared = [line.read(argument, last) for argument, last in zip(arguments, before, strict=False)]
    if not names & set(SHOW_FLAGS):
        _check_subject(prepared, names, conf, needs_subject=needs_subject)
    return prepared


def _check_subject(prepared: list[str], names: set[str], conf: Path, *, needs_subject: bool) -> None:
    """Raise ValueError where the subject lacks, or what a folder of photos needs."""
    if "experiment" in names:
        return  # it may choose and describe one
    if "+subject=folder" in prepared and not {"subject.path", "subject.noun"} <= names:
        raise ValueError(
            "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
        )
    if needs_subject and "subject" not in names:
        raise ValueError(f"no subject: say what to learn\n{_subject_help(conf)}")
