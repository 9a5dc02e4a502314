"""An optimizer that turns embeddings and keeps their norm (after arXiv 2512.13672, for diffusion models).

Textual inversion can let an embedding's norm grow far beyond that of words, and the other words of a prompt
are then followed less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer


class Direction(Optimizer):
    """Turns each row of its parameters (K, D) by an angle of exactly `lr` per step and keeps its norm.

    Only the direction of the gradient counts, not its length. A row without gradient and pull stays in place.
    The norms are those before the first step; they are part of the state, so a resumed run keeps them.
    """

    def __init__(self, params: Any, lr: float = 0.01, *, pull: Tensor | float = 0.0) -> None:
        """Create the optimizer.

        Args:
            params: parameters (K, D), or groups of them.
            lr: angle of a step in radians.
            pull: pull towards a word: strength times the word's unit vector, one row per embedding (K, D),
                zero for rows without a pull. It is subtracted from the gradient with respect to the row's
                unit vector.
        """
        super().__init__(params, {"lr": lr})
        self.pull = pull  # not in the parameter groups, which are written to checkpoints

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Turn every row once; return the loss of `closure`, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for rows in group["params"]:
                if rows.grad is not None:
                    self._turn(rows, float(group["lr"]))
        return loss

    def _turn(self, rows: Tensor, angle: float) -> None:
        state = self.state[rows]
        if not state:
            state["norm"] = rows.norm(dim=1, keepdim=True)
        norm, unit = state["norm"], F.normalize(rows, dim=1)
        # The chain rule: rows = norm * unit.
        gradient = norm * rows.grad - self.pull
        tangent = gradient - (gradient * unit).sum(1, keepdim=True) * unit
        turned = math.cos(angle) * unit - math.sin(angle) * F.normalize(tangent, dim=1)
        moves = tangent.any(dim=1, keepdim=True)
        rows.copy_(torch.where(moves, norm * F.normalize(turned, dim=1), rows))
