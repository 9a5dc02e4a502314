"""Export a learned concept for other programs: `python -m personalar.export concept=DIR out=DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from personalar.concepts.concept_source import concept_folder, with_concept
from personalar.config.command_line import start
from personalar.config.commands import ExportConfig
from personalar.core.errors import user_errors


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
    with user_errors("personalar.export"):
        sys.argv[1:] = with_concept(sys.argv[1:])
    start("export", export)


if __name__ == "__main__":
    main()
