"""Text on the command line, as Hydra's grammar takes it: paths, descriptions and prompts need no quotes.

Hydra reads `photos/a,b` as two values and `my dog (1)` as a mistake. A value that is declared as text is put
in quotes here, unless Hydra reads that very text without them, it stands in quotes already, or it is several
values of a sweep. What has been prepared once stays as it is: a process started by another reads it again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
MARKS = ("[V]", "{}")
"""How a prompt names the subject: what tells a prompt from half of one."""


@dataclass(kw_only=True)
class HydraSettings:
    """Hydra's own settings, by the name that they have on a command line."""

    hydra: HydraConf = field(default_factory=HydraConf)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parse(argument: str) -> Override | None:
    """Return what Hydra reads in `key=value`; None: it cannot, or OmegaConf cannot read a ${...} in it."""
    try:
        override = _parser().parse_override(argument)
        if "${" in argument:
            OmegaConf.create([override.value()])
    except (HydraException, OmegaConfBaseException, RecursionError):
        return None
    except ValueError:  # a number of more than 4300 digits
        return None
    return override


def quote(text: str) -> str:
    """Return `text` in quotes."""
    return QuotedString(text, Quote.double).with_quotes()


def pieces(text: str) -> list[str]:
    """Return what stands between the commas of `text`; a comma inside a quoted piece does not count."""
    found = re.findall(rf"\s*({QUOTED}|[^,]*)\s*(?:,|$)", text, re.DOTALL)
    return [piece.strip() for piece in found if piece.strip()]


def text_value(text: str, *, sweeps: bool, may_lack: bool) -> str:
    """Return the value of a text setting so that Hydra reads it as what was typed, ~ as the home folder.

    Args:
        sweeps: commas stand between the values of a sweep, but for a name that lies on the disk.
        may_lack: null is no text but the lack of one.
    """
    whole = _at_home(text)
    if sweeps and "," in whole:
        if os.path.exists(whole):
            return quote(whole)
        if not _is_text(whole, sweeps=True, may_lack=may_lack):
            return ",".join(text_value(piece, sweeps=False, may_lack=may_lack) for piece in pieces(text))
    return whole if _is_text(whole, sweeps=sweeps, may_lack=may_lack) else quote(whole)


def list_value(text: str, *, sweeps: bool, prompts: bool) -> str:
    """Return the value of a list of texts so that Hydra reads it, quotes that a shell took put back.

    Args:
        sweeps: commas outside a list stand between the values of a sweep.
        prompts: a text alone is a list of one, and quoted texts are a list without its brackets. Which commas
            part prompts may be impossible to tell, and then `text` is returned as it is.
    """
    override = parse(f"k={text}")
    if override is not None and _is_list(override, sweeps=sweeps, bare=not prompts):
        return text
    if text.startswith("["):
        end = _closing(text)
        if end is None:
            return text
        if end == len(text) - 1:
            items = pieces(text[1:-1])
            named = all(any(mark in item for mark in MARKS) for item in items)
            return text if prompts and len(items) > 1 and not named else _listed(items)
    if not prompts or re.fullmatch(r"\$\{[^}]*\}", text):
        return text
    items = pieces(text)
    if sweeps:
        return ",".join(_listed([item]) for item in items)
    return _listed(items if items and all(_is_quoted(item) for item in items) else [text])


def _at_home(text: str) -> str:
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def _is_text(text: str, *, sweeps: bool, may_lack: bool) -> bool:
    """Tell whether Hydra reads `text` as that text, the text in its quotes, or texts of a sweep."""
    override = parse(f"k={text}")
    if override is None:
        return False
    value = override.value()
    if isinstance(value, str):
        return value == text or text[0] in "\"'"
    if isinstance(value, ChoiceSweep) and value.simple_form:
        return sweeps and all(
            isinstance(item, str | QuotedString) or (item is None and may_lack) for item in value.list
        )
    return may_lack if value is None else sweeps and override.is_sweep_override()


def _is_list(override: Override, *, sweeps: bool, bare: bool) -> bool:
    """Tell whether a value is a list as it stands, lists of a sweep, or nothing; or `bare`, to be refused."""
    value = override.value()
    if isinstance(value, ChoiceSweep) and value.simple_form:
        return bare or all(isinstance(item, list) for item in value.list)
    if isinstance(value, list):
        return not any(isinstance(item, list | dict) for item in value)
    return bare or value is None or (sweeps and override.is_sweep_override())


def _closing(text: str) -> int | None:
    """Return where the bracket closes that `text` begins with; None: it does not."""
    depth = 0
    for index, sign in enumerate(text):
        depth += (sign == "[") - (sign == "]")
        if depth == 0:
            return index
    return None


def _is_quoted(text: str) -> bool:
    return re.fullmatch(QUOTED, text, re.DOTALL) is not None


def _listed(items: list[str]) -> str:
    return f"[{','.join(item if _is_quoted(item) else quote(item) for item in items)}]"
