"""Build the pair of judges that a run is scored by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from personalar.scoring.base import ImageScorer, ImageTextScorer


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """The two networks; loaded once, shared by all subjects."""

    clip: ImageTextScorer
    dino: ImageScorer

    def names(self) -> dict[str, str]:
        """Return checkpoints and preprocessing, as `run.json` records them."""
        return {
            "clip": self.clip.name,
            "dino": self.dino.name,
            "clip_preprocessing": self.clip.preprocessing,
            "dino_preprocessing": self.dino.preprocessing,
        }


def load_scorers(
    clip_path: str | Path,
    dino_path: str | Path,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    dino_preprocess: str = "checkpoint",
) -> Scorers:
    """Load both networks; see `weights.resolve_folder` for what a path may be."""
    from personalar.scoring.clip import ClipScorer
    from personalar.scoring.dino import DinoScorer

    return Scorers(
        clip=ClipScorer(clip_path, device=device, batch_size=batch_size),
        dino=DinoScorer(dino_path, device=device, batch_size=batch_size, preprocess=dino_preprocess),
    )
