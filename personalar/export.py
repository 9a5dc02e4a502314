"""Export a learned concept for other programs: `python -m personalar.export concept=DIR out=DIR`."""

from __future__ import annotations

from pathlib import Path

from personalar.config.command_line import start
from personalar.config.commands import ExportConfig
from personalar.generation.chosen_concepts import concept_folder


def export(config: ExportConfig) -> None:
    """Write the export and print the path of each file."""
    folder, out = concept_folder(config.concept), Path(config.out).expanduser()
    # These load torch: a wrong folder is reported before.
    from personalar.concepts.concept import Concept
    from personalar.concepts.exchange import write_export
    from personalar.reports.summary import scores_of_concept

    concept = Concept.load(folder)
    scores = scores_of_concept(folder, concept.stage)
    for path in write_export(concept, out, config.model, checkpoint=config.checkpoint, scores=scores):
        print(path)


def main() -> None:
    """Entry point."""
    start("export", export)


if __name__ == "__main__":
    main()
