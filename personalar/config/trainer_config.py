"""The machine's side of a run: processes and memory. Values: conf/trainer, conf/memory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import limits, one_of

ACCELERATORS = ("cpu", "gpu", "auto")
STAGE = "model.recipe.stages.NAME"
SET_ELSEWHERE = {
    "max_steps": f"{STAGE}.steps",
    "min_steps": f"{STAGE}.steps",
    "max_epochs": f"{STAGE}.steps (a stage is one endless epoch)",
    "min_epochs": f"{STAGE}.steps (a stage is one endless epoch)",
    "accumulate_grad_batches": f"{STAGE}.accumulate",
    "gradient_clip_val": f"{STAGE}.gradient_clip",
    "val_check_interval": "samples.grid_every_steps",
    "check_val_every_n_epoch": "samples.grid_every_steps",
    "callbacks": "+callbacks.NAME._target_=my_package.MyCallback",
    "logger": "logger=tensorboard or +logger.NAME._target_=my_package.MyLogger",
    "default_root_dir": "hydra.run.dir",
}
"""Arguments that follow from other settings, which are named."""


@dataclass(kw_only=True)
class LightningArguments:
    """See the documentation of `lightning.Trainer`; null: its default."""

    precision: Any = None
    fast_dev_run: Any = None
    max_time: Any = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    limit_predict_batches: Any = None
    overfit_batches: Any = None
    num_sanity_val_steps: Any = 0
    log_every_n_steps: Any = 1
    enable_checkpointing: Any = None
    enable_progress_bar: Any = None
    enable_model_summary: Any = False
    gradient_clip_algorithm: Any = None
    deterministic: Any = None
    benchmark: Any = None
    inference_mode: Any = None
    use_distributed_sampler: Any = False
    """The stream of sequences shares itself out between processes."""
    profiler: Any = None
    detect_anomaly: Any = None
    barebones: Any = None
    plugins: Any = None
    sync_batchnorm: Any = None
    reload_dataloaders_every_n_epochs: Any = None
    enable_autolog_hparams: Any = None
    model_registry: Any = None
    max_steps: Any = None
    min_steps: Any = None
    max_epochs: Any = None
    min_epochs: Any = None
    accumulate_grad_batches: Any = None
    gradient_clip_val: Any = None
    val_check_interval: Any = None
    check_val_every_n_epoch: Any = None
    callbacks: Any = None
    logger: Any = None
    default_root_dir: Any = None

    def __post_init__(self) -> None:
        """Raise ValueError for an argument that another setting decides, with its name."""
        for name, key in SET_ELSEWHERE.items():
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"trainer.{name}={value} is set by another setting: {key}")

    @property
    def chosen(self) -> dict[str, Any]:
        """The arguments that are not null."""
        values = {field.name: getattr(self, field.name) for field in fields(LightningArguments)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(kw_only=True)
class TrainerConfig(LightningArguments):
    """The machine's side of a run; results do not depend on it, up to floating point.

    Every other argument of `lightning.Trainer` has its own name here.
    """

    name: str = MISSING
    _target_: str = "lightning.Trainer"
    accelerator: str = "cpu"
    """"cpu", "gpu", or "auto", which becomes one of them: gpu if torch sees one."""
    devices: int = field(default=1, metadata=limits(1, 4096))
    """Processes on each machine."""
    num_nodes: int = field(default=1, metadata=limits(1))
    """Machines; each starts the same command, by torchrun or srun."""
    strategy: str = "single"
    """"single" process, "ddp" (whole copies), or DeepSpeed's "zero2", "zero3", "zero3_offload" (to host)."""
    attention: str = "sdpa"
    """"eager" (explicit softmax; its backward is much faster on a CPU), "sdpa", or "auto": what suits."""
    threads: Any = field(default="auto", metadata=limits(1, 4096))
    """Torch threads; auto: OMP_NUM_THREADS, or all cores; set 1 where others keep the cores busy."""
    compile_blocks: bool = False
    """Compile each block for training passes (torch.compile): slower to start, faster per step on a GPU."""
    checkpoint_every_steps: int = field(default=25, metadata=limits(1))
    """Steps that a kill can cost at most."""

    @property
    def torch_device(self) -> str:
        """The accelerator by torch's name."""
        return "cuda" if self.accelerator == "gpu" else self.accelerator

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("trainer.attention", self.attention, ("eager", "sdpa", "auto"))
        one_of("trainer.accelerator", self.accelerator, ACCELERATORS)
        if self.accelerator == "auto":
            self.accelerator = "gpu" if _sees_gpu() else "cpu"
        if self.attention == "auto":
            self.attention = "eager" if self.accelerator == "cpu" else "sdpa"
        one_of("trainer.strategy", self.strategy, ("single", "ddp", "zero2", "zero3", "zero3_offload"))
        if self.strategy == "single" and self.devices * self.num_nodes > 1:
            raise ValueError(
                f"trainer={self.name} is one process, got trainer.devices={self.devices} "
                f"trainer.num_nodes={self.num_nodes}: choose trainer=ddp, zero2, zero3 or zero3_offload"
            )
        if self.threads != "auto" and (not isinstance(self.threads, int) or self.threads < 1):
            raise ValueError(
                f"trainer.threads={self.threads!r} is not known; allowed: auto or a number from 1"
            )


def _sees_gpu() -> bool:
    import torch  # seconds, which a mistake in the command line need not wait for

    return torch.cuda.is_available()


@dataclass(kw_only=True)
class MemoryConfig:
    """Ways of a run to fit into memory; its results stay the same up to rounding."""

    name: str = MISSING
    gigabytes: float | None = field(default=None, metadata=limits(0.001))
    """Memory to fit into, 10^9 bytes on each device; null: what the device has."""
    recompute: bool | None = None
    """Compute the inside of each block again in the backward pass; null: where it does not fit otherwise."""
    optimizer: str | None = None
    """"adamw" or "adamw8bit"; null: 8 bits where it does not fit otherwise and bitsandbytes is installed."""
    split_batch: bool = True
    """Pass a batch in smaller parts where it does not fit; the optimizer's step sees the same sequences."""

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            one_of("memory.optimizer", self.optimizer, ("adamw", "adamw8bit"))
