"""Scorer settings, and a check that decisions about photographs use suitable scorers. Values: conf/scorer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import limits, one_of
from personalar.config.plugins import check_names_class
from personalar.core.measures import MEASURES

VLM_JUDGE = "personalar.scoring.vlm.vlm_judge.VlmJudge"
HOW_ASKED = ("parallel", "timeout", "attempts", "wait", "cache")
"""Arguments of `VlmJudge` on which no score depends."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of an entry of `extra` on which its scores depend."""
    without = HOW_ASKED if settings.get("_target_") == VLM_JUDGE else ()
    return {name: value for name, value in settings.items() if name not in without}


@dataclass(kw_only=True)
class ScorerConfig:
    """The scorers. Without clip, dino and extra there are no scores."""

    name: str = MISSING
    clip: str | None = None
    """Folder or hub id of a CLIP model; "package://x" is inside the installed package."""
    dino: str | None = None
    """Folder or hub id of a DINO-style vision transformer."""
    dino_preprocess: str = "checkpoint"
    """Preprocessing of DINO: "checkpoint" (its preprocessor_config.json) or "resize256_crop224" (evaluation
    transform of the DINO authors)."""
    clip_text: str = "class"
    """Text that CLIP-T compares with: "class" ("[V] cat" becomes "cat") or "prompt" (unchanged)."""
    photo_warning: str | None = None
    """Warning for subjects of real photographs, which these scorers were not trained on; scores then
    decide nothing. null: the scorers suit photographs."""
    subject_crop: bool = False
    """Measure DINO and CLIP-I on the subject's box too: columns "DINO crop" and "CLIP-I crop"."""
    outside: bool = False
    """Measure what a concept leaves unchanged outside of the subject: column "unchanged outside"."""
    url: str | None = None
    """Address of a server that scores pictures over the network, including /v1 (scorer=vlm)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """User-defined scorers by name: `_target_` (see `scoring.base.Scorer`) and its arguments."""

    def __post_init__(self) -> None:
        one_of("scorer.dino_preprocess", self.dino_preprocess, ("checkpoint", "resize256_crop224"))
        one_of("scorer.clip_text", self.clip_text, ("class", "prompt"))
        if bool(self.clip) != bool(self.dino):
            raise ValueError(
                f"scorer.clip={self.clip} scorer.dino={self.dino}: the two are used together: set both, or "
                "neither"
            )
        for name, settings in self.extra.items():
            check_names_class(f"scorer.extra.{name}", settings)

    @property
    def scores(self) -> bool:
        """True if there is any scorer."""
        return self.judges or bool(self.extra)

    @property
    def judges(self) -> bool:
        """True if CLIP and DINO are used."""
        return bool(self.clip and self.dino)

    def warning(self, *, photographs: bool) -> str | None:
        """Return `photo_warning` if the pictures are photographs and CLIP and DINO are used, else None."""
        return self.photo_warning if photographs and self.judges else None

    def check_decides(
        self, what: str, *, photographs: bool, otherwise: str | None = None, choice: str = "scorer=dreambench"
    ) -> None:
        """Check that scores may decide `what`, such as the best run of a sweep.

        Args:
            what: for the message.
            photographs: whether the pictures are real photographs.
            otherwise: another way to avoid the error, for the message.
            choice: the setting that selects other scorers, for the message.

        Raises:
            ValueError: the scorers were not trained on photographs.
        """
        if self.warning(photographs=photographs) is None:
            return
        key = choice.partition("=")[0]
        ways = [choice, *([otherwise] if otherwise else [])]
        raise ValueError(
            f"{key}={self.name} was trained on rendered pictures, so its scores of photographs mean nothing; "
            f"{what} needs others: {', '.join(ways)}, or your own scorers ({key}.clip=DIR {key}.dino=DIR "
            f"{key}.photo_warning=null)"
        )


@dataclass(kw_only=True)
class SelectionConfig:
    """Which step of a stage is kept: the last one, or the best one of those with a sample grid."""

    scorer: ScorerConfig = field(default_factory=lambda: ScorerConfig(name="none"))
    """An option of `scorer` whose scores select the step; none: the last step is kept. Choose others than
    for `scorer`: reported scores of the same scorers would be too high, because they selected the step."""
    measures: list[str] = field(default_factory=lambda: ["dino", "clip_t"])
    """Two measures of `scorer`, likeness and prompt following; both are cosine similarities."""
    likeness_weight: float = field(default=0.5, metadata=limits(0, 1))
    """Weight of likeness in the harmonic mean with prompt following (lambda in RPO, arXiv 2407.12164), for
    the selection of a step and for the curve `val/harmonic`."""

    def __post_init__(self) -> None:
        if len(self.measures) != 2:
            raise ValueError(
                f"selection.measures={self.measures}: give two, one of likeness and one of prompt following, "
                "such as [dino,clip_t]"
            )

    def check(self, *, every: int, fewest_steps: int, photographs: bool) -> None:
        """Check that a step of every stage can be selected.

        Args:
            every: steps between sample grids; 0: none.
            fewest_steps: steps of the shortest stage.
            photographs: whether the pictures are real photographs.

        Raises:
            ValueError: a stage has no sample grid, or the scorers were not trained on photographs.
        """
        if not self.scorer.scores:
            return
        if not 0 < every <= fewest_steps:
            raise ValueError(
                f"selection.scorer={self.scorer.name} selects among the steps with a sample grid, but "
                f"samples.grid_every_steps={every} gives none in a stage of {fewest_steps} steps; allowed: 1 "
                f"to {fewest_steps}"
            )
        self.scorer.check_decides(
            "the selection of a step", photographs=photographs, choice="selection.scorer=modern"
        )


def judged(objective: Iterable[str]) -> list[str]:
    """Return the entries of an objective (such as "dino*clip_t") that contain a measure of CLIP or DINO."""
    made = {name for name, measure in MEASURES.items() if measure.judges}
    return [name for name in objective if {factor.strip() for factor in name.split("*")} & made]
