"""Initialisation and updates of the codebook, without gradients."""

import torch
from torch import Tensor

DECAY, DEAD = 0.99, 0.02  # a code is dead if it is used less often than this share of the mean


def k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 8) -> Tensor:
    """Return `count` centres (count, D) of the points (N, D)."""
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=count)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres


class MovingCodebook:
    """A codebook whose rows are exponential averages of their latents."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.counts, self.sums = table, torch.ones(len(table)), table.clone()

    def restart(self, table: Tensor) -> None:
        """Start from the given rows."""
        self.table.copy_(table)
        self.sums, self.counts = self.table.clone(), torch.ones(len(self.table))

    def update(self, points: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Move rows towards their latents; a dead row is reset to a random latent.

        Args:
            points: latents (N, D).
            codes: their nearest rows (N,).
        """
        counts = torch.bincount(codes, minlength=len(self.table)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, points)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        mean = float(self.counts.mean())
        dead = self.counts < DEAD * mean
        if dead.any():
            pick = torch.randint(len(points), (int(dead.sum()),), generator=generator)
            self.sums[dead], self.counts[dead] = points[pick] * mean, mean
        self.table.copy_(self.sums / self.counts[:, None].clamp_min(1e-4))
