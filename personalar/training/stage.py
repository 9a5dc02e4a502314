"""Stages as data: the trained parameters, their learning rates and the number of steps.

`resolve_stages` combines a method (an ordered set of stages) with the numbers of the model's recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from personalar.config.plugins import fill_in
from personalar.config.recipe import RecipeConfig
from personalar.config.run_config import MethodConfig, RunConfig, Stage
from personalar.core.run_folder import RunFolder


def resolve_stages(method: MethodConfig, recipe: RecipeConfig) -> tuple[Stage, ...]:
    """Return the method's stages in order, each with its numbers and the stage from which it starts.

    Raises:
        ValueError: a stage trains weights or LoRA after a stage with LoRA.
    """
    stages: list[Stage] = []
    for name, trains in method.stages.items():
        start = trains.start or (stages[-1].name if stages else "base")
        stages.append(Stage(name=name, trains=trains, numbers=recipe.stages[trains.numbers], start=start))
        _check_after_lora(stages)
    return tuple(stages)


def _check_after_lora(stages: list[Stage]) -> None:
    """Raise ValueError if the last stage trains weights or LoRA, and an earlier one trained LoRA."""
    by_name = {stage.name: stage for stage in stages}
    # Only stages that this one starts from, directly or indirectly, matter. Other stages' weights are not
    # part of it.
    last, stage = stages[-1], by_name.get(stages[-1].start)
    while stage is not None:
        if stage.trains.lora.rank and (last.trains.parameters or last.trains.lora.rank):
            raise ValueError(
                f"stage {last.name} trains weights or LoRA after the LoRA of stage {stage.name}, but a "
                "concept contains one LoRA, applied after its weights: set "
                f"method.stages.{last.name}.start={stage.start}"
            )
        stage = by_name.get(stage.start)


def selected_stages(config: RunConfig, folder: RunFolder) -> list[Stage]:
    """Return the stages that `stage=` selects, in order.

    Raises:
        ValueError: the stage from which one of them starts is neither selected nor finished, or it trains
            what `samples.strength` cannot scale.
    """
    stages = [s for s in resolve_stages(config.method, config.model.recipe) if s.name in config.selected]
    made = {"base"}
    for stage in stages:
        if stage.start not in made and not folder.has_concept(stage.start):
            raise ValueError(
                f"stage={stage.name} starts from the result of stage={stage.start}, but there is none in "
                f"{folder.concept(stage.start)}: run with stage=both, or with stage.run=[{stage.start}] first"
            )
        made.add(stage.name)
        fixed = stage.trains.parameters or stage.trains.adapters
        if config.samples.strength != 1 and fixed:
            raise ValueError(
                f"samples.strength={config.samples.strength:g} cannot scale {', '.join(fixed)} of stage "
                f"{stage.name}: choose method=lora or stage=embedding, or set samples.strength=1"
            )
    return stages


def select_parameters(network: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters of `network` whose names match any of `patterns` (fnmatch), by name.

    They are in the order of the network, whatever the order of the patterns.

    Raises:
        ValueError: a pattern matches nothing; the message has the most similar names.
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
    # An optimizer's checkpoint identifies parameters by position, so the order must not depend on patterns.
    return {name: parameter for name, parameter in named.items() if name in chosen}


def parameter_groups(
    stage: Stage, *, rows: nn.Parameter, weights: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: "weights", with weight decay, and "identifier", without.

    Args:
        rows: the embeddings of [V] and the per-image tokens.
        weights: all other trained parameters; may be empty.
    """
    numbers = stage.numbers
    groups: list[dict[str, Any]] = []
    weights = list(weights)
    if weights:
        groups.append(
            {"name": "weights", "params": weights, "lr": numbers.lr, "weight_decay": numbers.weight_decay}
        )
    if stage.trains.identifier:
        # Decay would pull the embeddings towards 0, away from the region of real words.
        rate = numbers.lr if numbers.identifier_lr is None else numbers.identifier_lr
        groups.append({"name": "identifier", "params": [rows], "lr": rate, "weight_decay": 0.0})
    return groups


def recipe_schedule(optimizer: Optimizer, *, schedule: str, steps: int) -> LambdaLR:
    """Return the learning-rate schedule of a recipe.

    Args:
        schedule: "linear", from the full rate at step 0 to 0 at `steps`, or "constant".
    """
    if schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    return LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))


def depends_on_steps(scheduler: Mapping[str, Any], schedule: str) -> bool:
    """Return whether the learning rate of a step depends on the total number of steps.

    If so, a finished stage cannot be trained longer: its steps would have had other rates.

    Args:
        scheduler: settings of the scheduler (`_target_` and arguments).
        schedule: the recipe's schedule, "linear" or "constant".
    """
    settings = fill_in(scheduler, schedule=schedule)
    # Our own schedule takes {steps} in any case; another one depends on them if it uses the placeholder.
    if settings.get("_target_") == f"{__name__}.{recipe_schedule.__name__}":
        return bool(settings["schedule"] != "constant")
    return "{steps}" in str(settings)


def describe_steps(
    stage: Stage, recipe: str, photos: int, *, replayed: bool, proxies: int = 0, proxy_share: float = 0.0
) -> str:
    """Return one line: the steps of `stage`, the setting that changes them, and how often pictures are seen.

    Args:
        recipe: name of the recipe.
        photos: number of photos.
        replayed: class images take their share of each batch.
        proxies: number of proxies.
        proxy_share: share of the subject's sequences that show a proxy.
    """
    numbers = stage.numbers
    own = numbers.batch - (numbers.replayed if replayed else 0)
    sequences = numbers.steps * numbers.accumulate * own
    share = proxy_share if proxies else 0.0
    seen = f"each of {photos} is seen {_times(sequences * (1 - share) / photos)}"
    if proxies:
        seen += f", each of {proxies} proxies {_times(sequences * share / proxies)}"
    return (
        f"steps {stage.name}: {numbers.steps} (model.recipe.stages.{stage.trains.numbers}.steps, recipe "
        f"{recipe}), whatever the number of photos; {seen}"
    )


def _times(seen: float) -> str:
    return "less than once" if seen < 1 else f"about {seen:.{0 if seen >= 10 else 1}f} times"
