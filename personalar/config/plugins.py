"""Instantiate classes that the configuration names by `_target_`: Lightning's, torch's, ours or a user's.

The user's own configuration is trusted. Values from concepts, run folders or downloaded models must never be
passed to this module, because a `_target_` can execute any code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personalar.config.run_config import RunConfig


def check_names_class(key: str, settings: Any) -> None:
    """Raise ValueError unless the value of the setting `key` is a mapping with a `_target_`."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("_target_"), str):
        raise ValueError(f"{key}={settings!r} names no class: set {key}._target_=my_package.MyClass")


def check_classes(config: RunConfig) -> None:
    """Import the classes that training needs. Raises ValueError for an entry without one, or a wrong one."""
    named: dict[str, Any] = {"optimizer": config.optimizer, "scheduler": config.scheduler}
    adapters = {f"method.stages.{name}.adapters": s.adapters for name, s in config.method.stages.items()}
    for group, chosen in {"callbacks": config.callbacks, "logger": config.logger, **adapters}.items():
        named |= {f"{group}.{name}": value for name, value in chosen.items() if value is not None}
    for key, settings in named.items():
        check_names_class(key, settings)
        target = settings["_target_"]
        if target.startswith("bitsandbytes."):  # `memory_fit.check_machine` says how to install it
            continue
        try:
            found = resolve_name(target)
            if key.startswith(("callbacks.", "logger.")):
                _check_arguments(found, settings)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(_cannot_create(key, target, error)) from error


def _check_arguments(found: Any, settings: Mapping[str, Any]) -> None:
    """Raise TypeError if an argument is missing or unknown, before the base is loaded."""
    if settings.keys() & {"_args_", "_partial_"}:
        return
    try:
        signature = inspect.signature(found)
    except ValueError:  # some classes written in C have none
        return
    signature.bind(**{name: value for name, value in settings.items() if not name.startswith("_")})


def _cannot_create(key: str, target: str, error: BaseException) -> str:
    return (
        f"{key}: cannot create {target} ({' '.join(str(error).split())[:300]}): check that Python can import "
        "the class (its folder is in PYTHONPATH) and that it accepts these arguments"
    )


def build(key: str, settings: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate the class in `settings`.

    Args:
        key: name of the setting for error messages, such as "callbacks.mine".
        settings: `_target_` and its arguments.
        arguments: further arguments that exist at run time only.

    Raises:
        ValueError: the class cannot be imported, or raises an error for its arguments.
    """
    # Deferred: concepts are also read without Hydra.
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_names_class(key, settings)
    try:
        # _convert_: classes of other libraries expect plain lists and dicts, not OmegaConf containers.
        return instantiate(dict(settings), _convert_="all", **arguments)
    except InstantiationException as error:
        raise ValueError(_cannot_create(key, settings["_target_"], error.__cause__ or error)) from error


def fill_in(settings: Any, **values: Any) -> Any:
    """Return `settings` with "{name}" replaced by `values[name]` in every string, recursively.

    A string that is exactly "{name}" becomes the value itself with its type, for example an int.
    """
    if isinstance(settings, Mapping):
        return {key: fill_in(value, **values) for key, value in settings.items()}
    if isinstance(settings, list):
        return [fill_in(value, **values) for value in settings]
    if not isinstance(settings, str):
        return settings
    for name, value in values.items():
        # Exactly the placeholder: keep the type, because a scheduler needs steps as int.
        if settings == f"{{{name}}}":
            return value
        settings = settings.replace(f"{{{name}}}", str(value))
    return settings
