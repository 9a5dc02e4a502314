"""The commands that the screens start, as words of a command line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from personalar.config.command_line import as_value, quote
from personalar.config.commands import VariationConfig

MOST_PICTURES = 400
AXES = [setting.name for setting in fields(VariationConfig)]
"""Settings that a grid can vary."""


def run_command(
    subject: Sequence[str], folder: Path, *, model: str, method: str, quick: bool, more: str = ""
) -> list[str]:
    """Return the command of a run.

    Args:
        subject: the settings that select the subject.
        quick: add experiment=quick.
        more: further settings as typed by the user.

    Raises:
        ValueError: `more` is not a list of settings.
    """
    settings = shlex.split(more)
    for word in settings:
        if word.startswith("-") or "=" not in word:
            raise ValueError(f"{word!r:.80} is not a setting: write key=value, as seed=1")
    chosen = [f"model={model}", f"method={method}", *(["experiment=quick"] if quick else [])]
    where = f"hydra.run.dir={as_value(str(folder))}"
    return ["python", "-m", "personalar.run", *subject, *chosen, *settings, where]


def sample_command(
    concept: Path,
    out: Path,
    *,
    prompts: str,
    seeds: str,
    guidance: str = "",
    strength: float = 1.0,
    axes: Mapping[str, tuple[str, str]] | None = None,
) -> list[str]:
    """Return the command that samples new pictures with `concept` and writes them to `out`.

    Args:
        prompts: one per line.
        seeds: whole numbers, separated by spaces or commas.
        guidance: a number; empty for the default of the base.
        axes: of a grid: "x" or "y" -> one of `AXES`, and its values, separated by spaces, commas or line
            breaks (negative prompts: one per line); prompts and seeds are those above.

    Raises:
        ValueError: invalid prompts or seeds, twice the same axis, or more than `MOST_PICTURES` pictures.
    """
    asked, numbers = lines_of(prompts), separated(seeds)
    if not asked or not numbers or not all(number.isdecimal() for number in numbers):
        raise ValueError("write at least one prompt, and seeds as whole numbers: 0 1 2")
    keys = {"prompt": "prompts", "seed": "seeds"}
    values = {"prompt": asked, "seed": [str(int(number)) for number in numbers]}
    axes = axes or {}
    names = [name for name, _ in axes.values()]
    if len(set(names)) < len(names):
        raise ValueError(f"columns and rows both vary {names[0]}: choose two settings")
    for axis, (name, text) in axes.items():
        keys[name] = f"grid.{axis}.{name}"
        values.setdefault(name, values_of(name, text))
    count = math.prod(map(len, values.values()))
    if count > MOST_PICTURES:
        raise ValueError(f"{count} pictures; allowed: {MOST_PICTURES} at a time")
    words = [f"concept={as_value(str(concept))}", f"out={as_value(str(out))}", f"strength={strength}"]
    if guidance.strip():
        words.append(f"model.sampling.cfg_scale={as_value(guidance.strip())}")
    words += [f"{keys[name]}=[{','.join(found)}]" for name, found in values.items()]
    return ["python", "-m", "personalar.sample", *words]


def separated(text: str) -> list[str]:
    """Return the parts of `text` between spaces, commas and line breaks."""
    return text.replace(",", " ").split()


def lines_of(text: str) -> list[str]:
    """Return the lines of `text` that are not empty as texts for Hydra."""
    return [quote(line.strip()) for line in text.splitlines() if line.strip()]


def values_of(name: str, text: str) -> list[str]:
    """Return the values of a setting as Hydra reads them."""
    if name == "negative_prompt":
        return lines_of(text)
    return [as_value(value) for value in separated(text)]


def push_command(concept: Path, repo: str, *, private: bool, dry_run: bool) -> list[str]:
    """Return the command that uploads a concept to the hub, or with `dry_run` shows what it would upload."""
    words = [f"concept={as_value(str(concept))}", f"repo={as_value(repo.strip())}"]
    words += [f"private={str(private).lower()}", f"dry_run={str(dry_run).lower()}"]
    return ["python", "-m", "personalar.push", *words]
