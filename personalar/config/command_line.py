"""The command line before Hydra composes it: checks with suggestions for typos, and the base of a concept.

Values are written in Hydra's own grammar; an argument that it cannot read is answered here in plain words.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalar.config.compose import (
    COMMANDS,
    GROUPS,
    conf_dir,
    group_options,
    groups_of,
    read_config,
    register,
)
from personalar.config.model_config import PARTS, is_commit
from personalar.core.errors import user_errors
from personalar.core.files import read_json

CONF_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")
LOOK_FLAGS = ("--cfg", "-c", "--info", "-i")
SHOW_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc", *LOOK_FLAGS)
VALUE_FLAGS = (*CONF_FLAGS, "--config-name", "-cn", "--package", "-p", *LOOK_FLAGS)
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
    """Return Hydra's reading of `key=value`; None: it cannot, or OmegaConf cannot read a ${...} in it."""
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


def key_of(argument: str) -> str:
    """Return the setting that an argument names."""
    return argument.lstrip("+~").partition("=")[0]


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
        if choice not in options and not (choice == "null" and group == "experiment"):
            allowed = _subject_help(conf) if group == "subject" else f"allowed: {', '.join(options)}"
            raise ValueError(f"{group}={choice!r} is not known{_suggest(choice, options)}\n{allowed}")


def _inner_type(hint: Any) -> Any:
    """Strip "| None" from a type."""
    arguments = [part for part in typing.get_args(hint) if part is not type(None)]
    return arguments[0] if type(None) in typing.get_args(hint) and len(arguments) == 1 else hint


def check_key(key: str, schema: type) -> None:
    """Raise ValueError, naming the allowed settings, where `schema` has no setting `key` (a.b.c)."""
    hint: Any = schema
    parts = key.split(".")
    for depth, part in enumerate(parts):
        hint = _inner_type(hint)
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            continue
        if not dataclasses.is_dataclass(hint):
            return
        hints = typing.get_type_hints(hint)
        if part not in hints:
            where = ".".join(parts[:depth]) or "the command"
            names = [field.name for field in dataclasses.fields(hint)]
            allowed = f"{_suggest(part, names)}\nallowed: {', '.join(names)}"
            raise ValueError(f"unknown setting {key}: {where} has no {part!r}{allowed}")
        hint = hints[part]


def check_group(group: str, schema: type) -> None:
    """Raise ValueError where the command that `schema` belongs to takes no choice of `group`."""
    own = groups_of(schema)
    if group not in own:
        owner = next(name for name, other in COMMANDS.items() if group in groups_of(other))
        takes = ", ".join(f"{name}=" for name in own)
        this = next(name for name, other in COMMANDS.items() if other is schema)
        raise ValueError(f"{group}= belongs to personalar.{owner}; personalar.{this} takes {takes}")


def check_setting(key: str, schema: type) -> None:
    """Raise ValueError for a setting that the command does not have."""
    first = key.split(".")[0]
    if first in GROUPS:
        check_group(first, schema)
    check_key(key, HydraSettings if first == "hydra" else schema)


def _check_word(argument: str, before: str) -> None:
    """Raise ValueError for a word without "=" that is neither a flag nor a deletion (~key)."""
    flag = argument.partition("=")[0]
    if argument.startswith("-"):
        if flag not in FLAGS:  # nor an abbreviation
            raise ValueError(f"unknown flag {flag}{_suggest(flag, FLAGS)}\nallowed: {', '.join(FLAGS)}")
    elif not argument.startswith("~"):
        spaces = f"; what has spaces needs single quotes, as '{before} {argument} ...'"
        raise ValueError(f"{argument!r} is not a setting: write key=value{spaces if '=' in before else ''}")


def prepare_argument(argument: str, before: str, *, schema: type, conf: Path, any_choice: bool) -> str:
    """Return `argument` for Hydra.

    A subject is added to the defaults, an experiment replaces null.

    Args:
        before: the argument before it.
        any_choice: configurations from elsewhere take part, whose choices are not known here.

    Raises:
        ValueError: Hydra could not use it; with what is allowed.
    """
    key, equals, value = argument.lstrip("+~").partition("=")
    if before in VALUE_FLAGS and not argument.startswith("-"):
        return argument
    if not equals or argument.startswith("-"):
        _check_word(argument, before)
        return argument
    if key in GROUPS or key == "experiment":
        check_group(key, schema)
        if not any_choice:
            check_choice(conf, key, value)
        bare = argument.lstrip("+~")
        argument = {"subject": f"+{bare}", "experiment": bare}.get(key, argument)
    elif "@" not in key and "/" not in key and key != "hydra":
        check_setting(key, schema)
        if key.startswith("decoder.arguments.") and argument.startswith("decoder"):
            argument = f"++{argument}"  # unknown to the schema: a decoder of others
    if parse(argument) is None:
        raise ValueError(
            f"{argument[:200]} could not be read: text that contains commas, brackets, braces, quotes, = "
            f"or ~ needs quotes inside those of the shell, as '{key}=\"a, b\"', a list '{key}=[\"a, b\"]'"
        )
    return argument


def prepare_arguments(
    arguments: Sequence[str], *, schema: type, conf: Path, needs_subject: bool
) -> list[str]:
    """Return the arguments for Hydra: `subject=NAME` becomes `+subject=NAME`.

    Args:
        schema: the dataclass of the whole configuration.
        conf: folder of the named choices.
        needs_subject: the command cannot work without one.

    Raises:
        ValueError: for an unknown setting, an unknown choice, or a missing subject, with what is allowed.
    """
    names = set(map(key_of, arguments))
    any_choice = bool(names & set(CONF_FLAGS))
    prepared = [
        prepare_argument(argument, before, schema=schema, conf=conf, any_choice=any_choice)
        for argument, before in zip(arguments, ["", *arguments], strict=False)
    ]
    if names & set(SHOW_FLAGS) or "experiment" in names:  # an experiment may choose and describe a subject
        return prepared
    if "+subject=folder" in prepared and not {"subject.path", "subject.noun"} <= names:
        raise ValueError(
            "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
        )
    if needs_subject and "subject" not in names:
        raise ValueError(f"no subject: say what to learn\n{_subject_help(conf)}")
    return prepared


def add_base(arguments: Sequence[str], concept: str | None = None) -> list[str]:
    """Return prepared `arguments`, with the base of the concept where they choose no `model=`.

    A folder without a concept adds nothing: its error comes where it is opened.

    Args:
        concept: its folder; None: the last `concept=` among the arguments.
    """
    keys = set(map(key_of, arguments))
    given = [parse(argument) for argument in arguments if argument.startswith("concept=")]
    if concept is None and given and given[-1] is not None and not given[-1].is_sweep_override():
        concept = str(given[-1].value())
    if "model" in keys or concept is None:
        return list(arguments)
    words = base_arguments(Path(concept).expanduser())
    if {"model.path", "model.hub.repo"} & keys:
        words = words[:1]
    return [*arguments, *(word for word in words if key_of(word) not in keys)]


def base_arguments(folder: Path) -> list[str]:
    """Return the arguments that choose the base of the concept or run in `folder`, `model=NAME` first.

    A base from a local folder is named by it, one from a hub by the commit.
    """
    record = _read(folder / "concept.json") or _read(folder / "concept/concept.json")
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
        return read_json(path)
    except (OSError, ValueError):
        return None


def _within(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def start(name: str, work: Callable[[Any], None]) -> None:
    """Do `work` with the typed settings of personalar.`name`; a user's mistake ends in one sentence."""
    conf = conf_dir()
    with user_errors(f"personalar.{name}"):
        arguments = prepare_arguments(sys.argv[1:], schema=COMMANDS[name], conf=conf, needs_subject=False)
        sys.argv[1:] = add_base(arguments)
    register()

    def launch(cfg: DictConfig) -> None:
        with user_errors(f"personalar.{name}"):
            work(read_config(cfg))

    hydra.main(config_path=str(conf), config_name=name, version_base="1.3")(launch)()
