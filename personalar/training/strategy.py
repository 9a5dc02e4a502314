"""Lightning strategies for the names of `trainer.strategy`.

Most of this module makes DeepSpeed's ZeRO run on CPUs (gloo) too, so that it can be tested without GPUs.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from lightning.pytorch.strategies.strategy import Strategy as _Base
from torch import Tensor

from personalar.config.run_config import TrainerConfig
from personalar.training.checkpoint import damage_named

# Rank zero samples and scores while the others wait at a barrier, longer than torch's default of minutes.
# A process that dies is noticed by the launcher, not by this timeout.
BARRIER_TIMEOUT = timedelta(hours=12)


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, extended to CPUs."""

    @property
    def root_device(self) -> torch.device:
        """The device of this process, with an index also for a CPU, as DeepSpeed needs it."""
        device = super().root_device
        return torch.device("cpu", self.local_rank) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Join the process group; on a CPU, skip DeepSpeedStrategy's check that the accelerator is a GPU."""
        if isinstance(self.accelerator, CPUAccelerator):
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """Set the ranks and start DeepSpeed's communication; on a CPU, skip the check of GPU indices."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        # DeepSpeed would compile shared-memory kernels on first use. gloo alone needs no compiler. Imported
        # by name, because the attribute `deepspeed.comm.torch` is the library torch, not this module.
        communication: Any = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Generator[None]:
        """Create the network whole: DeepSpeed shards it when training starts (ZeRO 3)."""
        yield

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint folder of DeepSpeed. Raises ValueError, with a fix, if it is damaged."""
        with damage_named(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only)


class ZeroPrecision(DeepSpeedPrecision):
    """Lightning's DeepSpeedPrecision, corrected for gradient accumulation: a step has the mean gradient."""

    def convert_input(self, data: Any) -> Any:
        """Return a batch unchanged: its only floats, logits of the base, need more bits than bfloat16."""
        return data

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass without scaling the loss."""
        # Lightning has already divided the loss by the number of micro-batches; DeepSpeed would do it again.
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


def zero_config(stage: int, *, offload: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration for ZeRO 2 or 3; Lightning adds accumulation, clipping and precision.

    Args:
        stage: 2 or 3.
        offload: keep parameters and optimizer states in host memory.
    """
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage == 3:
        # By default small parameters stay gathered after use. If sampling gathers them in inference mode,
        # they are inference tensors and cannot be trained afterwards.
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "zero_optimization": zero,
        # Only used in DeepSpeed's log. If it is missing, Lightning reads the batch size from the data loader,
        # which does not exist yet.
        "train_micro_batch_size_per_gpu": 1,
        # Optimizers are plug-ins here; DeepSpeed otherwise allows only a few that it has tested.
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's AdamW for CPUs is compiled on first use; torch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip


def make_environment() -> list[SLURMEnvironment]:
    """Return the Lightning plugin for a SLURM job; none outside of SLURM, or for torchrun in a SLURM job."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    # With automatic requeuing Lightning would write its own checkpoint on SIGUSR1, which is not named in
    # run.json, and start the next stage from it.
    return [SLURMEnvironment(auto_requeue=False)]


def make_strategy(config: TrainerConfig, dtype: str) -> Strategy | str:
    """Return the Lightning strategy for `trainer.strategy`.

    Args:
        dtype: of the base, "bfloat16" or "float32".
    """
    if config.strategy == "ddp":
        # Without views, DDP's communication buckets are a second copy of all gradients.
        return DDPStrategy(timeout=BARRIER_TIMEOUT, gradient_as_bucket_view=True)
    if config.strategy == "single":
        return "auto"
    stage = 2 if config.strategy == "zero2" else 3
    offload = config.strategy == "zero3_offload"
    return ZeroStrategy(
        config=zero_config(stage, offload=offload),
        timeout=BARRIER_TIMEOUT,
        exclude_frozen_parameters=True,
        # With "bf16-true" DeepSpeed keeps float32 copies of the trained parameters.
        precision_plugin=ZeroPrecision("bf16-true" if dtype == "bfloat16" else "32-true"),
    )


def gradient_norm(strategy: _Base) -> float | None:
    """Return the gradient norm before clipping of DeepSpeed's last step; None with other strategies."""
    if not isinstance(strategy, ZeroStrategy):
        return None
    norm = strategy.deepspeed_engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def free_deepspeed(strategy: _Base) -> None:
    """Free DeepSpeed's engine and its network after a stage; does nothing with other strategies."""
    if not isinstance(strategy, ZeroStrategy):
        return
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    strategy.deepspeed_engine.destroy()
    # Under ZeRO 3 two globals still refer to the network: a stack of modules, and the cache of a method that
    # is wrapped by a decorator, so that it can be reached only through the closure.
    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
