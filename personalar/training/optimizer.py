"""AdamW in the two forms that a run may choose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from personalar.training.model_prep import require_bitsandbytes


def make_optimizer(groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], name: str) -> Any:
    """Return the optimizer over `groups`.

    Args:
        name: "adamw" (fused: one pass over all parameters) or "adamw8bit" (states in 8 bits; bitsandbytes).
    """
    if name == "adamw8bit":
        return require_bitsandbytes("memory.optimizer=adamw8bit").optim.AdamW8bit(groups, betas=betas)
    return torch.optim.AdamW(groups, betas=betas, fused=True)
