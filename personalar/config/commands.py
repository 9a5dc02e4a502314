"""The knobs of the smaller commands: sample, doctor, export. Those of run stand in config.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from personalar.config.run_config import DecoderConfig, ModelConfig, TrainerConfig


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
