"""A stage as data: the parameters that train, their learning rates and the number of steps.

A method (an ordered set of stages) is joined here with the numbers of the model's recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from personalar.config.recipe import RecipeConfig, StageNumbers
from personalar.config.run_config import MethodConfig, RunConfig, Stage, StageMethod
from personalar.core.run_folder import RunFolder


def resolve_stages(method: MethodConfig, recipe: RecipeConfig) -> tuple[Stage, ...]:
    """Return the method's stages in order, each with its numbers.

    Raises:
        ValueError: when a stage names numbers that are missing in the recipe, or that do not suit adapters.
    """
    for name, stage in method.stages.items():
        if stage.numbers not in recipe.stages:
            raise ValueError(
                f"method.stages.{name}.numbers={stage.numbers!r} is not in model.recipe.stages; "
                f"allowed: {', '.join(recipe.stages)}"
            )
    return tuple(
        Stage(
            name=name,
            trains=_with_more(stage, recipe.stages[stage.numbers]),
            numbers=recipe.stages[stage.numbers],
        )
        for name, stage in method.stages.items()
    )


def _with_more(stage: StageMethod, numbers: StageNumbers) -> StageMethod:
    """Return `stage` with the weights that the recipe also trains."""
    if stage.lora.rank and numbers.also_train:
        recipe = f"model.recipe.stages.{stage.numbers}"
        raise ValueError(
            f"lora.rank={stage.lora.rank} trains adapters alone, and {recipe}.also_train asks for weights "
            f"besides: set {recipe}.also_train=[]"
        )
    return replace(stage, parameters=[*stage.parameters, *numbers.also_train])


def selected_stages(config: RunConfig, folder: RunFolder) -> list[tuple[Stage, str]]:
    """Return the stages to run, each with the stage it starts from.

    Raises:
        ValueError: when none is selected, or the stage before the first of them has left no concept.
    """
    stages = resolve_stages(config.method, config.model.recipe)
    starts = ["base", *[stage.name for stage in stages]]
    pairs = [pair for pair in zip(stages, starts, strict=False) if pair[0].name in config.stage.run]
    if not pairs:
        raise ValueError(
            f"stage.run={config.stage.run} names no stage of method={config.method.name}; allowed: "
            f"{', '.join(stage.name for stage in stages)}"
        )
    first, start = pairs[0]
    if start != "base" and not folder.has_concept(start):
        raise ValueError(
            f"stage={first.name} starts from what stage={start} leaves, and {folder.concept(start)} "
            f"holds nothing: run with stage=both, or stage={start} first"
        )
    return pairs


def select_parameters(network: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters of `network` whose names match any of `patterns` (fnmatch), in order.

    Raises:
        ValueError: when a pattern matches nothing, with the nearest names.
    """
    named = dict(network.named_parameters())
    chosen: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.0)
            raise ValueError(
                f"parameters pattern {pattern!r} matches nothing; names look like {', '.join(near)}"
            )
        chosen.update((name, named[name]) for name in matched)
    return {name: parameter for name, parameter in named.items() if name in chosen}


def parameter_groups(
    stage: Stage, *, rows: nn.Parameter, weights: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """Return AdamW groups: the transformer's weights with decay, the identifier rows without."""
    numbers = stage.numbers
    groups: list[dict[str, Any]] = []
    weights = list(weights)
    if weights:
        groups.append(
            {"name": "weights", "params": weights, "lr": numbers.lr, "weight_decay": numbers.weight_decay}
        )
    if stage.trains.identifier:
        groups.append(
            {"name": "identifier", "params": [rows], "lr": numbers.identifier_lr, "weight_decay": 0.0}
        )
    return groups


def lr_factor(step: int, *, numbers: StageNumbers) -> float:
    """Return the factor of the peak rates at optimizer step `step` (0-based)."""
    if numbers.schedule == "constant":
        return 1.0
    return max(0.0, 1.0 - step / numbers.steps)


def describe_steps(stage: Stage, recipe: str, photos: int, *, replayed: bool) -> str:
    """Return one line: the steps of `stage`, their setting, and how often each photo is seen."""
    numbers = stage.numbers
    own = numbers.batch - (numbers.replayed if replayed else 0)
    seen = numbers.steps * numbers.accumulate * own / photos
    return (
        f"steps {stage.name}: {numbers.steps} (model.recipe.stages.{stage.trains.numbers}.steps, recipe "
        f"{recipe}), whatever the number of photos; each of {photos} is seen about {seen:.0f} times"
    )
