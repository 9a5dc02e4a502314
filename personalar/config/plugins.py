"""Objects that the configuration names by `_target_`: Lightning's, torch's, ours, or a user's own.

A configuration that a user composes is trusted. Concepts, run folders and models of others never come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def build(key: str, settings: Mapping[str, Any], **arguments: Any) -> Any:
    """Return the object that `settings` names.

    Args:
        key: the setting, for the message ("callbacks.mine").
        settings: `_target_` and its arguments.
        arguments: more of them, made at run time.

    Raises:
        ValueError: it cannot be imported, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise ValueError(f"{key}={settings!r} names no class: set {key}._target_=my_package.MyClass")
    try:
        return instantiate(dict(settings), _convert_="all", **arguments)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"{key}: {settings['_target_']} cannot be made ({reason}): give a class that Python can import "
            "(its folder in PYTHONPATH) and arguments that it takes"
        ) from error


def fill_in(settings: Any, **values: Any) -> Any:
    """Return `settings` with "{name}" replaced by the value of that name, in every text.

    A text that is one name alone becomes the value itself, with its type.
    """
    if isinstance(settings, Mapping):
        return {key: fill_in(value, **values) for key, value in settings.items()}
    if isinstance(settings, list):
        return [fill_in(value, **values) for value in settings]
    if not isinstance(settings, str):
        return settings
    for name, value in values.items():
        if settings == f"{{{name}}}":
            return value
        settings = settings.replace(f"{{{name}}}", str(value))
    return settings
