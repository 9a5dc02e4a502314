"""Which step of a stage is kept: the rule, as data and as arithmetic.

Every sample grid in training gets two values, and both want likeness and obedience at once: RPO's
lambda-harmonic mean (arXiv 2407.12164; its code, andrew-miao/RPO, evaluation_metrics.py) and the product of
the means, which sweeps maximise. The rule says which of them picks the step, if any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from personalar.config.recipe import one_of
from personalar.config.scorer_config import ScorerConfig

RULES = ("last", "harmonic", "product")


@dataclass(kw_only=True)
class SelectionConfig:
    """Which step's state a stage leaves, and whether it may end before its last step."""

    rule: str = "last"
    """"last" (the last step; the values are logged only, and every run of a stage has equally many steps),
    "harmonic" or "product" (the step with the highest value among the sample grids and the last step)."""
    likeness: str = "dino"
    """What counts as likeness: "dino" (tells individuals apart) or "clip_i" (nearer to RPO, which takes one
    network, ALIGN, for both)."""
    likeness_weight: float = 0.5
    """RPO's lambda, 0 (prompt following alone) to 1 (likeness alone). RPO on DreamBench: .3, .5, .7 give DINO
    .581, .652, .679 and CLIP-T .329, .314, .304; .5 is the row that its abstract reports."""
    patience: int | None = None
    """End a stage after so many grids in a row without a better one; null: train all steps."""

    def __post_init__(self) -> None:
        one_of("selection.rule", self.rule, RULES)
        one_of("selection.likeness", self.likeness, ("dino", "clip_i"))
        if self.patience is not None and not self.selects:
            raise ValueError(
                "selection.patience ends a stage by a rule's values, and selection.rule=last looks at none: "
                "choose selection.rule=harmonic or product, or selection.patience=null"
            )

    @property
    def selects(self) -> bool:
        """Whether a step other than the last may be kept."""
        return self.rule != "last"

    def check(self, scorer: ScorerConfig, *, photographs: bool, every: int) -> None:
        """Raise ValueError where a rule would have nothing to compare, or judges that cannot tell."""
        if not self.selects:
            return
        if not scorer.scores:
            raise ValueError(
                f"selection.rule={self.rule} compares steps by their scores, and scorer={scorer.name} gives "
                "none: choose scorer=nano or scorer=dreambench, or selection.rule=last"
            )
        if not every:
            raise ValueError(
                f"selection.rule={self.rule} compares the sample grids of a stage, and "
                "samples.grid_every_steps=0 makes none: set it to a number of steps, or selection.rule=last"
            )
        scorer.check_decides(
            f"the step that selection.rule={self.rule} keeps",
            photographs=photographs,
            otherwise="selection.rule=last",
        )


def harmonic(likeness: float, following: float, weight: float) -> float:
    """Return RPO's reward of one picture, 0 to 1: the weighted harmonic mean of two cosines put on [0, 1].

    Args:
        likeness: cosine of picture and references, -1 to 1.
        following: cosine of picture and prompt, -1 to 1.
        weight: lambda, of the likeness.
    """
    like, follow = max((likeness + 1) / 2, 1e-8), max((following + 1) / 2, 1e-8)
    return 1 / (weight / like + (1 - weight) / follow)


def rule_values(lines: Iterable[Mapping[str, Any]], config: SelectionConfig) -> dict[str, float]:
    """Return {"harmonic", "product"} of the pictures in `lines` of scores.jsonl; nothing of no pictures.

    "harmonic" is RPO's: the mean over pictures of each one's reward. "product" is the product of the means.
    """
    pictures: dict[tuple[str, int], dict[str, float]] = {}
    for line in lines:
        pictures.setdefault((line["prompt"], line["seed"]), {})[line["scorer"]] = float(line["value"])
    if not pictures:
        return {}
    pairs = [(found[config.likeness], found["clip_t"]) for found in pictures.values()]
    likeness, following = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    rewards = [harmonic(*pair, config.likeness_weight) for pair in pairs]
    return {"harmonic": sum(rewards) / len(pairs), "product": likeness * following}
