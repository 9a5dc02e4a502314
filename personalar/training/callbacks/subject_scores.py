"""Scores during training: means over the samples of each validation, logged as curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
from torchmetrics import MeanMetric

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


def harmonic(likeness: float, following: float, weight: float) -> float:
    """Return the reward of RPO (arXiv 2407.12164) for one picture, 0 to 1.

    It is the weighted harmonic mean of two cosine similarities, each mapped from [-1, 1] to [0, 1].

    Args:
        likeness: cosine similarity of picture and photos, -1 to 1.
        following: cosine similarity of picture and prompt, -1 to 1.
        weight: weight of the likeness, 0 to 1 (lambda in RPO).
    """
    like, follow = max((likeness + 1) / 2, 1e-8), max((following + 1) / 2, 1e-8)
    return 1 / (weight / like + (1 - weight) / follow)


def combined(
    lines: Iterable[Mapping[str, Any]], weight: float, measures: Sequence[str] = ("dino", "clip_t")
) -> dict[str, float]:
    """Return two combinations of likeness and prompt following.

    Args:
        lines: lines of scores.jsonl.
        weight: see `harmonic`.
        measures: names of the two measures.

    Returns:
        "harmonic", the mean of the pictures' rewards, and "product", the product of the two means; empty if
        no picture has both scores.
    """
    pictures: dict[tuple[str, int], dict[str, float]] = {}
    for line in lines:
        pictures.setdefault((line["prompt"], line["seed"]), {})[line["scorer"]] = float(line["value"])
    like, follow = measures
    found = [values for values in pictures.values() if {like, follow} <= values.keys()]
    if not found:
        return {}
    count = len(found)
    reward = sum(harmonic(values[like], values[follow], weight) for values in found)
    likeness = sum(values[like] for values in found)
    following = sum(values[follow] for values in found)
    return {"harmonic": reward / count, "product": likeness / count * (following / count)}


class SubjectScores(L.Callback):
    """Logs the mean scores of each validation as `val/*`, with `val/harmonic` and `val/product`.

    Every process has all pictures of a grid, but only rank zero has scorers; it broadcasts the scores.
    """

    def __init__(self, likeness_weight: float = 0.5) -> None:
        """Set the weight of likeness in `val/harmonic`, 0 to 1."""
        self.likeness_weight = likeness_weight

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of the grid (`outputs`), and log the means."""
        if not pl_module.context.config.scorer.scores:
            return
        values: dict[str, float] = {}
        if (scorer := pl_module.context.scorer) is not None:
            lines = scorer.score([sample for sample in outputs if sample.kind == "subject"])
            for measure in scorer.measures:
                if found := [value for line in lines if (value := measure.of(line)) is not None]:
                    values[measure.name] = float(MeanMetric()(found))
            values |= combined(lines, self.likeness_weight)
        # All processes log the same values, because callbacks such as EarlyStopping act on them.
        shared = trainer.strategy.broadcast(values)
        pl_module.log_dict({f"val/{measure}": value for measure, value in shared.items()}, batch_size=1)
