"""The arguments of `lightning.Trainer`, under their own names: `trainer.NAME=...`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
