"""Check that a stage learned something, without judges: a row moved, or pictures changed.

Loss and likeness do not show it: the loss is noisy, and [V] may start at a name that is like the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from personalar.concepts.concept import Concept
from personalar.core.types import Sample
from personalar.data.prompts import SUBJECT_TOKEN

if TYPE_CHECKING:
    from personalar.config.run_config import Stage
    from personalar.training.context import RunContext

LEAST_MOVE = 0.1
"""Lengths of [V]'s first row; below it a stage that trains nothing else has learned nothing."""
LEAST_CHANGE = 0.5
"""Share of pictures, of the same prompts and seeds, that a stage must change."""


def move_of(before: Concept, after: Concept) -> float:
    """Return the distance of [V] between two concepts, in lengths of its first row."""
    rows = [concept.rows[list(concept.tokens).index(SUBJECT_TOKEN)].float() for concept in (before, after)]
    return float((rows[1] - rows[0]).norm() / rows[0].norm())


def share_changed(before: Sequence[Sample], after: Sequence[Sample]) -> float | None:
    """Return the share (0 to 1) of the subject's pictures that changed; None without pictures."""
    old, new = _pixels(before), _pixels(after)
    both = old.keys() & new.keys()
    return sum(old[key] != new[key] for key in both) / len(both) if both else None


def _pixels(samples: Sequence[Sample]) -> dict[tuple[str, int], bytes]:
    """Return the subject's pictures by (prompt, seed)."""
    return {(s.prompt, s.seed): s.image.tobytes() for s in samples if s.kind == "subject"}


def note_move(session: RunContext, stage: Stage, before: Concept, after: Concept) -> None:
    """Say and record how far `stage` moved [V]; warn where it stayed."""
    if not stage.trains.identifier:
        return
    moved = move_of(before, after)
    session.reporter.say(f"stage {stage.name}: [V] moved {moved:.2g} of its length from where it began")
    facts: dict[str, Any] = {"v_moved": float(f"{moved:.4g}")}
    if before.stage == "base" and not stage.trains.changes_network:
        finding = f"[V] moved {moved:.2g} of its length, which should be more than {LEAST_MOVE}"
        facts["note"] = None if moved >= LEAST_MOVE else advice(session, stage, finding)
    record(session, stage.name, facts)


def note_pictures(session: RunContext, stage: Stage, samples: dict[str, list[Sample]]) -> None:
    """Record how many pictures of the stage before `stage` changed; warn where they are few."""
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
    """Return what was found of `stage`, and which of its numbers to raise, as the command line takes them."""
    numbers, where = stage.numbers, f"model.recipe.stages.{stage.trains.numbers}"
    return (
        f"stage {stage.name} learned next to nothing: {finding}. Raise {where}.lr={numbers.lr} or "
        f"{where}.steps={numbers.steps}"
    )


def record(session: RunContext, stage: str, facts: dict[str, Any]) -> None:
    """Put `facts` into the stage's entry of run.json, and their note where a reader sees it."""
    session.folder.update_stage(stage, **facts)
    note, before = facts.get("note"), session.folder.record.get("warnings", [])
    if note and note not in before:
        session.reporter.say(f"note: {note}", style="yellow")
        session.folder.update(warnings=[*before, note])


def notes(run: dict[str, Any]) -> list[str]:
    """Return what was noted of the stages of a run.json."""
    return [stage["note"] for stage in run.get("stages", {}).values() if stage.get("note")]
