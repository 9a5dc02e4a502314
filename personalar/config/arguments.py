"""The command line before Hydra sees it: `subject=cat` is understood, mistakes are told with what may be.

Values are written in Hydra's own grammar; an argument that it cannot read is answered here in plain words.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalar.config.compose import COMMANDS, GROUPS, group_options, groups_of

SHOW_FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc",
)  # fmt: skip
CONF_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")
VALUE_FLAGS = (*CONF_FLAGS, "--config-name", "-cn", "--package", "-p", "--cfg", "-c", "--info", "-i")
"""Flags whose value may be the next word."""
FLAGS = dict.fromkeys([*SHOW_FLAGS, *VALUE_FLAGS, "--multirun", "-m", "--resolve", "--run", "-r"])


@dataclasses.dataclass(kw_only=True)
class HydraSettings:
    """Hydra's own settings, by the name that they have on a command line."""

    hydra: HydraConf = dataclasses.field(default_factory=HydraConf)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parse(argument: str) -> Override | None:
    """Return what Hydra reads in `key=value`; None: it cannot, or OmegaConf cannot read a ${...} in it."""
    try:
        override = _parser().parse_override(argument)
        if "${" in argument:
            OmegaConf.create([override.value()])
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError):
        return None  # ValueError: a number of more than 4300 digits
    return override


def quote(value: object) -> str:
    """Return `value` as a text in quotes, which Hydra reads back whatever signs it contains."""
    return QuotedString(str(value), Quote.double).with_quotes()


def as_value(text: str) -> str:
    """Return `text` so that Hydra reads it back: in quotes only where it needs them."""
    override = parse(f"k={text}")
    same = override is not None and not override.is_sweep_override() and override.value() == text
    return text if same else quote(text)


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


def check_group(group: str, schema: type) -> None:
    """Raise ValueError where the command that `schema` belongs to takes no choice of `group`."""
    own = groups_of(schema)
    if group not in own:
        owner = next(name for name, other in COMMANDS.items() if group in groups_of(other))
        takes = ", ".join(f"{name}=" for name in own)
        this = next(name for name, other in COMMANDS.items() if other is schema)
        raise ValueError(f"{group}= belongs to personalar.{owner}; personalar.{this} takes {takes}")


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
            argument = self.choice(argument, key, value)
        elif "@" not in key and "/" not in key and key != "hydra":
            self.check_setting(key)
            if key.startswith("decoder.arguments.") and argument.startswith("decoder"):
                argument = f"++{argument}"  # unknown to the schema: a decoder of others
        if parse(argument) is None:
            raise ValueError(
                f"{argument[:200]} could not be read: text that contains commas, brackets, braces, quotes, = "
                f"or ~ needs quotes inside those of the shell, as '{key}=\"a, b\"', a list '{key}=[\"a, b\"]'"
            )
        return argument

    def choice(self, argument: str, group: str, value: str) -> str:
        """Return a choice of a group; a subject is added to the defaults, an experiment replaces null."""
        check_group(group, self.schema)
        if not self.foreign:
            check_choice(self.conf, group, value)
        bare = argument.lstrip("+~")
        return {"subject": f"+{bare}", "experiment": bare}.get(group, argument)

    def check_setting(self, key: str) -> None:
        """Raise ValueError for a setting that the command does not have."""
        first = key.split(".")[0]
        if first in GROUPS:
            check_group(first, self.schema)
        check_key(key, HydraSettings if first == "hydra" else self.schema)


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
    names = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    line = CommandLine(
        schema=schema,
        conf=conf,
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
