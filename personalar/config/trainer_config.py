"""Settings of the machine: devices, processes and memory. Values: conf/trainer, conf/memory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import limits, one_of

ACCELERATORS = ("cpu", "gpu", "auto")


@dataclass(kw_only=True)
class LightningArguments:
    """Arguments that are passed to `lightning.Trainer` as they are; null: its default.

    `fields.SET_ELSEWHERE` has those that another setting determines.
    """

    precision: Any = None
    num_sanity_val_steps: Any = 0
    log_every_n_steps: Any = 1
    enable_checkpointing: Any = None
    enable_progress_bar: Any = None
    enable_model_summary: Any = False
    gradient_clip_algorithm: Any = None
    deterministic: Any = None
    benchmark: Any = None
    profiler: Any = None
    detect_anomaly: Any = None
    barebones: Any = None
    plugins: Any = None
    enable_autolog_hparams: Any = None
    model_registry: Any = None

    @property
    def chosen(self) -> dict[str, Any]:
        """The arguments that are not null."""
        values = {field.name: getattr(self, field.name) for field in fields(LightningArguments)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(kw_only=True)
class TrainerConfig(LightningArguments):
    """Devices and processes. Results do not depend on them, except for floating-point rounding.

    Other arguments of `lightning.Trainer` can be set by their own names; precision and
    gradient_clip_algorithm change what is learned.
    """

    name: str = MISSING
    _target_: str = "lightning.Trainer"
    accelerator: str = "cpu"
    """"cpu", "gpu", or "auto" (a GPU if torch finds one)."""
    devices: int = field(default=1, metadata=limits(1, 4096))
    """Processes per machine."""
    num_nodes: int = field(default=1, metadata=limits(1))
    """Number of machines; start the same command on each with torchrun or srun."""
    strategy: str = "single"
    """"single" (one process), "ddp", or DeepSpeed's "zero2", "zero3", "zero3_offload" (to host memory)."""
    threads: Any = field(default="auto", metadata=limits(1, 4096))
    """Torch threads; auto: OMP_NUM_THREADS if set, else the free cores."""
    compile_blocks: bool = False
    """Use torch.compile for each block in training: slower to start, faster per step on a GPU."""
    checkpoint_every_steps: int = field(default=25, metadata=limits(1))
    """Steps between checkpoints: at most this many steps are lost if the process is killed."""

    @property
    def torch_device(self) -> str:
        """The accelerator as a torch device: "cuda" or "cpu"."""
        return "cuda" if self.accelerator == "gpu" else self.accelerator

    def __post_init__(self) -> None:
        one_of("trainer.accelerator", self.accelerator, ACCELERATORS)
        name = str(self.precision)
        # These convert the trained parameters, which are float32 so that small steps are not rounded away.
        if name == "64" or (name.endswith("-true") and name != "32-true"):
            raise ValueError(
                f"trainer.precision={name} would convert the trained parameters, which are float32: set "
                "model.dtype for the frozen base, or a precision that ends in -mixed"
            )
        if self.accelerator == "auto":
            self.accelerator = "gpu" if _sees_gpu() else "cpu"
        one_of("trainer.strategy", self.strategy, ("single", "ddp", "zero2", "zero3", "zero3_offload"))
        if self.strategy == "single" and self.devices * self.num_nodes > 1:
            raise ValueError(
                f"trainer={self.name} runs in one process, but trainer.devices={self.devices} and "
                f"trainer.num_nodes={self.num_nodes}: choose trainer=ddp, zero2, zero3 or zero3_offload"
            )
        if self.threads != "auto" and (not isinstance(self.threads, int) or self.threads < 1):
            raise ValueError(
                f"invalid value trainer.threads={self.threads!r}; allowed: auto or an integer from 1"
            )


def _sees_gpu() -> bool:
    import torch  # deferred: it takes seconds, and errors in the command line should appear at once

    return torch.cuda.is_available()


def check_devices(trainer: TrainerConfig) -> None:
    """Raise ValueError if this machine does not have the GPUs that `trainer` needs."""
    if trainer.accelerator != "gpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        raise ValueError(f"trainer={trainer.name} needs a GPU, and torch finds none: choose trainer=cpu")
    if trainer.devices > found:
        raise ValueError(f"trainer.devices={trainer.devices} is out of range; allowed: 1 to {found} here")


@dataclass(kw_only=True)
class MemoryConfig:
    """How training is fitted into memory; results differ by rounding only."""

    name: str = MISSING
    gigabytes: float | None = field(default=None, metadata=limits(0.001))
    """Available memory per device in 10^9 bytes; null: all memory of the device."""
    recompute: bool | None = None
    """Activation checkpointing: recompute each block in the backward pass; null: only if necessary."""
    split_batch: bool = True
    """Split a batch into micro-batches if necessary; an optimizer step sees the same sequences."""
