"""Instantiate classes that the configuration names by `_target_`: Lightning's, torch's, ours or a user's.

The user's own configuration is trusted. Values from concepts, run folders or downloaded models must never be
passed to this module, because a `_target_` can execute any code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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

    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise ValueError(f"{key}={settings!r} names no class: set {key}._target_=my_package.MyClass")
    try:
        # _convert_: classes of other libraries expect plain lists and dicts, not OmegaConf containers.
        return instantiate(dict(settings), _convert_="all", **arguments)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"{key}: cannot create {settings['_target_']} ({reason}): check that Python can import the class "
            "(its folder is in PYTHONPATH) and that it accepts these arguments"
        ) from error


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
