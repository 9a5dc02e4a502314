"""Every knob of the program on one page: one dataclass per config group, each value declared once.

The YAML files in `conf/` hold named choices of these values; a key that is not declared here does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II, MISSING

from personalar.recipe import RecipeConfig, one_of, within


@dataclass(kw_only=True)
class SamplingNumbers:
    """The model's sampling defaults; `decoder` takes them unless told otherwise."""

    cfg_scale: float = 1.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    temperature: float = 1.0
    batch: int = 16
    """Images decoded together. An image does not depend on it."""


@dataclass(kw_only=True)
class ModelConfig:
    """A base model: where its weights lie and what suits it."""

    name: str = MISSING
    path: str = MISSING
    """Folder of weights; "package://x" lies inside the installed package."""
    dtype: str = "float32"
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    sampling: SamplingNumbers = field(default_factory=SamplingNumbers)
    photo_warning: str | None = None
    """Said when the subject is real photographs."""

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))


@dataclass(kw_only=True)
class SubjectConfig:
    """What to learn."""

    kind: str = "rendered"
    """"rendered" (a fixed instance of the embedded world) or "folder" (one's own photos)."""
    name: str = MISSING
    """Names the run folder."""
    noun: str = MISSING
    """The class in plain words, for instance dog."""
    seed: int = 0
    """Which instance of the class is rendered."""
    path: str | None = None
    """Folder of photos when kind=folder."""
    live: bool | None = None
    """An animal; null: known from the noun."""
    description: str | None = None
    """The best text description; null: from the renderer, or none."""

    def __post_init__(self) -> None:
        one_of("subject.kind", self.kind, ("rendered", "folder"))


@dataclass(kw_only=True)
class StageSelection:
    """Which stages of the method run now."""

    name: str = MISSING
    run: list[str] = MISSING


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (PEFT) on attention projections."""

    rank: int = 0
    """0: no adapters."""
    every_n_layers: int = 1
    """Adapters on every n-th layer (the paper's N)."""

    def __post_init__(self) -> None:
        within("lora.rank", self.rank, 0)
        within("lora.every_n_layers", self.every_n_layers, 1)


@dataclass(kw_only=True)
class StageMethod:
    """What one stage trains."""

    numbers: str = MISSING
    """Key of `model.recipe.stages`."""
    identifier: bool = True
    """Train the identifier rows in this stage."""
    parameters: list[str] = field(default_factory=list)
    """Patterns (fnmatch) of transformer parameters to train."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters to train in place of `parameters`."""

    def __post_init__(self) -> None:
        if not (self.identifier or self.parameters or self.lora.rank):
            raise ValueError("a stage trains nothing: set identifier=true, parameters=[...] or lora.rank")
        if self.parameters and self.lora.rank:
            raise ValueError("a stage trains either parameters or lora; set parameters=[] or lora.rank=0")


@dataclass(kw_only=True)
class MethodConfig:
    """An ordered set of stages ("embedding", "transformer"); each starts from what the one before left."""

    name: str = MISSING
    stages: dict[str, StageMethod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.stages:
            one_of("method.stages", name, ("embedding", "transformer"))


@dataclass(kw_only=True)
class DecoderConfig:
    """How images are sampled; `_target_` is a decoder class, the rest its arguments."""

    _target_: str = MISSING
    cfg_scale: float = II("model.sampling.cfg_scale")
    top_k: int = II("model.sampling.top_k")
    top_p: float = II("model.sampling.top_p")
    temperature: float = II("model.sampling.temperature")


@dataclass(kw_only=True)
class TrainerConfig:
    """The machine's side of a run; results do not depend on it, up to floating point."""

    name: str = MISSING
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    attention: str = "sdpa"
    """"eager" (explicit softmax; its backward is much faster on a CPU) or "sdpa"."""
    threads: Any = "auto"
    """Torch threads; auto: all cores of an idle machine, 1 on a busy one, where more are ten times slower."""
    checkpoint_every_steps: int = 25
    """How much of a stage a kill can cost."""

    def __post_init__(self) -> None:
        one_of("trainer.attention", self.attention, ("eager", "sdpa"))
        if self.threads != "auto" and (not isinstance(self.threads, int) or self.threads < 1):
            raise ValueError(
                f"trainer.threads={self.threads!r} is not known; allowed: auto or a number from 1"
            )


@dataclass(kw_only=True)
class LoggerConfig:
    """Where curves go besides the CSV files, which are always written."""

    name: str = MISSING
    tensorboard: bool = False
    wandb_project: str | None = None
    """null: no W&B. The key comes from `wandb login` or WANDB_API_KEY, never from here."""
    wandb_offline: bool = False
    wandb_entity: str | None = None
    wandb_group: str | None = None
    """null: the name of the sweep's folder, in a sweep."""
    wandb_tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ScorerConfig:
    """The judges; both null: no scores."""

    name: str = MISSING
    clip: str | None = None
    """Folder or hub id of a CLIP model; "package://x" lies inside the installed package."""
    dino: str | None = None
    """Folder or hub id of a DINO-style vision transformer."""
    dino_preprocess: str = "checkpoint"
    """"checkpoint" (its preprocessor_config.json) or "resize256_crop224" (the DINO authors' evaluation)."""
    clip_text: str = "class"
    """What CLIP-T reads for "[V] cat": "class" (cat) or "prompt" (the very words, "[V]" included)."""

    def __post_init__(self) -> None:
        one_of("scorer.dino_preprocess", self.dino_preprocess, ("checkpoint", "resize256_crop224"))
        one_of("scorer.clip_text", self.clip_text, ("class", "prompt"))


@dataclass(kw_only=True)
class SamplesConfig:
    """What is sampled before, between and after the stages."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Every prompt is sampled once per seed, the same at every stage."""
    prompts: list[str] | None = None
    """Prompts with "{}" where the subject goes; null: those of `prompt_set`."""
    prompt_set: str = "world"
    """"world" (what the rendered world can show) or "dreambench" (the published 25)."""
    num_grid_prompts: int = 6
    """How many of the prompts the sample grids show."""
    grid_every_steps: int = 50
    """Steps between sample grids in training; 0: none."""
    kinds: list[str] = field(default_factory=lambda: ["subject", "class", "description"])
    """"subject", "class" (without [V]), "description" (base only), "prior" (one class prompt, many seeds:
    PRES and diversity), "unrelated" (other things: drift)."""
    prior_images: int = 8
    """Seeds of the kind "prior"."""

    def __post_init__(self) -> None:
        one_of("samples.prompt_set", self.prompt_set, ("world", "dreambench"))
        within("samples.prior_images", self.prior_images, 2)
        for kind in self.kinds:
            one_of("samples.kinds", kind, ("subject", "class", "description", "prior", "unrelated"))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"samples.seeds={self.seeds} must be at least one seed, each once")


@dataclass(kw_only=True)
class RunConfig:
    """`python -m personalar.run`."""

    model: ModelConfig = MISSING
    subject: SubjectConfig = MISSING
    stage: StageSelection = MISSING
    method: MethodConfig = MISSING
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    scorer: ScorerConfig = MISSING
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = 0
    """Of the identifier's start, the crops and the batches."""
    objective: list[str] = field(default_factory=lambda: ["dino*clip_t"])
    """What a sweeper is told: measures of the last stage in summary.json, "*" multiplies them."""
    overwrite: bool = False
    """Delete what an earlier run left in the run folder and start afresh."""

    def __post_init__(self) -> None:
        for name, stage in self.method.stages.items():
            if stage.numbers not in self.model.recipe.stages:
                raise ValueError(
                    f"method.stages.{name}.numbers={stage.numbers!r} is not in model.recipe.stages; "
                    f"allowed: {', '.join(self.model.recipe.stages)}"
                )
        missing = [name for name in self.stage.run if name not in self.method.stages]
        if missing and self.stage.name != "both":
            raise ValueError(
                f"stage={missing[0]} does not exist in method={self.method.name}; allowed: both, "
                f"{', '.join(self.method.stages)}"
            )


@dataclass(kw_only=True)
class SampleConfig:
    """`python -m personalar.sample`."""

    concept: str = MISSING
    """A concept folder, or a run folder that holds one."""
    prompts: list[str] = MISSING
    """Prompts with [V] where the subject's name goes: "a photo of [V] cat in the snow"."""
    seeds: list[int] = field(default_factory=lambda: [0])
    out: str = "samples"
    """Folder for the PNG files."""
    model: ModelConfig = MISSING
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING
