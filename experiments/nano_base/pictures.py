"""Rendered shards as tensors, and helpers that all training scripts share."""

import copy
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WORKING = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
"""Precision of forward and backward passes. Without bfloat16 instructions bfloat16 takes twice as long."""


class Shards:
    """All finished shards of a kind, memory-mapped; `refresh` adds shards that were rendered since."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.paths: list[Path] = []
        self.arrays: list[np.ndarray] = []
        self.facts: list[dict] = []
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob(f"{self.kind}_[0-9]*.npy")) - set(self.paths)):
            if not path.with_suffix(".json").exists() or ".tmp" in path.name:
                break
            self.paths.append(path)
            self.arrays.append(np.load(path, mmap_mode="r"))
            self.facts += json.loads(path.with_suffix(".json").read_text())
        if not self.arrays:
            raise FileNotFoundError(
                f"no {self.kind}_*.npy in {self.folder}: run experiments/nano_base/render.py first"
            )

    def __len__(self) -> int:
        return len(self.facts)

    def pictures(self, indices) -> Tensor:
        """Return the pictures with these indices, (B, 3, H, W) uint8."""
        bounds = np.cumsum([len(a) for a in self.arrays])
        rows = []
        for i in indices:
            shard = int(np.searchsorted(bounds, i, side="right"))
            rows.append(self.arrays[shard][i - (bounds[shard - 1] if shard else 0)])
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


class Master:
    """A float32 model with a working copy in `WORKING`: passes are fast, and small updates are not lost."""

    def __init__(self, model: nn.Module) -> None:
        self.full = model
        self.fast = copy.deepcopy(model).to(WORKING)
        self.pairs = list(zip(model.parameters(), self.fast.parameters(), strict=True))

    def take_gradients(self) -> None:
        """Move the gradients of the copy to the float32 parameters."""
        for full, fast in self.pairs:
            full.grad = None if fast.grad is None else fast.grad.float()
            fast.grad = None

    @torch.no_grad()
    def push(self) -> None:
        """Copy the float32 parameters back to the working copy."""
        for full, fast in self.pairs:
            fast.copy_(full)


def share_machine(limit: int) -> None:
    """Use as many threads as there are idle cores, at least one and at most `limit`.

    If another process uses one of two cores, two threads are several times slower than one, because each step
    waits for the slower thread.
    """
    others = os.getloadavg()[0] - torch.get_num_threads()
    idle = round((os.cpu_count() or 1) - max(0.0, others))
    torch.set_num_threads(max(1, min(limit, idle)))


def peak_rates(optimizers: list[torch.optim.Optimizer]) -> list[list[float]]:
    """Return the peak learning rate of every group. Call it before `resume`, which restores decayed rates."""
    return [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]


def set_rates(optimizers: list[torch.optim.Optimizer], peaks: list[list[float]], factor: float) -> None:
    """Set every learning rate to its peak times a factor."""
    for optimizer, rates in zip(optimizers, peaks, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def descend(master: Master, optimizers: list[torch.optim.Optimizer]) -> None:
    """Update the model once, with the gradients of the working copy clipped to norm 1."""
    master.take_gradients()
    torch.nn.utils.clip_grad_norm_(master.full.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    master.push()


def resume(
    path: Path, name: str, master: Master, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load the state that `keep` wrote, if it exists; return the steps and seconds so far."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    master.full.load_state_dict(state[name])
    for optimizer, part in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(part)
    master.push()
    return state["step"], state["seconds"]


def keep(
    path: Path,
    name: str,
    master: Master,
    optimizers: list[torch.optim.Optimizer],
    *,
    step: int,
    seconds: float,
) -> None:
    """Save the state of a training: float32 weights (as `name`), optimizers, steps and seconds."""
    weights, parts = master.full.state_dict(), [o.state_dict() for o in optimizers]
    save_state(path, **{name: weights}, optimizers=parts, step=step, seconds=seconds)


def save_state(path: Path, **state) -> None:
    """Write a state atomically, so that a killed run can resume from the previous one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


class Log:
    """Writes and prints a JSON line per report; `seconds` includes those of earlier runs."""

    def __init__(self, path: Path, already: float = 0.0) -> None:
        self.path, self.start = path, time.time() - already

    @property
    def seconds(self) -> float:
        return time.time() - self.start

    def __call__(self, **values) -> None:
        line = json.dumps({"seconds": round(self.seconds, 1), **values})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
