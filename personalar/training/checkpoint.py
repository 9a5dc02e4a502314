"""Checkpoints within a stage: a kill at any moment loses at most a few steps, and nothing else.

A checkpoint counts once run.json names it, with a digest of its files; it is named after it is complete, and
the one before is deleted after that. What run.json names must be there and be the very same, or the run
stops: a stage never starts again in silence.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
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
from lightning.pytorch.plugins.io import TorchCheckpointIO

from personalar.core.files import temporary
from personalar.core.own_files import remove
from personalar.core.process import global_rank
from personalar.core.run_folder import RunFolder

EXIT_TERMINATED, EXIT_INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Exit codes of a run that SIGTERM (143) or Ctrl-C (130) stopped after saving, as a shell reports them."""
NAME = re.compile(r"step_\d{6,12}\.ckpt")
"""What a checkpoint may be called, and what is deleted once there is a newer one."""
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError,
              AttributeError, AssertionError, OverflowError)  # fmt: skip
"""What torch raises over a file that is no checkpoint."""
_ENDS = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file is complete or absent; reads tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: the disk is full, or refuses; torch's own error would hide that.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = temporary(path)
        try:
            with unfinished.open("wb") as stream:
                torch.save(checkpoint, stream)
            os.replace(unfinished, path)
        except (RuntimeError, OSError) as error:
            if (refused := _refusal(error)) is None:
                raise
            raise OSError(refused.errno, refused.strerror, str(path)) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and plain values; other objects, which could run code, are never made.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        try:
            with warnings.catch_warnings():  # torch warns of a strange pickle before it refuses it
                warnings.simplefilter("ignore", UserWarning)
                return super().load_checkpoint(path, *args, **{**kwargs, "weights_only": True})
        except UNREADABLE as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(
                f"{path} cannot be read as tensors alone ({reason}): it is damaged, or holds objects that "
                "would run code; copy it back, or start afresh with overwrite=true"
            ) from error


def _refusal(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind `error`, which torch raised while it was handling that."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__context__
    return error


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Say that the disk is full where torch's writer (DeepSpeed's checkpoints) keeps the reason to itself.

    Raises:
        OSError: in place of the writer's RuntimeError, when the disk of `path` has no room left.
    """
    try:
        yield
    except RuntimeError as error:
        there = next(parent for parent in path.parents if parent.exists())
        if shutil.disk_usage(there).free >= _ENDS:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def digest_of(path: Path) -> str:
    """Return a hash of a checkpoint (a file, or DeepSpeed's folder): names, sizes, ends of every file."""
    digest = hashlib.sha256()
    for file in sorted(p for p in [path, *path.rglob("*")] if p.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path.parent).as_posix()}:{size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_ENDS))
            stream.seek(max(_ENDS, size - _ENDS))
            digest.update(stream.read())
    return digest.hexdigest()


def find_checkpoint(folder: RunFolder, stage: str, *, world: int, strategy: str) -> Path | None:
    """Return the checkpoint that `stage` goes on from; None where it has not saved one yet.

    Raises:
        FileNotFoundError: when the checkpoint that run.json names is gone.
        ValueError: when it is not the one that was written, or needs as many processes as wrote it.
    """
    record = folder.record.get("stages", {}).get(stage, {}).get("checkpoint")
    if record is None:
        return None
    afresh = "copy it back, or start afresh with overwrite=true"
    _check_entry(record, folder.path / "run.json")
    path = folder.checkpoints(stage) / record["file"]
    if not path.exists():
        raise FileNotFoundError(
            f"{path}, where stage={stage} goes on from step {record['step']}, is gone: {afresh}"
        )
    if digest_of(path) != record["digest"]:
        raise ValueError(
            f"{path} is not the checkpoint that this run wrote (damaged, or another run's): {afresh}"
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
    kinds = {"file": str, "step": int, "world": int, "strategy": str, "digest": str}
    if not isinstance(record, dict) or not all(type(record.get(n)) is kind for n, kind in kinds.items()):
        raise ValueError(f"{where} is damaged (checkpoint): restore it, or delete the run folder")
    if not NAME.fullmatch(record["file"]):
        raise ValueError(
            f"{where} names a checkpoint {record['file']!r:.80} outside of the run folder: restore it, or "
            "delete the run folder"
        )


class StageCheckpoint(L.Callback):
    """Saves every few steps, and when SIGTERM or Ctrl-C asks the run to end."""

    def __init__(self, *, folder: RunFolder, stage: str, strategy: str, every: int) -> None:
        """Save into `folder` after every `every` optimizer steps."""
        self.folder, self.stage, self.strategy, self.every = folder, stage, strategy, every
        self.asked = self._ending = 0
        """The signal that asked this process, or any of them, to end; 0: none did."""
        self._last_step = 0

    @property
    def saved(self) -> dict[str, Any]:
        """What run.json says about the last good checkpoint, or nothing."""
        return self.folder.record.get("stages", {}).get(self.stage, {}).get("checkpoint", {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note SIGTERM and Ctrl-C and obey them between two steps; Lightning's own handlers save nothing."""
        self._last_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Python lets no other take signals
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, *_: Any) -> None:
        if number == self.asked == signal.SIGINT:  # a second time: at once
            raise SystemExit(EXIT_INTERRUPTED)
        if number == signal.SIGINT and global_rank() == 0:
            print("interrupted: this step is finished and saved; Ctrl-C again ends at once", flush=True)
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

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save where it is time, or where the run was asked to end."""
        if trainer.global_step == self._last_step:  # gradients of a part of a step are not saved
            return
        self._last_step = trainer.global_step
        self._ending = self._anyone_asked(trainer)
        if self._ending or trainer.global_step % self.every == 0:
            self.save(trainer)

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

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint, name it in run.json, delete those before."""
        path = self.folder.checkpoints(self.stage) / f"step_{trainer.global_step:06d}.ckpt"
        if trainer.is_global_zero:
            remove(path)  # half of one, from a run that was killed here
        trainer.strategy.barrier()
        with full_disk_named(path):
            trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        self.folder.update_stage(
            self.stage,
            checkpoint={
                "file": path.name,
                "step": trainer.global_step,
                "world": trainer.world_size,
                "strategy": self.strategy,
                "digest": digest_of(path),
            },
        )
        for other in path.parent.iterdir():
            if other != path and NAME.fullmatch(other.name):
                remove(other)
