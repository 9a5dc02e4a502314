"""The result of a run for others: the folder `concept/` with a model card and example pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from personalar.concepts.concept import Concept
from personalar.concepts.model_card import concept_files, write_card
from personalar.core.files import write_atomic
from personalar.core.own_files import PICTURES, delete_own
from personalar.core.run_folder import RunFolder
from personalar.core.types import Sample
from personalar.reports.summary import scores_of_concept

SHOWN = 3
"""Number of pictures in the model card."""


def publish_concept(run: RunFolder, stage: str) -> Path:
    """Copy the concept of `stage` to `concept/`, with a model card; return the folder."""
    concept = Concept.load(run.concept(stage))
    folder = concept.save(run.path / "concept")
    delete_own(run.path, f"concept/{PICTURES}")  # those of the previous stage
    write_card(
        concept, folder, files=concept_files(folder)
    )  # without pictures; `show_pictures` writes it again with them
    return folder


def show_pictures(run: RunFolder, samples: Sequence[Sample]) -> None:
    """Copy the first pictures of the subject into `concept/`, and write its model card with them."""
    folder = run.path / "concept"
    paths = [sample.path for sample in samples if sample.kind == "subject" and sample.path is not None]
    # Copied and not linked, because the folder is uploaded to the hub.
    for path in paths[:SHOWN]:
        write_atomic(folder / PICTURES / path.name, path.read_bytes(), sync=False)
    concept = Concept.load(folder)
    scores = scores_of_concept(folder, concept.stage)
    write_card(concept, folder, files=concept_files(folder), scores=scores)
