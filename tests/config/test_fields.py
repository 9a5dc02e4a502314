"""Every knob with a wrong value: the answer names it, says what is allowed, comes before anything loads."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_run import compose_config, composed
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from test_cli import mistake

from personalar.config.commands import EvaluateConfig
from personalar.config.compose import explain, read_config
from personalar.config.fields import (
    MANY,
    check_folder_names,
    check_values,
    job_folder,
)
from personalar.config.model_config import HubFiles, ProtocolConfig
from personalar.config.run_config import RunConfig
from personalar.config.trainer_config import check_devices
from personalar.core.measures import IN_SUMMARY

__all__ = ["mistake"]
ADAPTERS = "method.stages.embedding.adapters"
KEYS = {"model.recipe.stages": "embedding", "method.stages": "transformer"}
"""A key of each mapping, to reach what lies in it."""
ENUMERATIONS = {  # of RunConfig; each says what is allowed
    "model.dtype", "model.accelerator", "model.recipe.stages.embedding.schedule", "model.recipe.data.crop",
    "model.recipe.loss", "model.recipe.identifier.optimizer", "model.recipe.identifier.further",
    "model.recipe.identifier.init", "subject.kind", "trainer.accelerator", "trainer.strategy",
    "scorer.dino_preprocess", "scorer.clip_text",
    "samples.prompt_set", "trainer.threads",
}  # fmt: skip


def inner(hint: Any) -> Any:
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in typing.get_args(hint) else hint


def knobs(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (a.b.c, type, limits) of every setting below `schema`."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, knob = inner(hints[field.name]), f"{prefix}{field.name}"
        if typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
            yield from knobs(typing.get_args(kind)[1], f"{knob}.{KEYS[knob]}.")
        elif dataclasses.is_dataclass(kind):
            yield from knobs(kind, f"{knob}.")
        else:
            yield knob, hints[field.name], field.metadata.get("limits")


FOUND = list(knobs(RunConfig))
KNOBS = {knob: hint for knob, hint, _ in FOUND}
LIMITS = {knob: found for knob, _, found in FOUND if found}
NUMBERS = [knob for knob, hint in KNOBS.items()
           if inner(hint) in (int, float, list[int], list[float])]  # fmt: skip
WRONG = {int: ["wide", "1.5", "true", "1e3", "", "--1", "0x1"], float: ["wide", "true", "", "1.2.3"],
         bool: ["maybe", "wide", ""]}  # fmt: skip


def answer(*arguments: str) -> str:
    """Return what a command is told about `arguments`, with Hydra's own errors."""
    cfg = composed("run", "+subject=cat")
    with open_dict(cfg):
        cfg.model.layout = OmegaConf.structured(ProtocolConfig())
        for name in ("hub", "vq_hub", "tokenizer_hub"):
            hub = HubFiles(repo="a/b", licence="x", files=["*"], gigabytes=1.0)
            cfg.model[name] = OmegaConf.structured(hub)
    OmegaConf.set_struct(cfg, True)
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
        ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)
        check_values(OmegaConf.to_container(cfg, resolve=False), cfg)
        read_config(cfg)
    except HydraException as error:
        return explain(error, "run", arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{arguments} is taken")


@pytest.mark.parametrize("knob", KNOBS)
def test_a_misspelt_knob(knob: str, record_property) -> None:
    """A letter too many, at the end and in the middle: the right name is proposed, all names are listed."""
    record_property("inputs", 2)
    last = knob.rpartition(".")[2]
    for wrong in (f"{last}q", f"{last[:1]}{last}"):
        said = answer(f"{knob.removesuffix(last)}{wrong}=1")
        assert "unknown setting" in said and f"has no {wrong!r}" in said, said
        assert f"did you mean {last}?" in said or len(last) < 3, said
        assert last in said.split("allowed: ")[1]


@pytest.mark.parametrize("knob", [knob for knob, hint in KNOBS.items() if inner(hint) in WRONG])
def test_a_value_of_another_type(knob: str, record_property) -> None:
    hint = KNOBS[knob]
    record_property("inputs", len(WRONG[inner(hint)]))
    for value in WRONG[inner(hint)]:
        said = answer(f"{knob}={value}")
        assert knob in said and re.search("could not be converted|is not a valid bool", said), said
    if inner(hint) is hint:
        assert "is not Optional" in answer(f"{knob}=null")


LISTS = [knob for knob, hint in KNOBS.items() if typing.get_origin(inner(hint)) is list]


@pytest.mark.parametrize("knob", LISTS)
def test_a_word_in_the_place_of_a_list(knob: str) -> None:
    said = answer(f"{knob}=wide")
    assert "str is not a ListConfig, list or tuple" in said and knob in said


@pytest.mark.parametrize("knob", NUMBERS)
def test_a_number_out_of_range(knob: str, record_property) -> None:
    """Below, above, and not finite; the smallest allowed value is named."""
    assert knob in LIMITS, f"{knob} is declared without limits"
    low, high = LIMITS[knob]
    hint = inner(KNOBS[knob])
    listed = typing.get_origin(hint) is list
    whole = (typing.get_args(hint)[0] if listed else hint) is int
    values = [math.floor(low) - 1, *([math.ceil(high) + 1] if high < MANY else [])]
    values += [] if whole else ["nan", "inf", "-inf"]
    record_property("inputs", len(values))
    for value in values:
        text = f"[{value},0.5]" if listed and knob.endswith("betas") else f"[{value}]" if listed else value
        said = answer(f"{knob}={text}")
        assert said.startswith(f"{knob}=") and "is out of range; allowed: " in said, said


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("seed=99999999999999999999", "0 to 9223372036854775807"),
        ("seed=-1", "0 and more"),
        ("model.recipe.stages.embedding.steps=9999999999", "1 to 1000000000"),
        ("model.recipe.stages.embedding.steps=0", "1 and more"),
    ],
)
def test_the_allowed_range_does_not_contain_the_number(argument: str, allowed: str) -> None:
    assert f"is out of range; allowed: {allowed}, a finite number" in answer(argument)


@pytest.mark.parametrize("knob", sorted(ENUMERATIONS))
def test_a_word_that_is_not_known(knob: str) -> None:
    assert knob in KNOBS
    said = answer(f"{knob}=wide")
    assert knob.rpartition(".")[2] in said and "invalid value" in said and "; allowed: " in said, said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.base_bits=4"], "set lora.rank instead of parameters"),
        (["method.base_bits=8"], "allowed: 4, 16"),
        (["method.stages.transformer.parameters=[]", "method.base_bits=4"], "no effect without a LoRA stage"),
        (["~method.stages.embedding", "~method.stages.transformer"], "method=paper has no stages"),
        ([f"+{ADAPTERS}.Mine._target_=x.Y"], r"adapters\.Mine: invalid name; allowed: up to 40 lower-case"),
        (
            [
                f"+{ADAPTERS}.a._target_=x.Y",
                f"+{ADAPTERS.replace('embedding', 'transformer')}.a._target_=x.Z",
            ],
            r"transformer\.adapters\.a=.* differs from the adapter a of an earlier stage: use the same",
        ),
        (
            ["trainer.strategy=zero2", "trainer.precision=16-mixed"],
            "with DeepSpeed the precision follows model.dtype: leave it out",
        ),
        (
            ["trainer.precision=bf16-true"],
            "bf16-true would convert the trained parameters, .* ends in -mixed",
        ),
        (["trainer.precision=64"], "precision=64 would convert"),
        (["+optimizer.lr=0.5"], r"optimizer\.lr has no effect: set model\.recipe\.stages\.NAME\.lr"),
        (["trainer.strategy=ddp", "trainer.devices=16"], "16 processes cannot divide batch="),
        (["trainer.strategy=zero3", "model.dtype=float16"], "float16 cannot be used with .*=zero3; allowed"),
        (["scorer.dino=null"], r"scorer\.dino=None: the two are used together: set both, or neither"),
        (["selection.scorer.clip=x"], r"scorer\.clip=x .* are used together"),
        (["+scorer.extra.a=3"], r"scorer\.extra\.a=3 names no class: set scorer\.extra\.a\._target_="),
        (["model.recipe.data.crops_per_photo=0", "model.recipe.data.copies_per_photo=0"], "copies_per_photo"),
        (["model.recipe.betas=[0.9]"], r"betas=\[0.9\] must be 2 numbers"),
        (["samples.seeds=[]"], "at least one seed"),
        (["stage.run=[embeding]"], r"stage\.run='embeding'; did you mean embedding\?"),
        (["objective=[dinoo*clip_t]"], "objective='dinoo'; did you mean dino"),
        (["objective=['']"], "objective=''; allowed: fidelity, dino"),
        (["model.recipe=3"], "int is not a subclass of RecipeConfig"),
    ],
)
def test_values_that_contradict(arguments: list[str], message: str) -> None:
    assert re.search(message, answer(*arguments)), answer(*arguments)


def test_every_measure_may_be_an_objective(finished_run: Path) -> None:
    stages = json.loads((finished_run / "summary.json").read_text())["stages"]
    known = {name for name, value in stages["transformer"].items() if not isinstance(value, dict)}
    signs = {"v_moved", "pictures_changed", "selected_step"}  # these say nothing of how good a stage is
    assert known - signs == set(IN_SUMMARY)


def test_the_other_commands_numbers_have_ranges_too() -> None:
    for knob, hint, found in knobs(EvaluateConfig):
        assert inner(hint) not in (int, float, dict[str, float]) or found, knob
    with pytest.raises(ValueError, match=r"benchmark.published.dino=-1.0 is out of range; allowed: "):
        compose_config("+benchmark.published.dino=-1.0", name="evaluate")


@pytest.mark.parametrize(
    "argument",
    ["trainer.devices=wide", "model.recipe.stages.embedding.lr=nan", "trainer.accelerator=gpv", "sead=3",
     "samples.seeds=[x]"],
)  # fmt: skip
def test_on_the_command_line_it_is_one_answer(
    argument: str, mistake: Callable[..., str], tmp_path: Path
) -> None:
    said = mistake("run", "+subject=cat", argument)
    assert "Traceback" not in said and len(said.splitlines()) < 9
    assert argument.split("=")[0].rpartition(".")[2] in said
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".safetensors")]


def test_a_gpu_that_is_not_there(session) -> None:
    trainer = dataclasses.replace(session.config.trainer, name="gpu", accelerator="gpu", devices=999,
                                  strategy="ddp")  # fmt: skip
    with pytest.raises(ValueError, match=r"trainer=gpu needs a GPU|trainer\.devices=999 is out of range"):
        check_devices(trainer)


def test_a_number_without_a_declared_range_may_be_infinite() -> None:
    """An argument of a class of the user's own."""
    config = compose_config("+subject=cat", "+callbacks.mine.most=inf", "+decoder.arguments.least=[-inf,1]")
    assert config.callbacks["mine"] == {"most": math.inf}
    assert config.decoder.arguments == {"least": [-math.inf, 1]}


BAD = ["../../x", "..", ".", "/abs", "a/b", "a\\b", "a\nb", "a\x00b", "", " ", "n" * 256]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("knob", ["subject.name", "model.name", "benchmark.name"])
def test_a_name_that_leaves_its_folder_is_refused(knob: str, name: str) -> None:
    group, key = knob.split(".")
    with pytest.raises(ValueError, match=rf"^{knob}=.* is not a valid folder name; allowed: "):
        check_folder_names(OmegaConf.create({group: {key: name}}))


@pytest.mark.parametrize("name", ["rex", "my dog", "Été 2026", "a..b", ".hidden", "犬", "a,b=c"])
def test_usual_names_are_taken(name: str) -> None:
    check_folder_names(OmegaConf.create({"subject": {"name": name}, "model": {"name": "nano"}}))


def test_every_command_checks_the_names() -> None:
    with pytest.raises(ValueError, match=r"^subject\.name='\.\./x' is not"):
        compose_config("+subject=cat", "subject.name=../x")
    with pytest.raises(ValueError, match=r"^benchmark\.name='\.\./x' is not"):
        compose_config("benchmark.name=../x", name="evaluate")


def test_the_folder_of_a_sweep_job_is_short_stable_and_its_own() -> None:
    short = job_folder("+subject=cat,model.recipe.stages.transformer.lr=0.001,seed=0")
    assert re.fullmatch(r"subject=cat,lr=0\.001,seed=0-[0-9a-f]{10}", short)
    long = ",".join(f"model.recipe.stages.transformer.parameters_{i}=[a,'{'x' * 50}']" for i in range(90))
    names = {job_folder(f"{long},seed={seed}") for seed in range(50)}
    assert len(names) == 50 and all(len(name.encode()) <= 71 for name in names)
    for strange in ("a=../../b", "subject.path=ü/é ü", "a='<>:|?*\\\n'", "", "+reuse=/etc/passwd"):
        name = job_folder(strange)
        assert re.fullmatch(r"[A-Za-z0-9_.=,-]+-[0-9a-f]{10}", name), name
