"""Checkpoints within a stage, so that a kill at any moment loses at most a few steps.

A checkpoint is valid once run.json names it. The order is: write the new checkpoint, name it in run.json,
delete the older one. If the named checkpoint is missing or damaged, the run stops with an error instead of
training the stage from the start.
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

from personalar.core.errors import out_of_memory, peer_process_ended
from personalar.core.files import make_folder, put_in_place, sync_files, temporary
from personalar.core.own_files import remove
from personalar.core.process import global_rank
from personalar.core.run_folder import RunFolder
from personalar.training.stage import depends_on_steps

EXIT_TERMINATED, EXIT_INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Exit codes of a run that saved and stopped after SIGTERM (143) or Ctrl-C (130), as shells report them."""
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows
NAME = re.compile(r"step_\d{6,12}\.ckpt")
"""File names of checkpoints; older files with such a name are deleted."""
LARGEST_STATE = 1_000_000_000
"""Bytes up to which the last checkpoint of a finished stage is kept: [V] and LoRA, no weights of a 7B."""
RESTART_ADVICE = (
    "restore it from a copy, or start again in a new folder with hydra.run.dir=DIR (overwrite=true starts "
    "again here, and deletes all results in this folder, earlier/ included)"
)
"""Advice for a missing or damaged checkpoint; the new folder comes first because it loses nothing."""


@contextmanager
def refusal_named(path: Path) -> Iterator[None]:
    """Raise an OSError with `path` if writing a checkpoint fails, whatever torch or DeepSpeed raise.

    Raises:
        OSError: the error of the operating system, for example a full disk.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        # torch's zip writer raises a RuntimeError while it handles the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            # DeepSpeed's C++ writer gives no reason, so look whether the disk is full.
            there = next(parent for parent in path.parents if parent.exists())
            if shutil.disk_usage(there).free >= 1 << 20:
                raise
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(cause.errno, cause.strerror, str(path)) from error


@contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Raise ValueError, with a fix, for any error that a library raises for a damaged checkpoint."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # Not damage: another process has ended, or the memory is full.
        if peer_process_ended(error) or out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} cannot be read ({reason}): it is damaged, or not of this run; {RESTART_ADVICE}"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it when it is complete; reads tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; see `refusal_named` for errors."""
        path = Path(path)
        made = make_folder(path.parent)
        unfinished = temporary(path)
        try:
            with unfinished.open("wb") as stream:
                torch.save(checkpoint, stream)
            put_in_place(unfinished, path, made=made)
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the tensors and plain values in `path`; other objects could run code and are not loaded.

        Raises:
            ValueError: the file is damaged or contains other objects.
        """
        with damage_named(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns about a file before it raises
            return super().load_checkpoint(path, *args, **{**kwargs, "weights_only": True})


def find_checkpoint(folder: RunFolder, stage: str, *, world: int, strategy: str) -> Path | None:
    """Return the checkpoint from which `stage` resumes; None if it has none yet.

    Args:
        world: number of processes of this run.
        strategy: `trainer.strategy` of this run.

    Raises:
        FileNotFoundError: the checkpoint that run.json names is missing.
        ValueError: it is a DeepSpeed checkpoint of another number of processes or strategy, or is not in
            the run folder.
    """
    record = folder.checkpoint_of(stage)
    if not record:
        return None
    if not NAME.fullmatch(record["file"]):  # it is joined to a path, so "../x" must not pass
        where, name = folder.path / "run.json", f"{record['file']!r:.80}"
        raise ValueError(f"{where} names a checkpoint {name} outside of the run folder: {RESTART_ADVICE}")
    path = folder.checkpoints(stage) / record["file"]
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, from which stage={stage} resumes at step {record['step']}, is missing: {RESTART_ADVICE}"
        )
    # DeepSpeed writes one file per process; all other strategies write one file for any number.
    sharded = "zero" in strategy or "zero" in record["strategy"]
    if sharded and (record["world"], record["strategy"]) != (world, strategy):
        raise ValueError(
            f"{path} was saved by {record['world']} processes with trainer.strategy={record['strategy']}, "
            f"now there are {world} with {strategy}: DeepSpeed resumes only with the same; set "
            "trainer.strategy, trainer.devices and trainer.num_nodes as before, or choose a new folder with "
            "hydra.run.dir=DIR"
        )
    return path


def keeps_end(pl_module: Any) -> bool:
    """Return whether to save the state after the last step, so that the stage can be trained longer later."""
    config, stage = pl_module.context.config, pl_module.stage
    if depends_on_steps(config.scheduler, stage.numbers.schedule) or "zero" in config.trainer.strategy:
        return False
    size = sum(parameter.nbytes for parameter in pl_module.parameters() if parameter.requires_grad)
    for optimizer in pl_module.trainer.optimizers:
        for state in optimizer.state.values():
            size += sum(value.nbytes for value in state.values() if torch.is_tensor(value))
    return size <= LARGEST_STATE


class StageCheckpoint(Checkpoint):
    """Saves a checkpoint every few steps, on SIGTERM, SIGHUP or Ctrl-C, and at the end (see `keeps_end`).

    After a signal the current step is finished and saved. Rank zero exits with 128 + signal, others with 0.
    It replaces Lightning's ModelCheckpoint, which does not name a complete checkpoint in run.json.
    """

    def __init__(self, *, every: int) -> None:
        """Save after every `every` optimizer steps."""
        self.every = every
        self.received = self._ending = 0
        """Number of the signal that this process, or any process of the run, received; 0: none."""
        self._last_step = 0
        self._terminals: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers; they replace Lightning's, which save nothing."""
        self._last_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]
            # SIGHUP stays ignored under nohup, which is its purpose. SIGINT is taken even where it is
            # ignored: shells do that for background jobs, but an explicit `kill -INT` is meant.
            signal.signal(signal.SIGTERM, self._note)
            signal.signal(signal.SIGINT, self._note)
            if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
                signal.signal(HANGUP, self._note)

    def _note(self, number: int, *_: Any) -> None:
        """Record the signal; the run ends between two steps, because a step cannot be saved halfway."""
        if number == self.received == signal.SIGINT:  # the second Ctrl-C
            raise SystemExit(EXIT_INTERRUPTED)
        if number == signal.SIGINT and global_rank() == 0:
            print(
                "interrupted: finishing and saving this step, from which the same command goes on; Ctrl-C "
                "again ends at once",
                flush=True,
            )
        if number == HANGUP:  # printing to a closed terminal would raise an error before the step is saved
            for handle in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
        self.received = number

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Convert the checkpoint's counts of batches to the accumulation of this run; resume with its grid.

        With another number of processes, or less memory, an optimizer step has another number of batches.
        With the old counts Lightning would step in the middle of an accumulation.
        """
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["current"], progress["total"]):
            # Lightning completes the last batch; it had already done so at a checkpoint after a grid.
            counts |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
        # The checkpoint was written before the sample grid of its step, but Lightning's counters say that the
        # validation is complete. Mark it as interrupted, so that the grid is sampled first.
        every = pl_module.context.config.samples.grid_every_steps
        if every and checkpoint["global_step"] % every == 0:
            validation = loops["epoch_loop.val_loop.batch_progress"]
            for counts in (validation["current"], validation["total"]):
                counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            # Lightning adds 1 to the step of its logs both before and after this validation.
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Save after every `every` steps, after a signal, and after the last step."""
        if trainer.global_step == self._last_step:  # in an accumulation: a checkpoint has no gradients
            return
        self._last_step = trainer.global_step
        if not self._makes_last_grid(trainer, pl_module):
            self._ending = self._received_by_any(trainer)
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save the last step after its grid: Lightning makes no grid if it resumes after the last step."""
        if self._makes_last_grid(trainer, pl_module):
            self._save_if_due(trainer, pl_module)

    def _makes_last_grid(self, trainer: L.Trainer, pl_module: Any) -> bool:
        """Return whether this step is the last one, and a grid follows it."""
        step, every = trainer.global_step, pl_module.context.config.samples.grid_every_steps
        return bool(step == trainer.max_steps and trainer.limit_val_batches and step % every == 0)

    def _save_if_due(self, trainer: L.Trainer, pl_module: Any) -> None:
        kept = trainer.global_step == trainer.max_steps and keeps_end(pl_module)
        if self._ending or kept or trainer.global_step % self.every == 0:
            self.save(trainer, pl_module, kept=kept)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        """End after a signal, before minutes of sampling.

        Lightning logs a step after `on_train_batch_end`, so ending there would lose the last line of the log.
        """
        if self._ending:
            # The others exit with 0: a launcher kills all processes as soon as one of them fails.
            raise SystemExit(128 + self._ending if trainer.is_global_zero else 0)

    def end_if_signalled(self, trainer: L.Trainer) -> None:
        """End after a signal in the last step or its grid; call it after the concept is written."""
        self._ending = self._received_by_any(trainer)
        self.on_validation_start(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """End after a signal if no sampling follows the step."""
        self.on_validation_start(trainer)

    def _received_by_any(self, trainer: L.Trainer) -> int:
        """Return the signal that any process received; 0 for none. All processes call it and get the same."""
        if trainer.world_size == 1:
            return self.received
        # A scheduler may signal one process only, but a rank that saved alone would wait for the others.
        flag = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag)

    def save(self, trainer: L.Trainer, pl_module: Any, *, kept: bool) -> None:
        """Write a checkpoint, name it in run.json, and delete the older ones; all processes call it.

        Args:
            kept: it stays when the stage is finished (see `longer.drop_states`).
        """
        folder, stage = pl_module.context.folder, pl_module.stage.name
        path = folder.checkpoints(stage) / f"step_{trainer.global_step:06d}.ckpt"
        if trainer.is_global_zero:
            remove(path)  # DeepSpeed's folder may be incomplete, from a run that was killed here
        trainer.strategy.barrier()  # no process writes before it is removed
        with refusal_named(path):
            trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        # A single file was synced when it was written; DeepSpeed's folder and the loggers' files were not.
        sync_files(*([path] if path.is_dir() else []), folder.path / "logs" / stage)
        strategy, step = pl_module.context.config.trainer.strategy, trainer.global_step
        facts = {"file": path.name, "step": step, "world": trainer.world_size, "strategy": strategy}
        folder.update_stage(stage, checkpoint={**facts, "kept": kept})
        for other in path.parent.iterdir():
            if other != path and NAME.fullmatch(other.name):
                remove(other)
