"""Check the command line before Hydra runs, with suggestions for typos.

The configuration is composed once in advance, so that a mistake is reported before anything is loaded or
written. The message names the closest valid name and what is allowed.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Glob, IntervalSweep, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from personalar.config.compose import (
    COMMANDS,
    check_complete,
    composed,
    conf_dir,
    group_options,
    read_config,
)
from personalar.config.fields import in_hydra_form, parse, suggest, with_list
from personalar.core.errors import user_errors
from personalar.core.run_folder import flatten


def quote(value: object) -> str:
    """Return `value` in double quotes, escaped so that Hydra's grammar reads back the same text."""
    return QuotedString(str(value), Quote.double).with_quotes()


def as_value(text: str) -> str:
    """Return `text` such that Hydra reads back the same text, in quotes only if they are necessary."""
    override = parse(f"k={text}")
    # Parse it as a test: quotes are needed if the grammar would read something else.
    same = override is not None and not override.is_sweep_override() and override.value() == text
    return text if same else quote(text)


def read_flags(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Parse a command line with Hydra's parser; flags may be in any position.

    Returns:
        The parsed arguments, and the words of the flags.

    Raises:
        ValueError: a flag is unknown.
    """
    # Hydra's own main() does not allow flags between overrides; parse_known_intermixed_args() does.
    parser = get_args_parser()
    args, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        meant = suggest(unknown[0].partition("=")[0], flags)
        raise ValueError(f"unknown flag {unknown[0]}{meant}\nallowed: {', '.join(flags)}")
    return args, [word for word in words if word not in args.overrides]


def prepare(command: str, words: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra: overrides (with "+subject="), then flags.

    Args:
        command: such as "run"; see `COMMANDS`.
        words: the arguments as typed.

    Raises:
        ValueError: Hydra cannot compose them, or a required value is missing.
    """
    args, flags = read_flags(words)
    # Hydra completes unfinished words, which must not be checked.
    if args.shell_completion:
        return list(words)
    overrides = args.overrides if args.config_name else in_hydra_form(args.overrides)
    if args.multirun and (args.cfg or args.info):
        flag = "--cfg" if args.cfg else "--info"
        raise ValueError(f"{flag} shows the configuration of one run: leave out -m and give single values")
    if args.multirun and args.help:  # Hydra composes it as for one run
        read = [(word, parse(word)) for word in overrides]
        overrides = [word for word, override in read if not (override and override.is_sweep_override())]
    if not args.multirun:
        overrides = [with_list(word) for word in overrides]
    # Hydra would resolve a relative path from the package's folder instead of the working directory.
    if args.config_path and "://" not in args.config_path:
        args.config_path = os.path.abspath(args.config_path)
        flags += ["--config-path", args.config_path]
    places = {name: getattr(args, name) for name in ("config_name", "config_path", "config_dir")}
    sweeps = args.multirun or "hydra.mode=MULTIRUN" in overrides
    first, *others = jobs_to_check(overrides) if sweeps else [overrides]
    cfg = composed(command, first, **places)
    for job in others:
        composed(command, job, **places)
    # A saved configuration has no schema and no `hydra:` section.
    if OmegaConf.get_type(cfg) is dict:
        overrides = [*hydra_part(command), *overrides]
    # --help and --cfg must also work without the required values.
    if not (args.help or args.hydra_help or args.cfg or args.info):
        check_complete(cfg)
    return [*overrides, *flags]


def jobs_to_check(words: Sequence[str]) -> list[list[str]]:
    """Return the overrides of those jobs of a sweep that are composed in advance.

    The first job, and one for each swept option of a group that is not among ours, and so may not exist.
    """
    first, others = list(words), []
    for place, word in enumerate(words):
        override = parse(word)
        if override is None or not override.is_sweep_override():
            continue
        key, value = override.get_key_element(), override.value()
        ours = group_options(conf_dir(), override.key_or_group)  # empty if the key is no group
        if isinstance(value, IntervalSweep):
            values = iter([str(value.start)])
        elif isinstance(value, Glob):  # which matches only options that exist
            values = iter(value.filter(ours)[:1] or ours[:1])
        else:
            values = override.sweep_string_iterator()
        first[place] = f"{key}={next(values, None)}"
        if ours:
            others += [(place, f"{key}={option}") for option in values if option not in ours]
    return [first, *([*first[:place], other, *first[place + 1 :]] for place, other in others)]


def hydra_part(command: str) -> list[str]:
    """Return the `hydra:` section of conf/COMMAND.yaml as overrides, for a saved config, which has none."""
    own: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{command}.yaml").hydra, resolve=False)
    own.pop("help")
    settings = {key: "null" if value is None else quote(value) for key, value in flatten(own).items()}
    return ["hydra/job_logging=stdout", *(f"++hydra.{key}={value}" for key, value in settings.items())]


def start(command: str, work: Callable[[Any], object]) -> None:
    """Run `work` with the typed settings of personalar.`command`; print user errors without a traceback."""

    def launch_typed(cfg: DictConfig) -> None:
        with user_errors(f"personalar.{command}"):
            work(read_config(cfg, COMMANDS[command]))

    launch(command, launch_typed)


def launch(command: str, job: Callable[[DictConfig], Any]) -> None:
    """Compose the configuration of personalar.`command` with Hydra, and call `job` with it."""
    with user_errors(f"personalar.{command}"):
        # hydra.main() reads sys.argv. User errors have been reported when it composes again.
        sys.argv[1:] = prepare(command, sys.argv[1:])
    # These log every request with its address, which can be a signed one that grants access.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hydra.main(config_path=str(conf_dir()), config_name=command, version_base="1.3")(job)()
