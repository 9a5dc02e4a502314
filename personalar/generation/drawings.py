"""The pictures that `personalar.sample` is asked for: prompts, seeds and settings, each combination once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from personalar.concepts.concept_source import concept_folder
from personalar.config.commands import GridConfig, SampleConfig
from personalar.config.fields import check_seeds
from personalar.config.run_config import DecoderConfig
from personalar.data.prompt_file import PromptLine, fill_wildcards, read_prompts
from personalar.data.prompts import normalized
from personalar.generation.chosen_concepts import short_hash
from personalar.generation.pipeline import check_negative


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture to sample; with the same weights, equal drawings are equal pictures."""

    prompt: str
    seed: int
    negative_prompt: str | None
    size: str | None
    """"WIDTHxHEIGHT" in pixels; None: the base's square."""
    guidance: float
    top_k: int
    top_p: float
    temperature: float
    strength: float | None
    """Strength of every concept; None: those of the command, which differ."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """Everything but prompt and seed, in which the pictures of one batch must be equal."""
        return tuple(value for name, value in vars(self).items() if name not in ("prompt", "seed"))

    def decoder(self, config: DecoderConfig) -> DecoderConfig:
        """Return `config` with the sampling parameters of this picture."""
        return replace(
            config,
            cfg_scale=self.guidance,
            top_k=self.top_k,
            top_p=self.top_p,
            temperature=self.temperature,
        )


def resolve_like(config: SampleConfig) -> SampleConfig:
    """Return `config` with the settings of the picture `like`, if there is one.

    Raises:
        FileNotFoundError, ValueError: the picture is missing, or cannot be reproduced.
    """
    from personalar.generation.provenance import like

    if config.like is None:
        return config
    records = [(concept_folder(where) / "concept.json").read_bytes() for where in config.concepts]
    return like(config, Path(config.like).expanduser(), concept=" ".join(map(short_hash, records)))


def prompt_lines(config: SampleConfig) -> list[PromptLine]:
    """Return the prompts of `prompts` and of `prompts_file`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is invalid or contains no prompt, or a prompt is the path of a file.
    """
    for prompt in config.prompts:
        # Path.is_file() raises an error for a null byte and for text longer than a path may be.
        if os.path.isfile(prompt):
            raise ValueError(f"prompts contains {prompt!r}, which is a file: write prompts_file={prompt}")
    lines = [PromptLine(prompt=prompt) for prompt in config.prompts]
    if config.prompts_file is not None:
        lines += read_prompts(Path(config.prompts_file).expanduser())
        if not lines:
            raise ValueError(f"prompts_file={config.prompts_file} contains no prompt: write one per line")
    return lines


def axes(grid: GridConfig) -> dict[str, list[Any]]:
    """Return the settings that a grid varies with their values, rows first; empty without a grid.

    Raises:
        ValueError: an axis has several settings or no values, or both have the same setting.
    """
    found: dict[str, list[Any]] = {}
    for axis, variation in (("y", grid.y), ("x", grid.x)):
        given = {name: values for name, values in asdict(variation).items() if values is not None}
        if len(given) > 1:
            raise ValueError(f"grid.{axis} varies {' and '.join(given)}: set one of them")
        for name, values in given.items():
            if name in found:
                raise ValueError(f"grid.x and grid.y both vary {name}: choose two settings")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"grid.{axis}.{name}={values} must have at least one value and no duplicate")
            found[name] = values
    return found


def drawings(config: SampleConfig) -> list[Drawing]:
    """Return the pictures to sample: every prompt with every seed, or all cells of the grid, row by row.

    Raises:
        FileNotFoundError: a file of prompts or a wildcard is missing.
        ValueError: a file, a seed or the grid is invalid, or a negative prompt has no effect.
    """
    varied, lines = axes(config.grid), prompt_lines(config)
    common: dict[str, list[Any]] = {
        "negative_prompt": [config.negative_prompt],
        "size": [config.size],
        "guidance": [config.decoder.cfg_scale],
        "top_k": [config.decoder.top_k],
        "top_p": [config.decoder.top_p],
        "temperature": [config.decoder.temperature],
        "strength": [None if isinstance(config.strength, list) else float(config.strength)],
    }
    if "prompt" in varied:
        # With like=, grid.*.prompt replaces the picture's prompt.
        if lines and config.like is None:
            raise ValueError("the grid has prompts of its own: leave out prompts= and prompts_file=")
        lines = [PromptLine(prompt="")]
    found: list[Drawing] = []
    for line in lines:
        values = common | {"prompt": [line.prompt], "seed": seeds_of(line, config)}
        values |= {name: [value] for name, value in line.options.items() if name in common}
        if varied:
            check_single(lines, values, varied)
            check_replaced(line, config, varied)
            # The axes come last, so that the product goes through them row by row.
            values = {name: fixed for name, fixed in values.items() if name not in varied} | varied
        found += [Drawing(**dict(zip(values, each, strict=True))) for each in product(*values.values())]
    found = [finished(drawing, config) for drawing in found]
    # With like=, the picture may record a negative prompt although its guidance was off; that is no error.
    if config.like is None or "negative_prompt" in varied:
        check_negative((drawing.negative_prompt, drawing.guidance) for drawing in found)
    return found if varied else list(dict.fromkeys(found))


def seeds_of(line: PromptLine, config: SampleConfig) -> list[int]:
    """Return the seeds of a prompt; its own options replace `seeds` and `num_images`."""
    given = [line.options["seed"]] if "seed" in line.options else config.seeds
    number = line.options.get("num_images", config.num_images)
    if number is None:
        return given
    if len(given) > 1:
        raise ValueError(
            f"num_images={number} counts up from one seed, but {line.prompt[:60]!r} has {len(given)}: leave "
            "out num_images, or give one seed"
        )
    return list(range(given[0], given[0] + number))


def check_single(lines: list[PromptLine], values: dict[str, list[Any]], varied: Iterable[str]) -> None:
    """Raise ValueError unless everything that a grid does not vary has a single value."""
    several = [name for name, found in values.items() if len(found) > 1 and name not in varied]
    if len(lines) > 1:
        several.append("prompt")
    if several:
        raise ValueError(
            f"a grid varies {' and '.join(varied)} only, but there are several values of {several[0]}: give "
            f"one, or put them on an axis, grid.y.{several[0]}=[...]"
        )


def check_replaced(line: PromptLine, config: SampleConfig, varied: Iterable[str]) -> None:
    """Raise ValueError for seeds or an option of the line that an axis of the grid would replace."""
    given = dict(line.options)
    if config.num_images is not None:
        given["num_images"] = config.num_images
    if config.like is None and config.seeds != [0]:  # that of a picture is meant to be replaced
        given["seeds"] = config.seeds
    for name, value in given.items():
        axis = "seed" if name in ("seeds", "num_images") else name
        if axis in varied:
            raise ValueError(f"{name}={value} has no effect, because the grid varies {axis}: leave out one")


def finished(drawing: Drawing, config: SampleConfig) -> Drawing:
    """Return `drawing` with its wildcards replaced and its texts in their one form."""
    check_seeds([drawing.seed])
    prompt = drawing.prompt
    if config.like is None:  # the prompt of a picture is final
        folder = None if config.wildcards is None else Path(config.wildcards).expanduser()
        prompt = fill_wildcards(prompt, folder, seed=drawing.seed)
    negative = drawing.negative_prompt
    return replace(
        drawing,
        prompt=normalized(prompt),
        negative_prompt=None if negative is None else normalized(negative),
    )
