"""The configuration of a run: one dataclass per config group.

The YAML files in `conf/` contain named sets of these values. A key that is not declared here is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import SEED, limits, one_of
from personalar.config.model_config import DecoderConfig, ModelConfig
from personalar.config.recipe import PriorConfig, StageNumbers
from personalar.config.scorer_config import ScorerConfig, SelectionConfig
from personalar.config.subject_config import STYLE, SamplesConfig, SubjectConfig, check_style_prompts
from personalar.config.trainer_config import MemoryConfig, TrainerConfig

STAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(kw_only=True)
class StageSelection:
    """Which stages of the method to run."""

    name: str = MISSING
    run: list[str] | None = None
    """Names of stages; null: all."""


@dataclass(kw_only=True)
class LoraConfig:
    """LoRA (with PEFT) on attention projections."""

    rank: int = field(default=0, metadata=limits(0))
    """Rank of the adapters; 0: no LoRA."""
    every_n_layers: int = field(default=1, metadata=limits(1))
    """Adapters on every n-th layer only (N in the paper)."""


@dataclass(kw_only=True)
class StageMethod:
    """What one stage trains, and what it starts from."""

    numbers: str = MISSING
    """Name of its hyperparameters in `model.recipe.stages`."""
    start: str | None = None
    """Stage whose result it starts from, or "base"; null: the previous stage."""
    identifier: bool = True
    """Train the learned embeddings ([V], S_i) in this stage."""
    parameters: list[str] = field(default_factory=list)
    """Patterns (fnmatch) of transformer parameters to train."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """LoRA to train instead of `parameters`."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """Adapters to train, by name (lower-case letters, digits, _): `_target_` of an `adapters.base.Adapter`,
    and its arguments."""

    @property
    def changes_network(self) -> bool:
        """True if the stage trains more than the learned embeddings."""
        return bool(self.parameters or self.lora.rank or self.adapters)

    def __post_init__(self) -> None:
        if not (self.identifier or self.changes_network):
            raise ValueError(
                "a stage trains nothing: set identifier=true, parameters=[...], lora.rank or adapters"
            )
        if self.parameters and self.lora.rank:
            raise ValueError("a stage trains either parameters or lora; set parameters=[] or lora.rank=0")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run with its hyperparameters."""

    name: str
    trains: StageMethod
    """What it trains."""
    numbers: StageNumbers
    """Its hyperparameters."""
    start: str = "base"
    """Stage whose result it starts from, or "base"."""


@dataclass(kw_only=True)
class MethodConfig:
    """A method: its stages in order, by name."""

    name: str = MISSING
    base_bits: int = field(default=16, metadata=limits(4, 16))
    """Bits of the frozen weights of the blocks: 4 (quantized, for LoRA), or 16, meaning `model.dtype`."""
    stages: dict[str, StageMethod] = field(default_factory=dict)
    """Stages by name; they run in this order."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"method={self.name} has no stages: set method.stages.NAME.numbers=...")
        # A stage can start from the base or from a stage before it.
        earlier = ["base"]
        for name, stage in self.stages.items():
            if not STAGE_NAME.fullmatch(name) or name == "base":
                raise ValueError(
                    f"method.stages.{name}: invalid name; allowed: lower-case letters, digits and _, but not "
                    "base"
                )
            if stage.start is not None:
                one_of(f"method.stages.{name}.start", stage.start, tuple(earlier))
            earlier.append(name)
        self._check_adapters()
        if self.base_bits not in (4, 16):
            raise ValueError(f"invalid value method.base_bits={self.base_bits}; allowed: 4, 16")
        # Quantized weights have no gradient.
        if self.base_bits == 4 and any(stage.parameters for stage in self.stages.values()):
            raise ValueError(
                "method.base_bits=4 freezes the base's weights: set lora.rank instead of parameters"
            )
        if self.base_bits == 4 and not any(stage.lora.rank for stage in self.stages.values()):
            raise ValueError(
                "method.base_bits=4 has no effect without a LoRA stage: choose method=qlora, or leave it out"
            )

    def _check_adapters(self) -> None:
        known: dict[str, Any] = {}
        for stage, method in self.stages.items():
            for name, settings in method.adapters.items():
                key = f"method.stages.{stage}.adapters.{name}"
                if not STAGE_NAME.fullmatch(name):  # the concept has a file of this name
                    raise ValueError(
                        f"{key}: invalid name; allowed: up to 40 lower-case letters, digits and _, a letter "
                        "first"
                    )
                if known.setdefault(name, settings) != settings:  # one object is used in all stages
                    raise ValueError(
                        f"{key}={settings} differs from the adapter {name} of an earlier stage: use the same "
                        "settings, or another name"
                    )


@dataclass(kw_only=True)
class RunConfig:
    """`python -m personalar.run`."""

    model: ModelConfig = MISSING
    subject: SubjectConfig = MISSING
    stage: StageSelection = MISSING
    method: MethodConfig = MISSING
    prior: PriorConfig = field(default_factory=PriorConfig)
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING
    memory: MemoryConfig = MISSING
    optimizer: dict[str, Any] = field(default_factory=dict)
    """`_target_` of an optimizer and its arguments; parameters, learning rates and weight decay come from
    the stage."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a torch learning-rate scheduler, which is stepped after every optimizer step; "{steps}"
    is replaced by the stage's number of steps."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by any name: `_target_` and arguments; null: removed."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning loggers by any name; "{folder}", "{stage}" and "{part}" are replaced."""
    scorer: ScorerConfig = MISSING
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = field(default=0, metadata=SEED)
    """Seed of the initial embeddings, the crops and the batches."""
    objective: list[str] = field(default_factory=lambda: ["dino*clip_t"])
    """What a sweeper maximizes: measures of the last stage in summary.json; "*" multiplies them."""
    reuse: str | None = None
    """Folder of a run whose stage 1 is reused if this run's stage 1 has the same settings; null: train it."""
    overwrite: bool = False
    """Delete what an earlier run wrote in the run folder (no other files) and start again."""

    def __post_init__(self) -> None:
        for name, stage in self.method.stages.items():
            if stage.numbers not in self.model.recipe.stages:
                raise ValueError(
                    f"method.stages.{name}.numbers={stage.numbers!r} is not in model.recipe.stages; "
                    f"allowed: {', '.join(self.model.recipe.stages)}"
                )
        prior = self.prior
        for name, stage in self.method.stages.items():
            if self._replays(name) and not (prior.images and (prior.prompts or prior.prompts_live)):
                raise ValueError(
                    f"model.recipe.stages.{stage.numbers}.replay_ratio is above 0 without class images: set "
                    "prior.images and prior.prompts, or prior.kind=none"
                )
        # An empty list would finish without any result.
        if self.stage.run == []:
            raise ValueError(
                f"stage.run=[] selects no stage of method={self.method.name}; allowed: "
                f"{', '.join(self.method.stages)}"
            )
        for name in self.stage.run or ():
            one_of("stage.run", name, tuple(self.method.stages))
        for name in {"lr", "weight_decay"} & self.optimizer.keys():
            raise ValueError(
                f"optimizer.{name} has no effect: set model.recipe.stages.NAME.{name} or leave it out"
            )
        self._check_strategy()
        numbers = [self.model.recipe.stages[self.method.stages[name].numbers] for name in self.selected]
        for number in numbers:  # before a download
            number.share(self.trainer.devices * self.trainer.num_nodes)
        self.selection.check(
            every=self.samples.grid_every_steps,
            fewest_steps=min(number.steps for number in numbers),
            photographs=self.subject.photographs,
        )
        if self.subject.noun == STYLE:
            self._check_style()

    def _check_strategy(self) -> None:
        """Raise ValueError if `trainer.strategy` cannot divide what a selected stage trains."""
        strategy, optimizer = self.trainer.strategy, self.model.recipe.identifier.optimizer
        sharded = strategy.startswith("zero")
        if sharded and self.trainer.precision is not None:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} has no effect with trainer.strategy={strategy}, "
                "because with DeepSpeed the precision follows model.dtype: leave it out"
            )
        if sharded and self.model.dtype == "float16":
            raise ValueError(
                f"model.dtype=float16 cannot be used with trainer.strategy={strategy}; allowed: bfloat16, "
                "float32"
            )
        if optimizer and sharded:
            raise ValueError(
                f"model.recipe.identifier.optimizer={optimizer} needs whole embeddings, which "
                f"trainer.strategy={strategy} shards: use trainer=gpu or trainer=ddp"
            )
        changed, before = {"base": False}, "base"
        for name, stage in self.method.stages.items():
            start, own = changed[stage.start or before], bool(stage.adapters)
            quantized = stage.lora.rank > 0 and self.method.base_bits == 4
            if strategy.startswith("zero3") and name in self.selected and (start or own or quantized):
                raise ValueError(
                    f"trainer.strategy={strategy} cannot shard adapters, 4-bit weights or the result of "
                    f"a LoRA stage, as in stage {name} of method={self.method.name}: use trainer=gpu, ddp or "
                    "zero2"
                )
            changed[name], before = start or own or stage.lora.rank > 0, name

    def _check_style(self) -> None:
        """Raise ValueError for settings that need a subject with a class and a place in the picture."""
        check_style_prompts("model.recipe.data.templates", self.model.recipe.data.templates)
        check_style_prompts("samples.prompts", self.samples.prompts)
        named = [prompt for prompt in self.prior.prompts + self.prior.prompts_live if "{}" in prompt]
        if named:  # others do not name the style
            check_style_prompts("prior.prompts", named)
        for key, scorer in (("scorer", self.scorer), ("selection.scorer", self.selection.scorer)):
            for name in ("subject_crop", "outside"):
                if getattr(scorer, name):
                    raise ValueError(
                        f"{key}.{name}=true needs a subject in a box of the picture, and a style is "
                        "everywhere in it: leave the setting out"
                    )

    @property
    def selected(self) -> list[str]:
        """Names of the stages to run."""
        return list(self.method.stages) if self.stage.run is None else self.stage.run

    @property
    def has_prior(self) -> bool:
        """True if a selected stage trains on class images."""
        return any(map(self._replays, self.selected))

    def _replays(self, stage: str) -> bool:
        numbers = self.model.recipe.stages[self.method.stages[stage].numbers]
        return numbers.replay_ratio > 0 and self.prior.kind != "none"

    @property
    def photo_warnings(self) -> list[str]:
        """Warnings if the base or the scorers do not suit a subject of real photographs."""
        if not self.subject.photographs:
            return []
        return [text for text in (self.model.photo_warning, self.scorer.warning(photographs=True)) if text]
