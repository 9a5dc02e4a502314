"""The settings of a measurement, told apart from those of what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def split_own(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return ("key=value" words whose key is in `defaults`, over those, as a dict; all other words)."""
    own, rest = dict(defaults), []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(argument)
    return own, rest
