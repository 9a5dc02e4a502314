"""Composition of a configuration: folder of named choices, schema of each group, the typed result."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from personalar.config.commands import (
    BenchmarkConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    SampleConfig,
)
from personalar.config.fields import check_folder_names, check_limits, inside, one_of
from personalar.config.model_config import ModelConfig
from personalar.config.recipe import RecipeConfig
from personalar.config.run_config import DecoderConfig, MethodConfig, RunConfig, StageSelection
from personalar.config.scorer_config import ScorerConfig
from personalar.config.subject_config import SubjectConfig, dreambench_class
from personalar.config.trainer_config import LoggerConfig, MemoryConfig, TrainerConfig
from personalar.core.measures import IN_SUMMARY
from personalar.core.types import STAGE_NAMES

GROUPS: dict[str, Any] = {
    "model": ModelConfig,
    "model/recipe": RecipeConfig,
    "subject": SubjectConfig,
    "stage": StageSelection,
    "method": MethodConfig,
    "decoder": DecoderConfig,
    "trainer": TrainerConfig,
    "memory": MemoryConfig,
    "logger": LoggerConfig,
    "scorer": ScorerConfig,
    "benchmark": BenchmarkConfig,
}

COMMANDS: dict[str, Any] = {
    "run": RunConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "doctor": DoctorConfig,
}
"""The configuration of each command: `python -m personalar.NAME`, conf/NAME.yaml."""


def conf_dir() -> Path:
    """Return the folder of named choices: inside the installed package, else beside it in a checkout.

    Raises:
        FileNotFoundError: when neither exists (a broken installation).
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "run.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no conf/run.yaml in {package} or {package.parent}: reinstall personalar")


def group_options(conf: Path, group: str) -> list[str]:
    """Return the named choices of a config group."""
    names = (path.relative_to(conf / group).with_suffix("") for path in (conf / group).rglob("*.yaml"))
    return sorted(
        name.as_posix() for name in names if f"{group}/{name.parent.as_posix()}" not in GROUPS
    )  # a group inside a group (model/recipe) is its own; a folder inside (experiment/paper) is not


def groups_of(schema: type) -> list[str]:
    """Return the config groups of which a command takes a choice; recipe and experiment are for learning."""
    own = set(typing.get_type_hints(schema).values())
    learns = MethodConfig in own
    groups = [group for group, kind in GROUPS.items() if kind in own or (kind is RecipeConfig and learns)]
    return [*groups, *(["experiment"] if learns else [])]


def choices(conf: Path, command: str) -> str:
    """Return one line per config group that `command` takes with its choices, for --help."""
    groups = groups_of(COMMANDS[command])
    return "\n".join(f"  {group + '=':14}{' | '.join(group_options(conf, group))}" for group in groups)


def package_path(where: str) -> Path:
    """Return the folder that `where` names: "package://x" is inside the installed package."""
    inside = where.removeprefix("package://")
    return Path(__file__).resolve().parents[1] / inside if inside != where else Path(where).expanduser()


def check_names(values: dict[str, Any]) -> None:
    """Raise ValueError for unknown names in lists, which would fail at the very end or never."""
    for name in values.get("stage", {}).get("run", []):
        one_of("stage.run", name, STAGE_NAMES[1:])
    if (values.get("scorer") or {}).get("extra"):
        return  # it declares more measures, which are known once it is loaded
    check_measures(values.get("objective", []), IN_SUMMARY)


def check_measures(objective: Sequence[object], allowed: Sequence[str]) -> None:
    """Raise ValueError where an objective names a measure that is not `allowed`."""
    for product in objective:
        for factor in str(product).split("*"):
            one_of("objective", factor.strip(), tuple(allowed))


def read_config(cfg: DictConfig) -> Any:
    """Return the typed configuration (`RunConfig` or `SampleConfig`).

    Raises:
        ValueError: when a value is missing, out of range or contradicts another.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"no value for {', '.join(missing)}: set {missing[0]}=...")
    check_folder_names(cfg)
    values = OmegaConf.to_container(cfg, resolve=True)
    check_limits(values, cfg)
    check_names(values)
    return OmegaConf.to_object(cfg)


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of personalar.`command` with `overrides`, without running it.

    Raises:
        ValueError: Hydra cannot compose it, with its reason.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register()
    outer = GlobalHydra.instance().hydra  # the caller's, where Hydra runs the program
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(command, overrides=list(overrides))
    except HydraException as error:
        reason = "" if error.__cause__ is None else f": {error.__cause__}"
        raise ValueError(f"{error}{reason}") from error
    finally:
        GlobalHydra.instance().hydra = outer  # another instance than before: Hydra makes a new one


def build(key: str, settings: Mapping[str, Any]) -> Any:
    """Return the object that a configuration names, from outside of this package too.

    Args:
        key: the setting, for the message.
        settings: `_target_` and its arguments, from the user; never from a folder that a stranger made.

    Raises:
        ValueError: it cannot be imported, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise ValueError(f"{key}={settings!r} names no class: set {key}._target_=my_package.MyClass")
    try:
        return instantiate(dict(settings), _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"{key}: {settings['_target_']} cannot be made ({reason}): give a class that Python can import "
            "(its folder in PYTHONPATH) and arguments that it takes"
        ) from error


def build_decoder(config: DecoderConfig) -> Any:
    """Return the decoder that a configuration names. Raises ValueError as `build` does."""
    return build("decoder", config.settings)


def register() -> None:
    """Register the schema of every group with Hydra, and our resolvers with OmegaConf."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for command, schema in COMMANDS.items():
        store.store(name=f"{command}_schema", node=schema)
    for group, schema in GROUPS.items():
        store.store(group=group, name=f"{group.rsplit('/')[-1]}_schema", node=schema)
    OmegaConf.register_new_resolver("choices", lambda command: choices(conf_dir(), command), replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).resolve().name if path else "folder", replace=True
    )
    OmegaConf.register_new_resolver("dreambench_class", dreambench_class, replace=True)
    OmegaConf.register_new_resolver("inside", inside, replace=True)
