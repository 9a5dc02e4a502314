"""A stage as data: patterns choose parameters, numbers become groups and schedules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest_run import compose_config

from personalar.config.recipe import RecipeConfig, StageNumbers
from personalar.config.run_config import MethodConfig, Stage, StageMethod
from personalar.training.stage import (
    describe_steps,
    lr_factor,
    parameter_groups,
    resolve_stages,
    select_parameters,
)

NUMBERS = StageNumbers(steps=10, batch=12, accumulate=2, lr=1e-3, identifier_lr=0.1, weight_decay=0.5)


def test_patterns_choose_q_k_v_of_all_layers(tiny_backend) -> None:
    chosen = select_parameters(tiny_backend.transformer, ["model.layers.*.self_attn.[qkv]_proj.weight"])
    assert len(chosen) == 2 * 3 and all("_proj.weight" in name for name in chosen)


def test_a_pattern_that_matches_nothing_names_the_nearest(tiny_backend) -> None:
    with pytest.raises(ValueError, match=r"matches nothing; names look like .*q_proj"):
        select_parameters(tiny_backend.transformer, ["model.layers.*.attn.q_proj.weight"])


def test_adapters_beside_the_recipes_own_weights_name_the_setting() -> None:
    """`parameters` is empty here: the recipe asks for weights."""
    lora = ("method.stages.transformer.parameters=[]", "method.stages.transformer.lora.rank=4")
    config = compose_config("+subject=cat", *lora)
    message = r"lora.rank=4 trains adapters alone.*: set model\.recipe\.stages\.transformer\.also_train=\[\]$"
    with pytest.raises(ValueError, match=message):
        resolve_stages(config.method, config.model.recipe)
    config = compose_config("+subject=cat", *lora, "model.recipe.stages.transformer.also_train=[]")
    assert resolve_stages(config.method, config.model.recipe)[1].trains.parameters == []


def test_rows_never_decay_and_a_switch_holds_them() -> None:
    rows, weight = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    stage = Stage(name="transformer", trains=StageMethod(numbers="x"), numbers=NUMBERS)
    groups = {group["name"]: group for group in parameter_groups(stage, rows=rows, weights=[weight])}
    assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (1e-3, 0.5)
    assert (groups["identifier"]["lr"], groups["identifier"]["weight_decay"]) == (0.1, 0.0)
    held = dataclasses.replace(stage, trains=StageMethod(numbers="x", identifier=False, parameters=["*"]))
    assert [group["name"] for group in parameter_groups(held, rows=rows, weights=[weight])] == ["weights"]


def test_schedules() -> None:
    assert [lr_factor(step, numbers=NUMBERS) for step in (0, 5, 10, 12)] == [1.0, 0.5, 0.0, 0.0]
    assert lr_factor(9, numbers=dataclasses.replace(NUMBERS, schedule="constant")) == 1.0


@pytest.mark.parametrize(
    ("ratio", "batch", "count"), [(0.0, 12, 0), (0.25, 12, 3), (0.25, 1, 1), (0.5, 3, 2)]
)
def test_replay_is_a_fixed_part_of_the_batch(ratio: float, batch: int, count: int) -> None:
    assert dataclasses.replace(NUMBERS, replay_ratio=ratio, batch=batch).replayed == count


def test_steps_are_told_with_their_setting() -> None:
    numbers = StageNumbers(steps=60, batch=12, accumulate=2, identifier_lr=0.01, replay_ratio=0.35)
    stage = Stage(name="transformer", trains=StageMethod(numbers="transformer"), numbers=numbers)
    said = describe_steps(stage, "nano", 5, replayed=True)  # 4 of 12 are class images
    assert said.startswith("steps transformer: 60 (model.recipe.stages.transformer.steps, recipe nano), ")
    assert said.endswith("each of 5 is seen about 192 times")
    assert "about 288 times" in describe_steps(stage, "nano", 5, replayed=False)


def test_numbers_that_the_recipe_lacks() -> None:
    method = MethodConfig(name="m", stages={"embedding": StageMethod(numbers="fast")})
    with pytest.raises(ValueError, match=r"'fast' is not in model\.recipe\.stages; allowed: slow"):
        resolve_stages(method, RecipeConfig(name="r", stages={"slow": NUMBERS}))


def test_a_base_may_train_more_than_the_method_says() -> None:
    method = MethodConfig(
        name="paper", stages={"transformer": StageMethod(numbers="x", parameters=["*.q_proj.weight"])}
    )
    numbers = dataclasses.replace(NUMBERS, also_train=["*.o_proj.weight"])
    (stage,) = resolve_stages(method, RecipeConfig(name="r", stages={"x": numbers}))
    assert stage.trains.parameters == ["*.q_proj.weight", "*.o_proj.weight"]
    assert method.stages["transformer"].parameters == ["*.q_proj.weight"]
