"""The whole configuration of a run: one dataclass per config group, each value declared once.

The YAML files in `conf/` hold named choices of these values; a key that is not declared does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import II, MISSING

from personalar.config.fields import SEED, key_of, limits, one_of
from personalar.config.model_config import ModelConfig
from personalar.config.recipe import StageNumbers
from personalar.config.scorer_config import ScorerConfig
from personalar.config.subject_config import SamplesConfig, SubjectConfig
from personalar.config.trainer_config import MemoryConfig, TrainerConfig

STAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(kw_only=True)
class StageSelection:
    """Stages of the method to run now."""

    name: str = MISSING
    run: list[str] | None = None
    """null: all."""


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (PEFT) on attention projections."""

    rank: int = field(default=0, metadata=limits(0))
    """0: no adapters."""
    every_n_layers: int = field(default=1, metadata=limits(1))
    """Adapters on every n-th layer (the paper's N)."""


@dataclass(kw_only=True)
class StageMethod:
    """What one stage trains, and from where."""

    numbers: str = MISSING
    """Key of `model.recipe.stages`."""
    start: str | None = None
    """The stage whose result it starts from, or "base"; null: the stage before it."""
    identifier: bool = True
    """Train the identifier rows in this stage."""
    parameters: list[str] = field(default_factory=list)
    """Patterns (fnmatch) of transformer parameters to train."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters to train instead of `parameters`."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """Further things to train, by names of one's own: `_target_` of an `adapters.base.Adapter`, arguments."""

    @property
    def changes_network(self) -> bool:
        """It trains more than the identifier rows."""
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
    """One stage, complete: `trains` says what, `numbers` how, `start` from which stage's result."""

    name: str
    trains: StageMethod
    numbers: StageNumbers
    start: str = "base"


@dataclass(kw_only=True)
class MethodConfig:
    """Stages in order, by names of one's own."""

    name: str = MISSING
    base_bits: int = field(default=16, metadata=limits(4, 16))
    """4: the blocks' matrices are kept in four bits while LoRA trains over them; 16: in `model.dtype`."""
    stages: dict[str, StageMethod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        earlier = ["base"]
        for name, stage in self.stages.items():
            if not STAGE_NAME.fullmatch(name) or name == "base":
                raise ValueError(
                    f"method.stages.{name}: a stage's name is small letters, digits and _, and not base"
                )
            if stage.start is not None:
                one_of(f"method.stages.{name}.start", stage.start, tuple(earlier))
            earlier.append(name)
        if self.base_bits not in (4, 16):
            raise ValueError(f"method.base_bits={self.base_bits} is not known; allowed: 4, 16")
        if self.base_bits == 4 and any(stage.parameters for stage in self.stages.values()):
            raise ValueError("method.base_bits=4 holds the base still: train with lora.rank, not parameters")


@dataclass(kw_only=True)
class DecoderConfig:
    """The sampler of images: `_target_` is a decoder class, the rest its settings; null: not its own."""

    _target_: str = MISSING
    cfg_scale: float = field(default=II("model.sampling.cfg_scale"), metadata=limits(0, 1000))
    """Strength of classifier-free guidance; 1: none."""
    top_k: int = field(default=II("model.sampling.top_k"), metadata=limits(0))
    """A code is drawn from so many likeliest ones; 0: off."""
    top_p: float = field(default=II("model.sampling.top_p"), metadata=limits(1e-6, 1))
    """Least probability, from the largest, that a code is drawn from; 1: off."""
    temperature: float = field(default=II("model.sampling.temperature"), metadata=limits(0, 1000))
    """Divides the logits; 0: always the likeliest code."""
    window: int | None = field(default=None, metadata=limits(2))
    """decoder=jacobi: codes that one forward looks at."""
    max_batch: int | None = field(default=None, metadata=limits(1))
    """decoder=jacobi: images decoded speculatively at once; see docs/sampling.md for larger batches."""
    bucket: int | None = field(default=None, metadata=limits(1))
    """decoder=compiled: slots by which the length of cache that a step reads is rounded up."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further settings of a decoder from outside of this package; `_target_` may be here too."""

    def __post_init__(self) -> None:
        if not self.settings["_target_"].startswith("personalar.generation.decoders."):
            return  # it says itself what it takes
        own = {"JacobiDecoder": ("window", "max_batch"), "CompiledDecoder": ("bucket",)}
        for target, names in own.items():
            for name in names:
                value, mine = getattr(self, name), self._target_.endswith(target)
                if mine and value is None:
                    raise ValueError(f"decoder.{name}=null: {target} needs a value; leave this out")
                if value is not None and not mine:
                    raise ValueError(
                        f"decoder.{name}={value} does not suit {self._target_.split('.')[-1]}: it is for "
                        f"{target} and null elsewhere; choose another decoder=..."
                    )

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the decoder (`hydra.utils.instantiate`)."""
        named = asdict(self)
        from_outside = named.pop("arguments")
        return {name: value for name, value in named.items() if value is not None} | from_outside


@dataclass(kw_only=True)
class RunConfig:
    """`python -m personalar.run`."""

    model: ModelConfig = MISSING
    subject: SubjectConfig = MISSING
    stage: StageSelection = MISSING
    method: MethodConfig = MISSING
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING
    memory: MemoryConfig = MISSING
    optimizer: dict[str, Any] = field(default_factory=dict)
    """`_target_` of an optimizer and its arguments; parameters, rates and weight decay are a stage's."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a torch scheduler of the rate, which moves by step; "{steps}" is the stage's number."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by a name of one's own: `_target_` and arguments; null: left out."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning loggers in the same form; "{folder}", "{stage}" and "{part}" are filled in."""
    scorer: ScorerConfig = MISSING
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = field(default=0, metadata=SEED)
    """Of the identifier's start, the crops and the batches."""
    objective: list[str] = field(default_factory=lambda: ["dino*clip_t"])
    """Values for a sweeper: measures of the last stage in summary.json, "*" multiplies them."""
    reuse: str | None = None
    """Folder of a run whose stage 1 is taken over, where this run would learn the same; null: learn it."""
    overwrite: bool = False
    """Delete what an earlier run wrote in the run folder, and nothing else, and start afresh."""

    def __post_init__(self) -> None:
        for name, stage in self.method.stages.items():
            if stage.numbers not in self.model.recipe.stages:
                raise ValueError(
                    f"method.stages.{name}.numbers={stage.numbers!r} is not in model.recipe.stages; "
                    f"allowed: {', '.join(self.model.recipe.stages)}"
                )
        target = self.optimizer.get("_target_")
        if self.memory.optimizer is not None and target != "torch.optim.AdamW":
            raise ValueError(
                f"memory.optimizer={self.memory.optimizer} chooses between forms of AdamW, and the optimizer "
                f"is {target}: leave memory.optimizer out, or take optimizer=adamw"
            )
        data = self.model.recipe.data
        for stage in self.method.stages.values():
            replays = self.model.recipe.stages[stage.numbers].replay_ratio > 0
            if replays and not (data.replay_images and (data.replay_prompts or data.replay_prompts_live)):
                raise ValueError(
                    f"model.recipe.stages.{stage.numbers}.replay_ratio has no class images to replay: set "
                    "model.recipe.data.replay_images and model.recipe.data.replay_prompts, or replay_ratio=0"
                )
        if self.stage.run == []:
            raise ValueError(
                f"stage.run=[] names no stage of method={self.method.name}; allowed: "
                f"{', '.join(self.method.stages)}"
            )
        for name in self.stage.run or ():
            one_of("stage.run", name, tuple(self.method.stages))

    @property
    def selected(self) -> list[str]:
        """Names of the stages to run now."""
        return list(self.method.stages) if self.stage.run is None else self.stage.run

    @property
    def photo_warnings(self) -> list[str]:
        """Warnings about base and judges where the subject is real photographs."""
        if not self.subject.photographs:
            return []
        return [text for text in (self.model.photo_warning, self.scorer.warning(photographs=True)) if text]


STAGES = "model.recipe.stages"
READ_IF: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "samples.prior_images": (lambda c: "prior" in c.samples.kinds, "samples.kinds=[subject,prior]"),
    "samples.time_share": (lambda c: c.samples.grid_every_steps > 0, "samples.grid_every_steps above 0"),
    "scorer.clip_text": (lambda c: c.scorer.scores, "a scorer"),
    "scorer.dino_preprocess": (lambda c: c.scorer.scores, "a scorer"),
    "scorer.likeness_weight": (lambda c: c.scorer.scores, "a scorer"),
    "model.recipe.identifier.words": (
        lambda c: c.model.recipe.identifier.init == "words",
        "model.recipe.identifier.init=words",
    ),
    "model.recipe.betas": (lambda c: "betas" in c.optimizer, "optimizer=adamw"),
    "model.recipe.trained_weights": (
        lambda c: any(s.parameters == c.model.recipe.trained_weights for s in c.method.stages.values()),
        "method=paper or method=joint; other methods say themselves what they train",
    ),
    "trainer.checkpoint_every_steps": (lambda c: bool(c.callbacks.get("checkpoint")), "callbacks.checkpoint"),
    "subject.seed": (lambda c: not c.subject.photographs, "a rendered subject"),
}
"""Setting -> whether a run reads it, and what else it needs."""


def check_read(config: RunConfig, words: Iterable[str]) -> None:
    """Raise ValueError for one of the arguments `words` that changes nothing in this run."""
    if found := unread(config, words):
        raise ValueError(found)


def unread(config: RunConfig, words: Iterable[str]) -> str | None:
    """Return a sentence about one of the arguments `words` that changes nothing in this run, or None."""
    read = {stage.numbers: None for stage in config.method.stages.values()}
    for word in words:
        key = key_of(word)
        parts = key.removeprefix(f"{STAGES}.").split(".")
        if key.startswith(f"{STAGES}.") and parts[0] not in read:
            rest = ".".join(parts[1:])
            ways = " or ".join(f"{STAGES}.{name}.{rest}".rstrip(".") for name in read)
            return f"method={config.method.name} does not read {key}: set {ways}"
        is_read, needs = READ_IF.get(key, (lambda _: True, ""))
        if not is_read(config):
            return f"this run does not read {key}, which needs {needs}"
    return None
