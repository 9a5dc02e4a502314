"""Lightning's strategies by the name of `trainer.strategy`.

DeepSpeed's ZeRO also runs on CPUs (gloo), so it can be tested without GPUs.
"""

from __future__ import annotations

import importlib
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

# Rank zero samples and scores while the others wait; the launcher, not this, notices a rank that dies.
PATIENCE = timedelta(hours=12)


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, which also takes CPU processes."""

    @property
    def root_device(self) -> torch.device:
        """This process's device; DeepSpeed wants an index, which is missing in Lightning's CPU devices."""
        device = super().root_device
        return torch.device("cpu", self.local_rank) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Join the process group; Lightning's own check would refuse CPUs."""
        if isinstance(self.accelerator, CPUAccelerator):
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """Set ranks and start DeepSpeed's communication, without Lightning's check of GPU numbers."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        # Its shared-memory kernels would be compiled on first use; gloo alone needs no compiler. By name,
        # because the attribute `deepspeed.comm.torch` is torch itself.
        communication: Any = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read DeepSpeed's folder; ValueError, with what to do, where it is damaged."""
        with damage_named(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only)


class ZeroPrecision(DeepSpeedPrecision):
    """Lightning's DeepSpeedPrecision, under which a step of several passes has the mean gradient."""

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; Lightning has divided the loss by the passes, DeepSpeed would once more."""
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


def zero_config(stage: int, *, offload: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration; Lightning adds accumulation, clipping and precision."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage == 3:
        # Sampling gathers under inference mode; a small weight that stayed gathered could not train after it.
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "zero_optimization": zero,
        # For DeepSpeed's own log only; unset, Lightning asks for the data too early.
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        # Its AdamW for CPUs is compiled on first use; torch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip


def make_environment() -> list[SLURMEnvironment]:
    """Return the plugin that a SLURM job needs; elsewhere, and under torchrun in such a job, none.

    Requeuing is off: on SIGUSR1 Lightning would write its own checkpoint and start the next stage from it.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def make_strategy(config: TrainerConfig, dtype: str) -> Strategy | str:
    """Return Lightning's strategy for `trainer.strategy`; `dtype` is the base's."""
    if config.strategy == "ddp":
        # Else there are two copies of all gradients.
        return DDPStrategy(timeout=PATIENCE, gradient_as_bucket_view=True)
    if config.strategy == "single":
        return "auto"
    stage = 2 if config.strategy == "zero2" else 3
    offload = config.strategy == "zero3_offload"
    return ZeroStrategy(
        config=zero_config(stage, offload=offload),
        timeout=PATIENCE,
        exclude_frozen_parameters=True,
        # DeepSpeed keeps float32 copies of what trains.
        precision_plugin=ZeroPrecision("bf16-true" if dtype == "bfloat16" else "32-true"),
    )


def gradient_norm(strategy: _Base) -> float | None:
    """Return the norm, before clipping, of the gradients of DeepSpeed's last step; None without DeepSpeed."""
    if not isinstance(strategy, ZeroStrategy):
        return None
    norm = strategy.deepspeed_engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def let_go(strategy: _Base) -> None:
    """Let DeepSpeed's engine and its network be collected, once a stage has ended.

    Under ZeRO 3 a global list of modules and a method's cache still refer to the network.
    """
    if not isinstance(strategy, ZeroStrategy):
        return
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    strategy.deepspeed_engine.destroy()
    parameter_offload.FWD_MODULE_STACK.clear()
    methods = vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values()
    for cell in (cell for method in methods for cell in getattr(method, "__closure__", None) or ()):
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def shards_weights(strategy: _Base) -> bool:
    """Return whether the weights are sharded (ZeRO 3)."""
    return isinstance(strategy, ZeroStrategy) and strategy.zero_stage_3
