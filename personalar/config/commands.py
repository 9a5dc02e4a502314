"""Settings of the commands sample, doctor, export, push and evaluate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os.path import expanduser
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import SEED, limits, one_of
from personalar.config.run_config import DecoderConfig, ModelConfig, RunConfig, ScorerConfig, TrainerConfig

TASKS = ("benchmark", "calibrate", "agreement", "table")
PROTOCOLS = {"paper": 1, "dreambooth": 4}
"""Images per prompt: arXiv 2504.13162 uses one (750 in total), DreamBooth four (3000)."""

NAME = re.compile(r"(?!(V|S\d+)$)[A-Za-z0-9_.-]{1,60}")
"""Names of concepts in prompts, without brackets; the others are names of learned tokens."""
BENCHMARKS = ("rendered", "dreambench", "dreambench_plus")
"""Kinds of benchmarks; all but the first have photographs, which are not part of this package."""


MOST_IMAGES = 10_000
"""Pictures of one prompt."""


@dataclass(kw_only=True)
class VariationConfig:
    """Values of one sampling setting, which are drawn side by side; the others are null."""

    prompt: list[str] | None = None
    """Prompts."""
    seed: list[int] | None = field(default=None, metadata=SEED)
    """Seeds."""
    guidance: list[float] | None = field(default=None, metadata=limits(0, 1000))
    """Values of `decoder.cfg_scale`."""
    top_k: list[int] | None = field(default=None, metadata=limits(0))
    """Values of `decoder.top_k`."""
    top_p: list[float] | None = field(default=None, metadata=limits(1e-6, 1))
    """Values of `decoder.top_p`."""
    temperature: list[float] | None = field(default=None, metadata=limits(0, 1000))
    """Values of `decoder.temperature`."""
    strength: list[float] | None = field(default=None, metadata=limits(0, 1.5))
    """Values of `strength`, for every concept."""
    negative_prompt: list[str] | None = None
    """Negative prompts."""
    size: list[str] | None = None
    """Sizes, as in `size`."""


@dataclass(kw_only=True)
class GridConfig:
    """Two sampling settings that are varied, for one picture and page of all combinations."""

    x: VariationConfig = field(default_factory=VariationConfig)
    """The columns."""
    y: VariationConfig = field(default_factory=VariationConfig)
    """The rows."""


@dataclass(kw_only=True)
class SampleConfig:
    """`python -m personalar.sample`."""

    concept: Any = MISSING
    """A concept folder, or the folder of a finished run; a list of them for pictures of several subjects."""
    names: list[str] = field(default_factory=list)
    """A name for each concept; with names=[rex] prompts contain [rex]. Empty: the names of the subjects."""
    strength: Any = field(default=1.0, metadata=limits(0, 1.5))
    """1: the concept as learned, 0: its class word instead; a number, or a list with one for each concept."""
    prompts: list[str] = field(default_factory=list)
    """Prompts with [V] before the class: "a photo of [V] cat in the snow"; of several concepts each has its
    own word, such as [cat]."""
    prompts_file: str | None = None
    """Text file with one prompt per line, and options of the line after "|" (`seed=7 guidance=3`); empty
    lines and lines that begin with # are skipped."""
    wildcards: str | None = None
    """Folder of word lists: `__colour__` in a prompt becomes a line of colour.txt, chosen by the seed."""
    negative_prompt: str | None = None
    """What the pictures should not show; needs guidance, and a base that takes a negative prompt."""
    like: str | None = None
    """A PNG written by this command; its prompt, seed, size and sampling settings are used again."""
    seeds: Any = field(default_factory=lambda: [0], metadata=SEED)
    """Every prompt is sampled with every seed: a list, one seed, or range(0,8)."""
    num_images: int | None = field(default=None, metadata=limits(1, MOST_IMAGES))
    """Pictures of each prompt, with consecutive seeds from the one in `seeds` on; null: one per seed."""
    grid: GridConfig = field(default_factory=GridConfig)
    """Draw all combinations of two settings: `grid.x.guidance=[1,2,4] grid.y.seed=[0,1]`."""
    size: str | None = None
    """Width x height in pixels, one of the base's sizes ("608x416"); null: the base's square."""
    out: str = "samples"
    """Folder for the PNG files."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """Adapters that the concept may contain, by name: `_target_` and its arguments."""
    model: ModelConfig = MISSING
    decoder: DecoderConfig = MISSING
    trainer: TrainerConfig = MISSING

    def __post_init__(self) -> None:
        self._check_concepts()
        given = self.seeds if isinstance(self.seeds, list) else [self.seeds]
        if not given or any(type(seed) is not int for seed in given):
            raise ValueError(
                f"seeds={self.seeds} must be whole numbers: a list [0,1,2], one seed, or range(0,8)"
            )
        self.seeds = given
        self.out = expanduser(self.out)
        for name in ("devices", "num_nodes", "strategy", "precision"):
            usual = getattr(TrainerConfig, name)
            if (value := getattr(self.trainer, name, usual)) != usual:
                raise ValueError(
                    f"trainer.{name}={value} is for training; pictures are sampled by one process in "
                    f"model.dtype: leave trainer.{name} out, and choose trainer=auto, cpu or gpu"
                )

    def _check_concepts(self) -> None:
        if not self.concepts or not all(isinstance(where, str) for where in self.concepts):
            raise ValueError(f"concept={self.concept!r}: give a folder, or a list such as concept=[cat,hat]")
        numbers = self.strength if isinstance(self.strength, list) else [self.strength]
        if not numbers or not all(type(number) in (int, float) for number in numbers):
            raise ValueError(f"invalid value strength={self.strength!r}; allowed: numbers from 0 to 1.5")
        for key, found in (("names", self.names), ("strength", self.strength)):
            if isinstance(found, list) and found and len(found) != len(self.concepts):
                raise ValueError(f"{key}={found} has {len(found)} values for {len(self.concepts)} concepts")
        for name in self.names:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"names={self.names}: {name!r:.80} cannot be a name in prompts; allowed: letters, "
                    "digits, _, . and -, but not V, S1, S2, ..."
                )

    @property
    def concepts(self) -> list[str]:
        """The folders in `concept`."""
        return list(self.concept) if isinstance(self.concept, list) else [self.concept]

    @property
    def strengths(self) -> list[float]:
        """One strength per concept."""
        if isinstance(self.strength, list):
            return [float(number) for number in self.strength]
        return [float(self.strength)] * len(self.concepts)


@dataclass(kw_only=True)
class PhotosConfig:
    """Photos that `personalar.doctor` looks at."""

    path: str | None = None
    """Folder of photos; null: no photos."""
    noun: str = ""
    """The class of the subject, to show where captions name it."""

    def __post_init__(self) -> None:
        if self.noun and self.path is None:
            raise ValueError(
                f"subject.noun={self.noun} has no effect without photos: set subject.path=DIR or leave it out"
            )


@dataclass(kw_only=True)
class DoctorConfig:
    """`python -m personalar.doctor`."""

    subject: PhotosConfig = field(default_factory=PhotosConfig)
    model: ModelConfig = MISSING
    trainer: TrainerConfig = MISSING


@dataclass(kw_only=True)
class ExportConfig:
    """`python -m personalar.export`."""

    concept: str = MISSING
    """A concept folder, or the folder of a finished run."""
    out: str = MISSING
    """Folder for the files."""
    checkpoint: bool = False
    """Also write the whole model with the learned weights merged, in the format of the base's files."""
    model: ModelConfig = MISSING


@dataclass(kw_only=True)
class PushConfig:
    """`python -m personalar.push`."""

    concept: str = MISSING
    """A concept folder, or the folder of a finished run."""
    repo: str = MISSING
    """Repository on the hub, OWNER/NAME; created if it does not exist."""
    private: bool = True
    """Only its owner sees the repository; false: everybody does."""
    dry_run: bool = False
    """Show what would be uploaded, without contacting the hub."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The subjects and methods of a benchmark."""

    name: str = MISSING
    kind: str = "rendered"
    """"rendered" (subjects of the nano world), "dreambench", "dreambench_plus" (both: photographs)."""
    path: str | None = None
    """Folder in DreamBench's or DreamBench++'s layout; photographs only. null: DreamBench++ is downloaded
    from the Hugging Face hub."""
    revision: str = "main"
    """Branch or commit of DreamBench++ on the hub, without `path`."""
    subjects: list[str] | None = None
    """Names of subjects; null: all that are found in `path`."""
    methods: list[str] = field(default_factory=lambda: ["two_stage", "one_stage", "dreambooth", "lora"])
    """Options of `experiment=paper/` or of `method`, also your own. The others are compared with the first,
    whose stage 1 is the table's row for textual inversion."""
    published: dict[str, float] = field(default_factory=dict, metadata=limits(0))
    """Published scores of real photographs for `calibrate`: dino, clip_i, subjects (their number)."""

    def __post_init__(self) -> None:
        one_of("benchmark.kind", self.kind, BENCHMARKS)
        for measure in self.published:
            one_of("benchmark.published", measure, ("dino", "clip_i", "subjects"))
        # The first method is the reference of the table.
        if not self.methods:
            raise ValueError("benchmark.methods is empty: name at least one, benchmark.methods=[two_stage]")
        if self.subjects is not None and not self.subjects:
            raise ValueError(
                "benchmark.subjects is empty: name at least one, benchmark.subjects=[cat], or null for all"
            )
        if self.kind == "rendered" and self.path is not None:
            raise ValueError(
                f"benchmark.path={self.path}: the subjects of benchmark={self.name} are rendered and read no "
                "photographs; choose benchmark=dreambench or benchmark=dreambench_plus"
            )
        if self.kind == "dreambench" and self.path is None:
            raise ValueError(
                "benchmark=dreambench needs benchmark.path=DIR, a folder of its photographs in the original "
                "layout: git clone https://github.com/google/dreambooth DIR"
            )

    @property
    def photographs(self) -> bool:
        """True if the subjects are real photographs."""
        return self.kind != "rendered"


@dataclass(kw_only=True)
class EvaluateConfig:
    """`python -m personalar.evaluate`."""

    task: str = "benchmark"
    """"benchmark", "calibrate" (check the scorers), "agreement" (compare the scorers with human ratings or
    with planted faults) or "table" (print the tables of finished runs again)."""
    benchmark: BenchmarkConfig = MISSING
    scorer: ScorerConfig = MISSING
    protocol: str = "paper"
    """"paper" (one image per prompt) or "dreambooth" (four)."""
    ratings: str | None = None
    """Folder of human ratings in the format of DreamBench++; task=agreement only."""
    out: str = "outputs/${benchmark.name}"
    """Folder for the runs and the tables."""

    def __post_init__(self) -> None:
        self.out = expanduser(self.out)
        one_of("task", self.task, TASKS)
        one_of("protocol", self.protocol, tuple(PROTOCOLS))
        if self.ratings is not None and self.task != "agreement":
            raise ValueError(f"ratings={self.ratings} is read by task=agreement alone")
        if self.task != "table":  # which only reads scores that exist already
            self.scorer.check_decides(
                "an agreement with people" if self.ratings else f"benchmark={self.benchmark.name}",
                photographs=self.benchmark.photographs or self.ratings is not None,
                otherwise="scorer=none (no scores)" if self.task == "benchmark" else None,
            )


COMMANDS: dict[str, Any] = {
    "run": RunConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "doctor": DoctorConfig,
}
"""The configuration of each command: `python -m personalar.NAME`, conf/NAME.yaml."""
