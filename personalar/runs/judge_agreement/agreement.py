"""Agreement of the scorers with human ratings, or with planted faults in the rendered world.

OUT/agreement.json    the numbers with intervals; with ratings OUT/agreement_ratings.json
OUT/agreement.md      the table
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personalar.config.commands import EvaluateConfig
from personalar.core.files import write_text
from personalar.core.measures import Measure

Cell = dict[str, Any]
"""A number with its interval: "value", "interval", and the number of "pictures" or "subjects"."""
Table = dict[str, dict[str, Cell]]
"""{title of a measure: {column: cell}}."""


def agreement(config: EvaluateConfig) -> Table:
    """Compute, write and print the agreement of each measure of `config.scorer`; return the table.

    Raises:
        ValueError: there are no scorers, or neither ratings nor rendered subjects.
        FileNotFoundError: the folder of ratings is incomplete.
    """
    from personalar.runs.judge_agreement.human_ratings import with_people
    from personalar.runs.judge_agreement.planted_faults import with_truth

    if not config.scorer.scores:
        raise ValueError("agreement needs judges: scorer=dreambench, or scorer.extra.NAME._target_=...")
    if config.ratings is not None:
        table, note = with_people(config.scorer, Path(config.ratings).expanduser())
    elif config.benchmark.kind == "rendered":
        table, note = with_truth(config)
    else:
        raise ValueError("agreement needs ratings=DIR, or the rendered subjects of benchmark=nanobench")
    out, text = Path(config.out), f"{as_table(table)}\n\n{note}\n"
    stem = "agreement_ratings" if config.ratings else "agreement"  # both can be in one folder
    write_text(out / f"{stem}.json", json.dumps({"note": note, "table": table}, indent=1) + "\n")
    write_text(out / f"{stem}.md", text)
    print(f"{text}written: {out / stem}.md")
    return table


def judged(measures: Sequence[Measure]) -> list[Measure]:
    """Return the measures with a value for each picture, of which a higher one is better."""
    return [measure for measure in measures if measure.is_scored and measure.better == "higher"]


def as_table(table: Table) -> str:
    """Return the table in Markdown, with a row per measure."""
    columns = list(dict.fromkeys(name for cells in table.values() for name in cells))
    lines = ["| " + " | ".join(["", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, cells in table.items():
        lines.append("| " + " | ".join([title, *(_text(cells.get(name)) for name in columns)]) + " |")
    return "\n".join(lines)


def _text(found: Cell | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    ends = found["interval"]
    return f"{found['value']:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else f"{found['value']:.2f}"
