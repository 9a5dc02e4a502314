"""The settings of sample, doctor, export and evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import SEED, limits, one_of
from personalar.config.run_config import DecoderConfig, ModelConfig, ScorerConfig, TrainerConfig

TASKS = ("benchmark", "calibrate", "table")
PROTOCOLS = {"paper": 1, "dreambooth": 4}
"""Images for each prompt: arXiv 2504.13162 draws one (750 in all), DreamBooth four (3000)."""


@dataclass(kw_only=True)
class SampleConfig:
    """`python -m personalar.sample`."""

    concept: str = MISSING
    """A concept folder, or a run folder that holds one."""
    prompts: list[str] = field(default_factory=list)
    """Prompts with [V] where the subject's name goes: "a photo of [V] cat in the snow"."""
    prompts_file: str | None = None
    """A text file of prompts, one a line; empty lines and those that begin with # are left out."""
    like: str | None = None
    """A PNG that this command wrote, to be drawn again: its prompt, seed, size and drawing settings."""
    seeds: list[int] = field(default_factory=lambda: [0], metadata=SEED)
    """Every prompt is drawn with each."""
    size: str | None = None
    """Width x height in pixels, one of the base's sizes ("608x416"); null: its square."""
    out: str = "samples"
    """Folder for the PNG files."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """`_target_` and arguments of the adapters of one's own that the concept contains, by name."""
    model: ModelConfig = MISSING
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING


@dataclass(kw_only=True)
class DoctorConfig:
    """`python -m personalar.doctor`."""

    model: ModelConfig = MISSING
    trainer: TrainerConfig = MISSING


@dataclass(kw_only=True)
class ExportConfig:
    """`python -m personalar.export`."""

    concept: str = MISSING
    """A concept folder, or a run folder that holds one."""
    out: str = MISSING
    """Folder for the files."""
    checkpoint: bool = False
    """Write the whole model too, with the learned weights in it, norms formed as the base's own files."""
    model: ModelConfig = MISSING


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The subjects to learn and the methods to learn them by."""

    name: str = MISSING
    kind: str = "rendered"
    """"rendered" (named choices of subject) or "dreambench" (photographs in a folder)."""
    path: str | None = None
    """Folder in DreamBench's layout; kind=dreambench only."""
    subjects: list[str] | None = None
    """Names; null: all that lie in `path`."""
    methods: list[str] = field(default_factory=lambda: ["two_stage", "one_stage", "dreambooth", "lora"])
    """Names in conf/experiment/paper or conf/method; the first is what the others are compared with, and its
    stage 1 is the table's textual inversion."""
    published: dict[str, float] = field(default_factory=dict, metadata=limits(0))
    """The published row of real photographs, for `calibrate`: dino, clip_i, subjects."""
    tolerance: float = field(default=0.01, metadata=limits(0, 1))
    """Largest distance from the published row at which `calibrate` passes."""

    def __post_init__(self) -> None:
        one_of("benchmark.kind", self.kind, ("rendered", "dreambench"))
        if not self.methods:
            raise ValueError("benchmark.methods is empty: name at least one, benchmark.methods=[two_stage]")
        if self.kind == "dreambench" and self.path is None:
            raise ValueError(
                "benchmark=dreambench needs benchmark.path=DIR, a folder of its photographs in the original "
                "layout: git clone https://github.com/google/dreambooth DIR"
            )

    @property
    def photographs(self) -> bool:
        """Its subjects are real photographs."""
        return self.kind != "rendered"


@dataclass(kw_only=True)
class EvaluateConfig:
    """`python -m personalar.evaluate`."""

    task: str = "benchmark"
    """"benchmark", "calibrate" (the judges) or "table" (once more)."""
    benchmark: BenchmarkConfig = MISSING
    scorer: ScorerConfig = MISSING
    protocol: str = "paper"
    """"paper" (one image a prompt) or "dreambooth" (four)."""
    kinds: list[str] = field(
        default_factory=lambda: ["subject", "class", "description", "prior", "unrelated"]
    )
    """Samples besides those of the subject; see samples.kinds."""
    jobs: int = field(default=1, metadata=limits(1))
    """Subjects at a time; with GPUs, one process for each GPU in turn."""
    launcher: str | None = None
    """Hydra launcher that does each run as a job of its own: joblib, submitit_local, submitit_slurm."""
    out: str = "outputs/${benchmark.name}"
    """Folder for the runs and the tables."""

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        one_of("protocol", self.protocol, tuple(PROTOCOLS))
        if self.task != "table":  # it uses no judges
            self.scorer.check_decides(
                f"benchmark={self.benchmark.name}",
                photographs=self.benchmark.photographs,
                otherwise="scorer=none (no scores)" if self.task == "benchmark" else None,
            )
