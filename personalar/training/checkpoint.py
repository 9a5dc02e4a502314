"""Checkpoints within a stage: a kill at any moment loses at most a few steps.

A checkpoint counts once run.json names it, which happens after it is complete; then the older one is deleted.
If the named checkpoint is missing or damaged, the run stops instead of starting the stage again.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from personalar.core.errors import left_alone, out_of_memory
from personalar.core.files import make_folder, put_in_place, sync_files, temporary
from personalar.core.own_files import remove
from personalar.core.process import global_rank
from personalar.core.run_folder import RunFolder
from personalar.training.stage import depends_on_steps

EXIT_TERMINATED, EXIT_INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Exit codes of a run that SIGTERM (143) or Ctrl-C (130) stopped after saving, as a shell reports them."""
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows
NAME = re.compile(r"step_\d{6,12}\.ckpt")
"""Names of checkpoints; older files with such a name are deleted."""
LARGEST_STATE = 1_000_000_000
"""Bytes of the last checkpoint of a finished stage that is kept: rows and LoRA, not the weights of a 7B."""
AFRESH = "copy it back, or start afresh with overwrite=true"


@contextmanager
def refusal_named(path: Path) -> Iterator[None]:
    """Raise the system's OSError, with `path`, where torch's writers hide it behind a RuntimeError.

    DeepSpeed's writer in C++ gives no reason; a full disk is reported if there is no space left.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            there = next(parent for parent in path.parents if parent.exists())
            if shutil.disk_usage(there).free >= 1 << 20:
                raise
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(cause.errno, cause.strerror, str(path)) from error


@contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Raise ValueError, with what to do, for whatever a library raises over a damaged checkpoint."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if left_alone(error) or out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} cannot be read ({reason}): it is damaged, or not a checkpoint of this run; {AFRESH}"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file is complete or absent; reads tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; OSError where the disk is full, or refuses."""
        path = Path(path)
        made = make_folder(path.parent)
        unfinished = temporary(path)
        try:
            with refusal_named(path), unfinished.open("wb") as stream:
                torch.save(checkpoint, stream)
            put_in_place(unfinished, path, made=made)
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and plain values; other objects, which could run code, are never made.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        with damage_named(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of what it then refuses
            return super().load_checkpoint(path, *args, **{**kwargs, "weights_only": True})


def find_checkpoint(folder: RunFolder, stage: str, *, world: int, strategy: str) -> Path | None:
    """Return the checkpoint that `stage` goes on from; None where it has not saved one yet.

    Raises:
        FileNotFoundError: when the checkpoint that run.json names is gone.
        ValueError: when it needs as many processes as wrote it, or run.json is damaged.
    """
    record = folder.record.get("stages", {}).get(stage, {}).get("checkpoint")
    if record is None:
        return None
    _check_entry(record, folder.path / "run.json")
    path = folder.checkpoints(stage) / record["file"]
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, where stage={stage} goes on from step {record['step']}, is gone: {AFRESH}"
        )
    sharded = "zero" in strategy or "zero" in record["strategy"]
    if sharded and (record["world"], record["strategy"]) != (world, strategy):
        raise ValueError(
            f"{path} was saved by {record['world']} processes with trainer.strategy={record['strategy']}, "
            f"now there are {world} with {strategy}: DeepSpeed's checkpoints fit only the same; set "
            "trainer.devices and trainer.num_nodes as before, or start afresh with overwrite=true"
        )
    return path


def _check_entry(record: Any, where: Path) -> None:
    """Raise ValueError unless run.json's entry on a checkpoint is one that we wrote."""
    kinds = {"file": str, "step": int, "world": int, "strategy": str}
    if not isinstance(record, dict) or {name: type(record.get(name)) for name in kinds} != kinds:
        raise ValueError(f"{where} is damaged (checkpoint): restore it, or delete the run folder")
    if not NAME.fullmatch(record["file"]):
        raise ValueError(
            f"{where} names a checkpoint {record['file']!r:.80} outside of the run folder: restore it, or "
            "delete the run folder"
        )


def keeps_end(pl_module: Any) -> bool:
    """Return whether the state after the last step is saved, because more steps may follow it one day."""
    config, stage = pl_module.context.config, pl_module.stage
    if depends_on_steps(config.scheduler, stage.numbers.schedule) or "zero" in config.trainer.strategy:
        return False
    learned = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
    moments = [
        value
        for optimizer in pl_module.trainer.optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    return sum(tensor.nbytes for tensor in [*learned, *moments]) <= LARGEST_STATE


class StageCheckpoint(Checkpoint):
    """Saves every few steps, and when SIGTERM, SIGHUP or Ctrl-C asks the run to end; see also `keeps_end`.

    Lightning's ModelCheckpoint names no checkpoint in run.json once it is complete, and saves nothing on a
    signal; with it a kill could cost a stage, or leave a checkpoint that nobody knows to be whole.
    """

    def __init__(self, *, every: int) -> None:
        """Save after every `every` optimizer steps."""
        self.every = every
        self.asked = self._ending = 0
        """The signal that asked this process, or any of them, to end; 0: none did."""
        self._last_step = 0
        self._terminals: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note SIGTERM, SIGHUP and Ctrl-C, to end between two steps; Lightning's handlers save nothing."""
        self._last_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Python lets no other take signals
            self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]
            # nohup ignores SIGHUP, and is respected. A shell's background jobs ignore SIGINT, and whoever
            # sends it to one means it.
            signal.signal(signal.SIGTERM, self._note)
            signal.signal(signal.SIGINT, self._note)
            if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
                signal.signal(HANGUP, self._note)

    def _note(self, number: int, *_: Any) -> None:
        if number == self.asked == signal.SIGINT:  # a second time: at once
            raise SystemExit(EXIT_INTERRUPTED)
        if number == signal.SIGINT and global_rank() == 0:
            print("interrupted: this step is finished and saved; Ctrl-C again ends at once", flush=True)
        if number == HANGUP:  # a terminal that is gone refuses every line
            for handle in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
        self.asked = number

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count passes as this run does: with other processes, or less memory, a step has another number."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["current"], progress["total"]):
            more = done - counts["processed"]
            counts |= {name: counts[name] + more for name in ("ready", "started", "processed", "completed")}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Save where it is time, or where the run was asked to end."""
        if trainer.global_step == self._last_step:  # gradients of a part of a step are not saved
            return
        self._last_step = trainer.global_step
        self._ending = self._anyone_asked(trainer)
        due = trainer.global_step % self.every == 0
        if self._ending or due or (trainer.global_step == trainer.max_steps and keeps_end(pl_module)):
            self.save(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        """End here where asked to: the last step is logged by now, and sampling would cost minutes."""
        if self._ending:
            raise SystemExit(128 + self._ending if trainer.is_global_zero else 0)

    def end_if_asked(self, trainer: L.Trainer) -> None:
        """End here where asked to in the last step or its grid: what was learned is written by now."""
        if asked := self._anyone_asked(trainer):
            raise SystemExit(128 + asked if trainer.is_global_zero else 0)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """The same, where no sampling follows."""
        self.on_validation_start(trainer)

    def _anyone_asked(self, trainer: L.Trainer) -> int:
        """Return the signal that asked any process to end; all answer alike, because saving takes all."""
        if trainer.world_size == 1:
            return self.asked
        flag = torch.tensor(self.asked, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag)

    def save(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write a checkpoint, name it in run.json, delete those before."""
        folder, stage = pl_module.context.folder, pl_module.stage.name
        path = folder.checkpoints(stage) / f"step_{trainer.global_step:06d}.ckpt"
        if trainer.is_global_zero:
            remove(path)  # half of one, from a run that was killed here
        trainer.strategy.barrier()
        with refusal_named(path):
            trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        sync_files(*([path] if path.is_dir() else []), folder.path / "logs" / stage)
        folder.update_stage(
            stage,
            checkpoint={
                "file": path.name,
                "step": trainer.global_step,
                "world": trainer.world_size,
                "strategy": pl_module.context.config.trainer.strategy,
            },
        )
        for other in path.parent.iterdir():
            if other != path and NAME.fullmatch(other.name):
                remove(other)
