"""The knobs of the small commands: doctor, export, adopt. Those of run and sample stand in config.py."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from personalar.config import ModelConfig, TrainerConfig


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
    """Write the whole transformer too, with the learned weights in it, as Lumina-mGPT's own code reads it."""
    model: ModelConfig = MISSING


@dataclass(kw_only=True)
class AdoptConfig:
    """`python -m personalar.adopt`."""

    embeds: str = MISSING
    """A learned_embeds.safetensors of one key."""
    lora: str | None = None
    """Folder of a PEFT adapter for the same model."""
    noun: str = MISSING
    """The class in plain words, for instance dog."""
    name: str = "adopted"
    """What the subject is called."""
    out: str = MISSING
    """Folder for the concept."""
    model: ModelConfig = MISSING
