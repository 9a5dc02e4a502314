"""Callbacks that monitor training: speed and memory, a loss that is not finite, the time of sampling."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from personalar.concepts.adapters.identifier import word_norms
from personalar.core.process import peak_memory_bytes
from personalar.models.sharding import is_sharded
from personalar.training.strategy import gradient_norm

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


class StepWatch(L.Callback):
    """Logs tokens per second, peak memory, the gradient norm, and the embedding of [V].

    "watch/v_distance" is its distance from its start, "watch/v_norm_ratio" its norm divided by the mean norm
    of the table's words. A note is printed once if no word has such a norm.

    It replaces Lightning's ThroughputMonitor, which includes the time of sampling in validation.
    """

    def __init__(self) -> None:
        self._tokens, self._since, self._last_step = 0, 0.0, 0
        self._start: Tensor | None = None
        self._norms: tuple[float, float, float] | None = None
        """Smallest, mean and largest norm of the table's words; None if the table is sharded."""
        self._noted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Start the clock and store the initial [V]."""
        self._since, self._last_step = time.perf_counter(), trainer.global_step
        if self._start is None:
            self._start = self._row(pl_module)
        backend: Any = pl_module.network.backend
        if not is_sharded(backend.word_table):
            norms = word_norms(backend)
            self._norms = float(norms.min()), float(norms.mean()), float(norms.max())
            # If [V] is outside the range at the start of a stage, an earlier stage has printed the note.
            self._noted = self._start is not None and not self._is_usual(float(self._start.norm()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Leave out the time of sampling."""
        self._since, self._tokens = time.perf_counter(), 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: PersonalizationModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        *_: Any,
    ) -> None:
        """Log after each optimizer step."""
        self._tokens += batch["ids"].numel() * trainer.world_size
        if trainer.global_step == self._last_step:
            return
        # At an optimizer step; the tokens of all its micro-batches and processes count.
        now = time.perf_counter()
        values = {
            "watch/tokens_per_s": self._tokens / max(now - self._since, 1e-9),
            "watch/peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        if (norm := gradient_norm(trainer.strategy)) is not None:
            values["watch/gradient_norm"] = norm
        row = self._row(pl_module)
        if row is not None and self._start is not None:
            values["watch/v_distance"] = float((row - self._start).norm())
            values |= self._norm_ratio(pl_module, float(row.norm()), trainer.global_step)
        pl_module.log_dict(values, rank_zero_only=True)
        self._since, self._tokens, self._last_step = now, 0, trainer.global_step

    def _is_usual(self, norm: float) -> bool:
        """Return whether `norm` is in the range of words."""
        return self._norms is None or self._norms[0] <= norm <= self._norms[2]

    def _norm_ratio(self, pl_module: PersonalizationModule, norm: float, step: int) -> dict[str, float]:
        """Return the norm of [V] relative to words, and print a note when it leaves their range."""
        if self._norms is None:
            return {}
        low, mean, high = self._norms
        if not self._is_usual(norm) and not self._noted:
            self._noted = True
            pl_module.context.reporter.say(
                f"note: [V] has norm {norm:.3g} at step {step} of stage {pl_module.stage.name}, the base's "
                f"words {low:.3g} to {high:.3g}; if pictures ignore other words of a prompt, lower the rate "
                "or set model.recipe.identifier.optimizer=direction"
            )
        return {"watch/v_norm_ratio": norm / mean}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, optimizer: Any
    ) -> None:
        """Log the gradient norm before clipping."""
        # Under DeepSpeed there are no gradients here; it is logged after the step, from the engine.
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            pl_module.log(
                "watch/gradient_norm", torch.nn.utils.get_total_norm(gradients), rank_zero_only=True
            )

    @staticmethod
    def _row(pl_module: PersonalizationModule) -> Tensor | None:
        """Return a copy (D,) of the embedding of [V], float32 on the CPU; None if it is sharded."""
        rows = pl_module.identifier.rows
        if not rows.numel() or is_sharded(rows):
            return None
        return rows.detach()[0].to("cpu", torch.float32, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial [V] for the checkpoint, so that a resumed stage measures from there."""
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the initial [V] from a checkpoint."""
        self._start = state_dict["start"]


class FiniteLoss(L.Callback):
    """Stops a run with a NaN or infinite loss, before that step changes the weights."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: PersonalizationModule, loss: Tensor) -> None:
        """Check the loss of every batch.

        Raises:
            FloatingPointError: it is not finite; the message has step, learning rates and last checkpoint.
        """
        # This waits for the device at every batch; the logger needs the value anyway.
        value = float(loss.detach())
        if math.isfinite(value):
            return
        rates = {group.get("name", "all"): group["lr"] for group in trainer.optimizers[0].param_groups}
        saved = pl_module.context.folder.checkpoint_of(pl_module.stage.name).get("file", "none yet")
        raise FloatingPointError(
            f"the loss is {value} at step {trainer.global_step} of stage {pl_module.stage.name}; "
            f"learning rates {json.dumps(rates)}; last good checkpoint: {saved}. Lower the rates "
            "(model.recipe.stages.*.lr and identifier_lr) and run in another folder: the same settings would "
            "stop at the same step"
        )


class SamplingBudget(L.Callback):
    """Skips sample grids in training while they have taken more than their share of the time."""

    def __init__(self, share: float) -> None:
        """Allow sampling up to `share` (0 to 1) of the stage's time; the first grid is always made."""
        self.share = share
        self._began = self._sampling = self._since = 0.0
        self._grids: float | int = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Start the clock."""
        self._began, self._grids = time.perf_counter(), trainer.limit_val_batches

    def on_validation_start(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Start the clock of sampling."""
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: PersonalizationModule) -> None:
        """Add the time of this grid."""
        self._sampling += time.perf_counter() - self._since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Skip the grid after this batch, if it would exceed the budget."""
        # `limit_val_batches` is the only switch that Lightning reads before each validation.
        if not self._grids or (batch_idx + 1) % (trainer.val_check_batch or 1):
            return
        if pl_module.context.config.selection.scorer.scores:  # the result must not depend on the speed
            return
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        # Rank zero decides for all: clocks differ, but all processes must sample or none.
        allowed = trainer.strategy.broadcast(self._sampling <= self.share * elapsed)
        trainer.limit_val_batches = self._grids if allowed else 0
