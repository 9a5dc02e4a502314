"""Detect a stage that learned nothing, without a scorer: [V] barely moved, or no picture changed.

Loss and likeness do not show it: the loss is noisy, and [V] may start at a name that resembles the subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from personalar.concepts.concept import Concept
from personalar.core.types import Sample

if TYPE_CHECKING:
    from personalar.config.run_config import Stage
    from personalar.training.context import RunContext

LEAST_MOVE = 0.1
"""Smallest distance that [V] should move, relative to the length of its initial embedding. It applies to
stages that train only [V]. On the first nano base (96 px) it was 0.026 at a learning rate of 1e-3, where
nothing was learned."""
LEAST_CHANGE = 0.5
"""Smallest share of pictures (same prompts and seeds) that a stage should change."""


def move_of(before: Concept, after: Concept) -> float:
    """Return the distance of [V], all its rows, between two concepts, relative to its length in `before`."""
    start, end = before.subject_rows.float(), after.subject_rows.float()
    return float((end - start).norm() / start.norm())


def share_changed(before: Sequence[Sample], after: Sequence[Sample]) -> float | None:
    """Return the share (0 to 1) of the subject's pictures that differ; None if there are none in common."""
    old, new = _pixels(before), _pixels(after)
    both = old.keys() & new.keys()
    return sum(old[key] != new[key] for key in both) / len(both) if both else None


def _pixels(samples: Sequence[Sample]) -> dict[tuple[str, int], bytes]:
    """Return the pixels of the subject's pictures by (prompt, seed)."""
    return {(s.prompt, s.seed): s.image.tobytes() for s in samples if s.kind == "subject"}


def note_move(session: RunContext, stage: Stage, before: Concept, after: Concept) -> None:
    """Print and record how far `stage` moved [V]; add a note if it hardly moved."""
    if not stage.trains.identifier:
        return
    moved = move_of(before, after)
    session.reporter.say(f"stage {stage.name}: [V] moved {moved:.2g} of its length from its start")
    facts: dict[str, Any] = {"v_moved": float(f"{moved:.4g}")}
    # If the network is trained too, [V] need not move far.
    if before.stage == "base" and not stage.trains.changes_network:
        finding = f"[V] moved {moved:.2g} of its length, which should be more than {LEAST_MOVE}"
        facts["note"] = None if moved >= LEAST_MOVE else advice(session, stage, finding)
    record(session, stage.name, facts)


def note_pictures(session: RunContext, stage: Stage, samples: dict[str, list[Sample]]) -> None:
    """Print and record the share of pictures that `stage` changed; add a note if it is small."""
    share = (
        None if stage.start == "base" else share_changed(samples.get(stage.start, []), samples[stage.name])
    )
    if share is None:
        return
    session.reporter.say(f"stage {stage.name}: {share:.0%} of the subject's pictures changed")
    finding = f"only {share:.0%} of the subject's pictures differ from those of stage {stage.start}"
    note = None if share >= LEAST_CHANGE else advice(session, stage, finding)
    record(session, stage.name, {"pictures_changed": round(share, 4), "note": note})


def advice(session: RunContext, stage: Stage, finding: str) -> str:
    """Return a note with the finding and with the settings of `stage` to raise."""
    numbers, where = stage.numbers, f"model.recipe.stages.{stage.trains.numbers}"
    return (
        f"stage {stage.name} learned next to nothing: {finding}. Raise {where}.lr={numbers.lr} or "
        f"{where}.steps={numbers.steps}"
    )


def record(session: RunContext, stage: str, facts: dict[str, Any]) -> None:
    """Add `facts` to the stage's entry of run.json; print their note, and add it to the run's warnings."""
    session.folder.update_stage(stage, **facts)
    note, before = facts.get("note"), session.folder.record.get("warnings", [])
    if note and note not in before:  # a resumed run finds it there already
        session.reporter.say(f"note: {note}", style="yellow")
        session.folder.update(warnings=[*before, note])
