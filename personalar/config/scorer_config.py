"""Scorer settings, and the decisions that need scorers that know photographs. Values: conf/scorer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import limits, one_of
from personalar.core.measures import MEASURES


@dataclass(kw_only=True)
class ScorerConfig:
    """The judges; clip and dino null, and no others: no scores."""

    name: str = MISSING
    clip: str | None = None
    """Folder or hub id of a CLIP model; "package://x" is inside the installed package."""
    dino: str | None = None
    """Folder or hub id of a DINO-style vision transformer."""
    dino_preprocess: str = "checkpoint"
    """"checkpoint" (its preprocessor_config.json) or "resize256_crop224" (the DINO authors' evaluation)."""
    clip_text: str = "class"
    """Text of CLIP-T for "[V] cat": "class" (cat) or "prompt" (the very words, "[V]" included)."""
    likeness_weight: float = field(default=0.5, metadata=limits(0, 1))
    """Weight of likeness in the curve `val/harmonic`, 0 to 1: lambda in RPO (arXiv 2407.12164)."""
    photo_warning: str | None = None
    """Said when the subject is real photographs, on which these judges then decide nothing; null: they know
    photographs."""
    url: str | None = None
    """Server of a judge that is asked over a network, up to and with /v1 (scorer=vlm)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Scorers from outside of this package, by name: `_target_` (`scoring.base.Scorer`) and its arguments."""

    def __post_init__(self) -> None:
        one_of("scorer.dino_preprocess", self.dino_preprocess, ("checkpoint", "resize256_crop224"))
        one_of("scorer.clip_text", self.clip_text, ("class", "prompt"))

    @property
    def scores(self) -> bool:
        """Something judges."""
        return self.judges or bool(self.extra)

    @property
    def judges(self) -> bool:
        """CLIP and DINO judge."""
        return bool(self.clip and self.dino)

    def warning(self, *, photographs: bool) -> str | None:
        """Return what to say of the scores of such pictures, or None."""
        return self.photo_warning if photographs and self.judges else None

    def check_decides(self, what: str, *, photographs: bool, otherwise: str | None = None) -> None:
        """Let `what` hang on these judges' scores.

        Raises:
            ValueError: they do not know such pictures; with what to choose, `otherwise` among it.
        """
        if self.warning(photographs=photographs) is None:
            return
        ways = ["scorer=dreambench", *([otherwise] if otherwise else [])]
        raise ValueError(
            f"{what} would be decided by judges that do not know photographs (scorer={self.name}): choose "
            f"{', '.join(ways)}, or judges of your own that do (scorer.clip=DIR scorer.dino=DIR "
            "scorer.photo_warning=null)"
        )


def judged(objective: Iterable[str]) -> list[str]:
    """Return those of an objective's names ("dino*clip_t") that contain a measure by CLIP or DINO."""
    made = {name for name, measure in MEASURES.items() if measure.judges}
    return [name for name in objective if {factor.strip() for factor in name.split("*")} & made]
