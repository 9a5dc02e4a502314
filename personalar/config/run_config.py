"""Every knob of the program on one page: one dataclass per config group, each value declared once.

The YAML files in `conf/` hold named choices of these values; a key that is not declared here does not exist.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import II, MISSING

from personalar.config.layout import ProtocolConfig
from personalar.config.recipe import RecipeConfig, StageNumbers, one_of
from personalar.config.scorer_config import ScorerConfig
from personalar.config.trainer_config import ACCELERATORS, LoggerConfig, MemoryConfig, TrainerConfig


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
class HubFiles:
    """Files of one Hugging Face repository, and what to know before they are downloaded."""

    repo: str = MISSING
    """owner/name."""
    revision: str = "main"
    """Commit or branch; "main" is whatever the repository holds that day."""
    licence: str = MISSING
    """One line; the repository's page has the text to accept."""
    files: list[str] = field(default_factory=list)
    """Names or patterns of what is needed."""
    gigabytes: float = MISSING
    """About how much that is, in 1e9 bytes."""


@dataclass(kw_only=True)
class ModelConfig:
    """A base model: where its weights lie and what suits it."""

    name: str = MISSING
    path: str | None = None
    """Folder of weights; "package://x" lies inside the installed package; null: from `hub`."""
    vq_path: str | None = None
    """Folder of the image tokenizer, where it is not in `path`; null: there, or from `vq_hub`."""
    hub: HubFiles | None = None
    vq_hub: HubFiles | None = None
    tokenizer_hub: HubFiles | None = None
    """Repositories of the image and of the text tokenizer, where the model's has none."""
    layout: ProtocolConfig | None = None
    """Image sizes and sequence layout; null: what `protocol.json` in the folder says."""
    dtype: str = "float32"
    float16_problem: str | None = None
    """Why dtype=float16 is refused; null: it is not."""
    accelerator: str = "cpu"
    """What trainer=auto takes: "cpu", "gpu", or "auto", a GPU if torch sees one."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    sampling: SamplingNumbers = field(default_factory=SamplingNumbers)
    photo_warning: str | None = None
    """Said when the subject is real photographs."""

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if self.dtype == "float16" and self.float16_problem:
            raise ValueError(
                f"model.dtype=float16 is refused for model={self.name}: {self.float16_problem}; choose "
                "model.dtype=bfloat16, or float32, which takes twice the memory"
            )
        one_of("model.accelerator", self.accelerator, ACCELERATORS)
        if self.path is None and self.hub is None:
            raise ValueError(f"model={self.name} says nowhere where its weights are: set model.path=DIR")


@dataclass(kw_only=True)
class SubjectConfig:
    """What to learn."""

    kind: str = "rendered"
    """"rendered" (a fixed instance of the embedded world) or "folder" (one's own photos)."""
    name: str = MISSING
    """Names the run folder; no path."""
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

    @property
    def photographs(self) -> bool:
        """Whether the pictures are real photographs."""
        return self.kind != "rendered"


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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, complete: `trains` says what, `numbers` how."""

    name: str
    trains: StageMethod
    numbers: StageNumbers


@dataclass(kw_only=True)
class MethodConfig:
    """An ordered set of stages ("embedding", "transformer"); each starts from what the one before left."""

    name: str = MISSING
    base_bits: int = 16
    """4: the blocks' matrices are kept in four bits while LoRA trains over them; 16: in `model.dtype`."""
    stages: dict[str, StageMethod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.stages:
            one_of("method.stages", name, ("embedding", "transformer"))
        if self.base_bits not in (4, 16):
            raise ValueError(f"method.base_bits={self.base_bits} is not known; allowed: 4, 16")
        if self.base_bits == 4 and any(stage.parameters for stage in self.stages.values()):
            raise ValueError("method.base_bits=4 holds the base still: train with lora.rank, not parameters")


@dataclass(kw_only=True)
class DecoderConfig:
    """How images are sampled; `_target_` is a decoder class, the rest its settings; null: not its own."""

    _target_: str = MISSING
    cfg_scale: float = II("model.sampling.cfg_scale")
    top_k: int = II("model.sampling.top_k")
    top_p: float = II("model.sampling.top_p")
    temperature: float = II("model.sampling.temperature")
    window: int | None = None
    """decoder=jacobi: codes that one forward looks at."""
    max_batch: int | None = None
    """decoder=jacobi: images decoded speculatively at once; see docs/sampling.md for larger batches."""
    bucket: int | None = None
    """decoder=compiled: slots by which the length of cache that a step reads is rounded up."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What a decoder from outside of this package takes besides; `_target_` may stand here too."""

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
        """What makes the decoder (`hydra.utils.instantiate`)."""
        named = asdict(self)
        from_outside = named.pop("arguments")
        return {name: value for name, value in named.items() if value is not None} | from_outside


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
    time_share: float = 0.3
    """Largest part of a stage's time that grids may take (0 to 1); what would go beyond is left out."""
    kinds: list[str] = field(default_factory=lambda: ["subject", "class", "description"])
    """"subject", "class" (without [V]), "description" (base only), "prior" (one class prompt, many seeds:
    PRES and diversity), "unrelated" (other things: drift)."""
    prior_images: int = 8
    """Seeds of the kind "prior"."""

    def __post_init__(self) -> None:
        one_of("samples.prompt_set", self.prompt_set, ("world", "dreambench"))
        for kind in self.kinds:
            one_of("samples.kinds", kind, ("subject", "class", "description", "prior", "unrelated"))
        if "subject" not in self.kinds:
            raise ValueError(f"samples.kinds={self.kinds} must hold subject, which grids and scores show")
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
    memory: MemoryConfig = MISSING
    logger: LoggerConfig = MISSING
    scorer: ScorerConfig = MISSING
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = 0
    """Of the identifier's start, the crops and the batches."""
    objective: list[str] = field(default_factory=lambda: ["dino*clip_t"])
    """What a sweeper is told: measures of the last stage in summary.json, "*" multiplies them."""
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
        missing = [name for name in self.stage.run if name not in self.method.stages]
        if missing and self.stage.name != "both":
            raise ValueError(
                f"stage={missing[0]} does not exist in method={self.method.name}; allowed: both, "
                f"{', '.join(self.method.stages)}"
            )

    @property
    def photo_warnings(self) -> list[str]:
        """What to say of base and judges where the subject is real photographs."""
        if not self.subject.photographs:
            return []
        return [text for text in (self.model.photo_warning, self.scorer.warning(photographs=True)) if text]
