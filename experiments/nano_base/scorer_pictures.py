"""Training pictures of the scorers: views of individuals and their twins, some degraded like samples."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pictures import Shards
from render import GROUP, SEEDS, SHARD, group_pictures
from torch import Tensor
from training_pictures import identity_vector

SIZE, PATCH = 128, 16


class Pictures:
    """Shards for the scorers, with their reconstructions (if rendered) and the parameters of individuals."""

    def __init__(self, folder: Path, kind: str = "scorer") -> None:
        self.folder, self.kind = folder, kind
        self.shards = Shards(folder, kind)
        self.recon: dict[int, np.ndarray] = {}
        self.instances: list = []
        self.refresh()

    def refresh(self) -> None:
        """Add shards that were rendered or reconstructed since."""
        self.shards.refresh()
        groups = SHARD // GROUP
        for number in range(len(self.instances) // (groups * GROUP), len(self.shards.arrays)):
            rng = np.random.default_rng([SEEDS[self.kind], number])
            for g in range(groups):
                pictures = group_pictures(rng, number * groups + g)
                self.instances += [picture.scenes[0].instance for picture, _ in pictures]
        self.identity = np.stack([identity_vector(i) for i in self.instances])
        for number in range(len(self.shards.arrays)):
            path = self.folder / f"{self.kind}_recon_{number:03d}.npy"
            if path.exists() and number not in self.recon:
                self.recon[number] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Return pictures (B, 3, 128, 128) in [-1, 1]; `rng` chooses those that are degraded or shifted."""
        per = SHARD // GROUP * GROUP
        x = self.shards.pictures(indices)
        if rng is None:
            return x.float() / 127.5 - 1
        for row, i in enumerate(indices):
            kind = rng.uniform()
            if kind < 0.45 and i // per in self.recon:
                x[row] = torch.from_numpy(self.recon[i // per][i % per].copy()).permute(2, 0, 1)
            elif kind < 0.65:
                small = F.interpolate(
                    x[row : row + 1].float(), scale_factor=float(rng.uniform(0.3, 0.6)), mode="area"
                )
                x[row] = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")[0].to(torch.uint8)
        dx, dy = rng.integers(-4, 5, 2)
        x = F.pad(x.float(), (4, 4, 4, 4), mode="replicate")[
            ..., 4 + dy : 4 + dy + SIZE, 4 + dx : 4 + dx + SIZE
        ]
        return x / 127.5 - 1
