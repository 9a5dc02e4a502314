"""Files of prompts with options of a line after "|", and wildcards: word lists in a folder.

a photo of [V] cat in the snow
a [V] cat on the beach | seed=7 guidance=3 num_images=2
a [V] cat wearing a __colour__ hat
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from personalar.config.commands import MOST_IMAGES, VariationConfig
from personalar.config.fields import check_number, suggest

KINDS: dict[str, type] = {
    "seed": int, "num_images": int, "guidance": float, "top_k": int, "top_p": float, "temperature": float,
    "strength": float, "negative_prompt": str, "size": str,
}  # fmt: skip
"""Options of a line, and their types."""
LIMITS = {each.name: each.metadata["limits"] for each in fields(VariationConfig) if each.metadata}
LIMITS["num_images"] = (1, MOST_IMAGES)
WILDCARD = re.compile(r"__([A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*)__")


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One prompt with its own settings."""

    prompt: str
    options: dict[str, Any] = field(default_factory=dict)
    """Values by the names in `KINDS`."""


def read_prompts(path: Path) -> list[PromptLine]:
    """Read prompts from a text file: one per line; empty lines and lines that begin with # are skipped.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not UTF-8, or a line has an invalid option.
    """
    found = []
    for number, line in read_lines(path, "prompts_file"):
        try:
            found.append(parse_line(line))
        except ValueError as error:
            raise ValueError(f"prompts_file={path}, line {number}: {error}") from error
    return found


def read_lines(path: Path, setting: str) -> list[tuple[int, str]]:
    """Return (line number from 1, stripped text) of a file, without empty lines and comments.

    Args:
        path: text in UTF-8, with or without a byte-order mark.
        setting: the setting that names the file, for messages.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}={path} is not UTF-8 text ({error.reason})") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{setting}={path}: no such file") from error
    # Not splitlines(), which also splits at characters that editors do not count as line ends.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def parse_line(line: str) -> PromptLine:
    """Split a line at its last "|" into a prompt and its options.

    Raises:
        ValueError: there is no prompt, or an option is unknown, given twice or has an invalid value.
    """
    prompt, _, rest = line.rpartition("|") if "|" in line else (line, "", "")
    if not prompt.strip():
        raise ValueError("there is no prompt before the |")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"the options {rest.strip()[:60]!r} have a quote that is not closed") from error
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(
                f"{word[:60]!r} after the last | is not an option: write name=value, such as seed=7; a "
                "prompt that contains a | needs another one at its end"
            )
        if name in options:
            raise ValueError(f"the option {name} is given twice")
        options[name] = read_option(name, text)
    return PromptLine(prompt=prompt.strip(), options=options)


def read_option(name: str, text: str) -> Any:
    """Return the value of an option; raise ValueError if name or value is invalid."""
    if name not in KINDS:
        raise ValueError(f"unknown option {name[:60]!r}{suggest(name, KINDS)}; allowed: {', '.join(KINDS)}")
    try:
        value = KINDS[name](text)
    except ValueError as error:
        kind = "a whole number" if KINDS[name] is int else "a number"
        raise ValueError(f"{name}={text[:60]} must be {kind}") from error
    if name in LIMITS:
        check_number(name, value, *LIMITS[name])
    return value


def fill_wildcards(prompt: str, folder: Path | None, *, seed: int) -> str:
    """Replace every `__name__` in `prompt` by a line of `folder`/name.txt.

    The choice depends on the seed, the name, and how often the name occurred before in the prompt, so that
    different prompts with the same seed get the same words.

    Raises:
        FileNotFoundError: there is no folder, or no such file in it.
        ValueError: the file contains no line.
    """
    counts: dict[str, int] = {}

    def choose(match: re.Match[str]) -> str:
        name = match[1]
        if folder is None:
            raise FileNotFoundError(
                f"the prompt contains the wildcard {match[0]}: set wildcards=DIR, a folder with {name}.txt"
            )
        lines = [line for _, line in read_lines(folder / f"{name}.txt", f"the wildcard {match[0]}")]
        if not lines:
            raise ValueError(f"the wildcard {match[0]}={folder / f'{name}.txt'} contains no line")
        counts[name] = counts.get(name, 0) + 1
        # A hash and not a random generator, whose numbers could change with a version of Python.
        digest = hashlib.sha256(f"{seed} {name} {counts[name]}".encode()).digest()
        return lines[int.from_bytes(digest[:8], "big") % len(lines)]

    return WILDCARD.sub(choose, prompt)
