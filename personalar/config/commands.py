"""The knobs of the smaller commands: sample, doctor, export. Those of run stand in config.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from personalar.config.recipe import one_of
from personalar.config.run_config import DecoderConfig, ModelConfig, TrainerConfig

FORMATS = ("exact", "int8", "fp8")


@dataclass(kw_only=True)
class LossyConfig:
    """What takes less memory and changes the pictures; all off by default."""

    cache: str = "exact"
    """Keys and values: exact, int8 or fp8."""
    weights: str = "exact"
    """Matrices of the blocks: exact, int8 or fp8 (torchao)."""

    def __post_init__(self) -> None:
        one_of("lossy.cache", self.cache, FORMATS)
        one_of("lossy.weights", self.weights, FORMATS)


@dataclass(kw_only=True)
class SampleConfig:
    """`python -m personalar.sample`."""

    concept: str = MISSING
    """A concept folder, or a run folder that holds one."""
    prompts: list[str] = MISSING
    """Prompts with [V] where the subject's name goes: "a photo of [V] cat in the snow"."""
    seeds: list[int] = field(default_factory=lambda: [0])
    size: str | None = None
    """Width x height in pixels, one of the base's sizes ("608x416"); null: its square."""
    out: str = "samples"
    """Folder for the PNG files."""
    lossy: LossyConfig = field(default_factory=LossyConfig)
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
