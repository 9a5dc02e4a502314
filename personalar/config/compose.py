"""Compose a configuration with Hydra, validate it, and return it as typed dataclasses.

Hydra's error messages are replaced by ones that name the closest valid name and what is allowed.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, errors, open_dict
from yaml import YAMLError

from personalar.config.commands import COMMANDS, BenchmarkConfig
from personalar.config.fields import (
    check_folder_names,
    check_measures,
    check_values,
    in_hydra_form,
    job_folder,
    key_of,
    parse,
    suggest,
    unknown_setting,
    with_list,
)
from personalar.config.model_config import ModelConfig
from personalar.config.recipe import PriorConfig, RecipeConfig
from personalar.config.run_config import DecoderConfig, MethodConfig, StageSelection
from personalar.config.scorer_config import ScorerConfig
from personalar.config.subject_config import NOT_RENDERED, OWN_PHOTOS, SubjectConfig, dreambench_class
from personalar.config.trainer_config import MemoryConfig, TrainerConfig
from personalar.core.measures import IN_SUMMARY

GROUPS: dict[str, Any] = {
    "model": ModelConfig,
    "model/recipe": RecipeConfig,
    "subject": SubjectConfig,
    "stage": StageSelection,
    "method": MethodConfig,
    "prior": PriorConfig,
    "decoder": DecoderConfig,
    "trainer": TrainerConfig,
    "memory": MemoryConfig,
    "optimizer": dict,
    "scheduler": dict,
    "callbacks": dict,
    "logger": dict,
    "scorer": ScorerConfig,
    "benchmark": BenchmarkConfig,
}
"""Config group -> its schema; `dict` for groups of `_target_` and free arguments."""


def conf_dir() -> Path:
    """Return the conf/ folder: inside the package if it is installed, beside the package in a checkout.

    Raises:
        FileNotFoundError: the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "run.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no conf/run.yaml in {package} or {package.parent}: reinstall personalar")


def group_options(conf: Path, group: str) -> list[str]:
    """Return the names of the options of a config group, sorted."""
    names = []
    for path in (conf / group).rglob("*.yaml"):
        name = path.relative_to(conf / group).with_suffix("")
        # model/recipe is a group of its own; experiment/paper is only a subfolder of its group.
        if f"{group}/{name.parent.as_posix()}" not in GROUPS:
            names.append(name.as_posix())
    return sorted(names)


def groups_of(schema: type) -> list[str]:
    """Return the config groups that a command accepts; recipes and experiments only if it trains."""
    own = set(typing.get_type_hints(schema).values())
    trains = MethodConfig in own
    groups = [g for g, kind in GROUPS.items() if kind in own or (kind in (RecipeConfig, dict) and trains)]
    return [*groups, *(["experiment"] if trains else [])]


def choices(conf: Path, command: str) -> str:
    """Return the part of --help that lists the config groups of `command` and their options."""
    groups = groups_of(COMMANDS[command])
    lines = [f"  {group + '=':14}{' | '.join(group_options(conf, group))}" for group in groups]
    return "\n".join(lines) or "  (none)"


def package_path(where: str) -> Path:
    """Return the path for `where`; "package://x" is the folder x inside the installed package."""
    inside = where.removeprefix("package://")
    return Path(__file__).resolve().parents[1] / inside if inside != where else Path(where).expanduser()


def check_complete(cfg: DictConfig) -> None:
    """Raise ValueError if a required value is missing, with the setting to add."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except errors.InterpolationResolutionError as error:
        text = str(error).splitlines()[0].split(" resolving interpolation: ")[-1]
        raise ValueError(f"{error.full_key}: {text}") from error
    if "subject" in missing:
        raise ValueError(f"no subject: set subject=NAME\n{subject_help()}")
    # The dataclass cannot report this one: Hydra finds the missing noun before it is created.
    if "subject.noun" in missing and cfg.subject.kind == "folder":
        raise ValueError(OWN_PHOTOS)
    if missing:
        raise ValueError(f"no value for {', '.join(missing)}: set {missing[0]}=...")


def read_config(cfg: Any, schema: type | None = None) -> Any:
    """Validate a composed configuration and return it as dataclasses (`RunConfig`, `SampleConfig`, ...).

    Args:
        cfg: composed by Hydra.
        schema: dataclass for a configuration that was loaded without a schema (.hydra/config.yaml).

    Raises:
        ValueError: a value is missing, unknown, out of range, or contradicts another.
    """
    if schema is not None and OmegaConf.get_type(cfg) is dict:
        try:
            cfg = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        except errors.OmegaConfBaseException as error:
            raise ValueError(str(error).splitlines()[0]) from error
    check_complete(cfg)
    check_folder_names(cfg)
    # Checked on the composed values, because the dataclasses' own checks run in to_object() only.
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    check_values(values, cfg)
    # A user's scorer adds measures that are known only after it is loaded; they are checked later.
    if not (values.get("scorer") or {}).get("extra"):
        check_measures(values.get("objective", []), IN_SUMMARY)
    return OmegaConf.to_object(cfg)


def composed(
    command: str,
    words: Sequence[str],
    *,
    config_name: str | None = None,
    config_path: str | None = None,
    config_dir: str | None = None,
) -> DictConfig:
    """Compose the configuration of personalar.`command`, without running the command.

    Args:
        command: see `COMMANDS`.
        words: overrides.
        config_name, config_path, config_dir: Hydra's flags of these names.

    Raises:
        ValueError: Hydra cannot compose it; the message names the closest valid name and what is allowed.
    """
    # Not `hydra.compose`: it fails inside a Hydra job, is not safe with threads, and has no --config-dir.
    version.setbase("1.3")
    setup_globals()
    words = [with_list(word) for word in (in_hydra_form(words) if config_name is None else words)]
    path = create_config_search_path(config_path or str(conf_dir()))
    if config_dir is not None:
        folder = f"file://{Path(config_dir).absolute()}"
        path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    try:
        cfg = ConfigLoaderImpl(path).load_configuration(config_name or command, words, RunMode.RUN)
    except (HydraException, errors.OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ValueError(explain(error, command, words)) from error
    except (AssertionError, AttributeError) as error:  # of OmegaConf
        nested = ", ".join(key for key in map(key_of, words) if "." in key)
        raise ValueError(
            f"a setting below one that is null cannot be set (one of {nested}): leave it out, or choose an "
            "option of its group that has it"
        ) from error
    with open_dict(cfg):
        del cfg["hydra"]  # Hydra's own settings are not part of our schemas
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    # A number that is out of range ends its own job of a sweep, not the others.
    check_values(values, cfg, ranges=False)
    return cfg


def explain(error: Exception, command: str, words: Sequence[str]) -> str:
    """Translate an error of Hydra about `words`: name the closest valid name and what is allowed."""
    wrong = next((word for word in words if parse(word) is None), None)
    if wrong is not None and "=" not in wrong:
        return f"{wrong!r} is not a setting: write key=value; with spaces in the value: 'key=one two'"
    if wrong is not None:
        return (
            f"cannot parse {wrong[:200]}: text with commas, brackets, braces, quotes, = or ~ needs double "
            f"quotes inside the shell's single quotes: '{key_of(wrong)}=\"a, b\"', or as a list "
            f"'{key_of(wrong)}=[\"a, b\"]'"
        )
    # Hydra has no error classes for these cases (no such group, or a setting of its name): match its texts.
    text, cause = str(error), error.__cause__ or error.__context__
    if isinstance(error, MissingConfigException) and error.options:
        return unknown_choice(error)
    group = re.match(r"Could not override '([\w/]+)'\. No match in the defaults|In '(\w+)/\2_schema'", text)
    unknown = cause if isinstance(cause, errors.ConfigKeyError | errors.ConfigAttributeError) else None
    key = (group[1] or group[2]) if group else str(unknown.full_key) if unknown else ""
    own = groups_of(COMMANDS[command])
    for name, schema in COMMANDS.items():
        if key.split(".")[0] not in own and key.split(".")[0] in groups_of(schema):
            accepted = ", ".join(f"{each}=" for each in own)
            return f"{key.split('.')[0]}= is for personalar.{name}; personalar.{command} accepts {accepted}"
    if unknown:
        free = re.search(r"Dict\[str, (Any|float)\]", str(unknown))
        return unknown_setting(key, unknown.parent_node) + (f"; to add it write +{key}=..." if free else "")
    if isinstance(error.__cause__, errors.OmegaConfBaseException):
        return f"{text}: {str(error.__cause__).splitlines()[0]}"
    return text


def unknown_choice(error: MissingConfigException) -> str:
    """Return the message for an option that does not exist in its group."""
    group = re.findall(r"Available options in '(.+)'|$", str(error))[0]
    value = str(error.missing_cfg_file).removeprefix(f"{group}/")
    options = {*(error.options or ()), *group_options(conf_dir(), group)}
    named = sorted(name for name in options if not name.endswith("_schema"))
    allowed = subject_help(named) if group == "subject" else f"allowed: {', '.join(named)}"
    return f"unknown option {group}={value!r}{suggest(value, named)}\n{allowed}"


def subject_help(options: Iterable[str] = ()) -> str:
    """Return the list of rendered subjects, and how to use your own photos."""
    named = [name for name in options or group_options(conf_dir(), "subject") if name not in NOT_RENDERED]
    return (
        f"allowed: {', '.join(named)}\n"
        "  python -m personalar.run +subject=cat stage=both\n"
        "or your own photos:\n"
        "  python -m personalar.run +subject=folder subject.path=DIR subject.noun=dog\n"
        "or the style of your own pictures:\n"
        "  python -m personalar.run +subject=style subject.path=DIR"
    )


def _same_store(memo: dict[int, Any]) -> ConfigStore:
    """Return Hydra's store in place of a copy."""
    return ConfigStore.instance()


def register() -> None:
    """Register the schema of every group with Hydra, and our resolvers with OmegaConf."""
    store = ConfigStore.instance()
    # Hydra copies its sources with the whole store for every composition, and 140 times for --help. The store
    # can be shared, because `ConfigStore.load` copies what it returns.
    vars(store)["__deepcopy__"] = _same_store
    for command, schema in COMMANDS.items():
        store.store(name=f"{command}_schema", node=schema)
    for group, schema in GROUPS.items():
        if schema is dict:
            continue
        store.store(group=group, name=f"{group.rsplit('/')[-1]}_schema", node=schema)
    OmegaConf.register_new_resolver("choices", lambda command: choices(conf_dir(), command), replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).resolve().name if path else "folder", replace=True
    )
    OmegaConf.register_new_resolver("dreambench_class", dreambench_class, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


# Here, so that it is also done in a launcher's process, which imports the module of the job.
register()
