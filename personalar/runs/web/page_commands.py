"""The commands that the screens start, as words of a command line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from personalar.config.command_line import as_value, quote

MOST_PICTURES = 400
AXES = [
    "prompt",
    "seed",
    "guidance",
    "strength",
    "top_k",
    "top_p",
    "temperature",
    "negative_prompt",
    "size",
]
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """New pictures, as typed on the screen Draw."""

    prompts: str
    """One per line."""
    seeds: str
    """Whole numbers, separated by spaces or commas."""
    guidance: str = ""
    """A number; empty for the default of the base."""
    strength: float = 1.0
    axes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a grid: "x" or "y" -> one of `AXES`, and its values, separated by spaces, commas or line breaks
    (negative prompts: one per line). Prompts and seeds are those above."""


def sample_command(concept: Path, out: Path, asked: Asked) -> list[str]:
    """Return the command that samples new pictures with `concept` and writes them to `out`.

    Raises:
        ValueError: invalid prompts or seeds, twice the same axis, or more than `MOST_PICTURES` pictures.
    """
    prompts = [quote(line.strip()) for line in asked.prompts.splitlines() if line.strip()]
    seeds = separated(asked.seeds)
    if not prompts or not seeds or not all(seed.isdecimal() for seed in seeds):
        raise ValueError("write at least one prompt, and seeds as whole numbers: 0 1 2")
    keys = {"prompt": "prompts", "seed": "seeds"}
    values = {"prompt": prompts, "seed": [str(int(seed)) for seed in seeds]}
    names = [name for name, _ in asked.axes.values()]
    if len(set(names)) < len(names):
        raise ValueError(f"columns and rows both vary {names[0]}: choose two settings")
    for axis, (name, text) in asked.axes.items():
        keys[name] = f"grid.{axis}.{name}"
        values.setdefault(name, values_of(name, text))
    count = math.prod(map(len, values.values()))
    if count > MOST_PICTURES:
        raise ValueError(f"{count} pictures; allowed: {MOST_PICTURES} at a time")
    words = [f"concept={as_value(str(concept))}", f"out={as_value(str(out))}", f"strength={asked.strength}"]
    if asked.guidance.strip():
        words.append(f"model.sampling.cfg_scale={as_value(asked.guidance.strip())}")
    words += [f"{keys[name]}=[{','.join(found)}]" for name, found in values.items()]
    return ["python", "-m", "personalar.sample", *words]


def separated(text: str) -> list[str]:
    """Return the parts of `text` between spaces, commas and line breaks."""
    return text.replace(",", " ").split()


def values_of(name: str, text: str) -> list[str]:
    """Return the values of a setting as Hydra reads them."""
    if name == "negative_prompt":
        return [quote(line.strip()) for line in text.splitlines() if line.strip()]
    return [as_value(value) for value in separated(text)]


def push_command(concept: Path, repo: str, *, private: bool, dry_run: bool) -> list[str]:
    """Return the command that uploads a concept to the hub, or with `dry_run` shows what it would upload."""
    words = [f"concept={as_value(str(concept))}", f"repo={as_value(repo.strip())}"]
    words += [f"private={str(private).lower()}", f"dry_run={str(dry_run).lower()}"]
    return ["python", "-m", "personalar.push", *words]
