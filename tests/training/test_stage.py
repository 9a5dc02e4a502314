"""Stages: patterns select parameters; numbers become parameter groups and schedules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest_run import compose_config

from personalar.config.recipe import RecipeConfig, StageNumbers
from personalar.config.run_config import LoraConfig, MethodConfig, Stage, StageMethod
from personalar.core.run_folder import RunFolder
from personalar.training.stage import (
    depends_on_steps,
    describe_steps,
    parameter_groups,
    recipe_schedule,
    resolve_stages,
    selected_stages,
)

NUMBERS = StageNumbers(steps=10, batch=12, accumulate=2, lr=1e-3, identifier_lr=0.1, weight_decay=0.5)


def test_a_stage_after_lora_leaves_its_weights_alone() -> None:
    """A concept contains a weight or its LoRA, not both."""
    lora = LoraConfig(rank=4)
    stages = {
        "word": StageMethod(numbers="x"),
        "lora": StageMethod(numbers="x", lora=lora),
        "rows": StageMethod(numbers="x"),
        "weights": StageMethod(numbers="x", parameters=["*"]),
    }
    recipe = RecipeConfig(name="r", stages={"x": NUMBERS})
    message = r"after the LoRA of stage lora, .*set method\.stages\.weights\.start=word"
    with pytest.raises(ValueError, match=message):
        resolve_stages(MethodConfig(name="m", stages=stages), recipe)
    stages["weights"].start = "word"
    starts = [stage.start for stage in resolve_stages(MethodConfig(name="m", stages=stages), recipe)]
    assert starts == ["base", "word", "lora", "word"]


def test_pictures_of_changed_weights_have_one_strength(tmp_path: Path) -> None:
    settings = ["+subject=cat", "samples.strength=0.5"]
    folder = RunFolder(tmp_path)
    with pytest.raises(
        ValueError, match=r"samples\.strength=0\.5 cannot scale .* of stage transformer: choose"
    ):
        selected_stages(compose_config(*settings), folder)
    for word in ("stage=embedding", "method=lora"):
        assert selected_stages(compose_config(*settings, word), folder)


def test_rows_never_decay_and_a_switch_holds_them() -> None:
    rows, weight = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    stage = Stage(name="transformer", trains=StageMethod(numbers="x"), numbers=NUMBERS)
    groups = {group["name"]: group for group in parameter_groups(stage, rows=rows, weights=[weight])}
    assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (1e-3, 0.5)
    assert (groups["identifier"]["lr"], groups["identifier"]["weight_decay"]) == (0.1, 0.0)
    held = dataclasses.replace(stage, trains=StageMethod(numbers="x", identifier=False, parameters=["*"]))
    assert [group["name"] for group in parameter_groups(held, rows=rows, weights=[weight])] == ["weights"]


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = recipe_schedule(optimizer, schedule=schedule, steps=4)
        found = []
        for _ in range(6):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates("linear") == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0] and rates("constant") == [2.0] * 6


@pytest.mark.parametrize(
    ("scheduler", "schedule", "depends"),
    [
        ("recipe", "linear", True),
        ("recipe", "constant", False),
        ("cosine", "constant", True),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 30}, "linear", False),
        ({"_target_": "mine.Mine", "ends": ["{steps}"]}, "constant", True),
    ],
)
def test_more_steps_change_the_rates_of_some_schedules(
    scheduler: str | dict, schedule: str, depends: bool
) -> None:
    if isinstance(scheduler, str):
        scheduler = compose_config("+subject=cat", f"scheduler={scheduler}").scheduler
    assert depends_on_steps(scheduler, schedule) == depends


@pytest.mark.parametrize(
    ("ratio", "batch", "count"), [(0.0, 12, 0), (0.25, 12, 3), (0.25, 2, 1), (0.5, 3, 2)]
)
def test_replay_is_a_fixed_part_of_the_batch(ratio: float, batch: int, count: int) -> None:
    assert dataclasses.replace(NUMBERS, replay_ratio=ratio, batch=batch).replayed == count


def test_steps_are_told_with_their_setting() -> None:
    numbers = StageNumbers(steps=60, batch=12, accumulate=2, lr=0.01, replay_ratio=0.35)
    stage = Stage(name="transformer", trains=StageMethod(numbers="transformer"), numbers=numbers)
    said = describe_steps(stage, "nano", 5, replayed=True)  # 4 of 12 are class images
    assert said.startswith("steps transformer: 60 (model.recipe.stages.transformer.steps, recipe nano), ")
    assert said.endswith("each of 5 is seen about 192 times")
    assert "about 288 times" in describe_steps(stage, "nano", 5, replayed=False)
    assert describe_steps(stage, "nano", 5000, replayed=False).endswith("each of 5000 is seen less than once")
    assert "is seen about 1.4 times" in describe_steps(stage, "nano", 1000, replayed=False)
    both = describe_steps(stage, "nano", 5, replayed=True, proxies=60, proxy_share=0.5)
    assert both.endswith("each of 5 is seen about 96 times, each of 60 proxies about 8.0 times")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method.stages.embedding.numbers=fast"],
            r"numbers='fast' is not in model\.recipe\.stages; allowed: embedding, ",
        ),
        (
            ["method=dcoar", "trainer=zero3"],
            r"=zero3 cannot shard adapters.* stage context of method=dcoar: use",
        ),
        (["method=qlora", "trainer=zero3_offload"], r"4-bit weights.* stage transformer of method=qlora"),
        (
            ["trainer=zero2", "model.recipe.identifier.optimizer=direction"],
            r"identifier\.optimizer=direction needs whole embeddings, which trainer\.strategy=zero2 shards",
        ),
        (["prior.weight=0"], r"prior\.weight=0 gives class images no effect; .*use prior=none"),
    ],
)
def test_settings_that_no_stage_can_train_with_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config("+subject=cat", *words)


def test_a_stage_after_lora_is_not_sharded() -> None:
    config = compose_config("+subject=cat", "method=lora", "trainer=zero3")
    stages = {**config.method.stages, "rows": StageMethod(numbers="embedding")}
    with pytest.raises(ValueError, match=r"a LoRA stage, as in stage rows of method=lora: use .* zero2"):
        dataclasses.replace(config, method=MethodConfig(name="lora", stages=stages))
    stages["rows"].start = "embedding"
    dataclasses.replace(config, method=MethodConfig(name="lora", stages=stages))


def test_what_can_be_sharded_is_accepted() -> None:
    for words in (["method=lora", "trainer=zero3"], ["method=qlora", "trainer=zero2"], ["method=dcoar"]):
        compose_config("+subject=cat", *words)
    compose_config("+subject=cat", "method=qlora", "trainer=zero3", "stage=embedding")
    compose_config("+subject=cat", "prior=none", "prior.weight=0")
