"""The README.md beside exported files: the model card of the concept, of what really lies there."""

from __future__ import annotations

import shlex
from pathlib import Path

from personalar.concepts.concept import Concept
from personalar.concepts.model_card import (
    CARD_FILE,
    FOREIGN_BASE,
    Content,
    base_words,
    model_card,
    plain,
    sample_command,
    short,
)
from personalar.core.files import write_atomic
from personalar.data.prompts import SUBJECT_TOKEN


def export_content(concept: Concept, checkpoint: str | None) -> Content:
    """Return what an export holds: a row, perhaps an adapter, perhaps a checkpoint, whose form is given."""
    count, base, where = len(concept.weights), base_words(concept), "in none of these files"
    kind = ["its row of the embedding table"]
    parts = [
        f"- `learned_embeds.safetensors`: the row, learned on the base of fingerprint `{short(concept)}`"
    ]
    if concept.lora:
        kind.append("a LoRA adapter")
        parts.append("- `lora/`: the adapter as PEFT wrote it, trained on the same base")
    if checkpoint is not None:
        kind.append("the whole model with all that was learned in it")
        token = concept.tokens[SUBJECT_TOKEN]
        parts.append(f"- `checkpoint/`: the whole model, where `[V]` is the token {token}; {checkpoint}")
        where = "in checkpoint/"
    elif count:
        parts.append(
            f"- not here: {count} tensors of the transformer that were trained too. With the row alone, "
            "pictures are less like the subject; `checkpoint=true` exports all"
        )
    return Content(
        kind=" and ".join(kind),
        needs="\n\n".join(("In this folder, DIR below, lie:", "\n".join(parts))),
        commands=adopt_commands(concept, base, checkpoint=checkpoint is not None),
        changed=f"{count}, {where}" if count else "0",
        names=(SUBJECT_TOKEN,) if checkpoint is None else tuple(concept.tokens),
    )


def adopt_commands(concept: Concept, base: str, *, checkpoint: bool) -> tuple[str, ...]:
    """Return how an export becomes a concept again, and how to draw with that.

    An adapter goes back on the base that it was trained on; other changed weights are in the checkpoint
    alone, which then is the base.
    """
    if checkpoint and not concept.lora:
        base = f"{base.removesuffix(FOREIGN_BASE)} model.path=DIR/checkpoint"
    words = ["DIR", *shlex.split(base)]
    names = ", ".join(f"{key}={plain(concept.subject[key])!r}" for key in ("noun", "name"))
    return (
        f"python - <<END\nfrom pathlib import Path\nfrom personalar.concepts.exchange import read_export\n"
        f"read_export({', '.join(map(repr, words))}, {names}).save(Path('adopted'))\nEND",
        sample_command(concept, "adopted", base),
    )


def write_export_card(concept: Concept, folder: Path, *, checkpoint: str | None) -> Path:
    """Write the card of an export into `folder`; return its path.

    Args:
        checkpoint: the form of the checkpoint in `folder`, in words; None: there is none.
    """
    path = folder / CARD_FILE
    write_atomic(path, model_card(concept, folder, export_content(concept, checkpoint)).encode())
    return path
