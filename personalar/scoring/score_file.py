"""`scores.jsonl`: one JSON object a line, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from personalar.core.files import fits, is_whole, parse_json, write_text

KEY = ("stage", "kind", "prompt", "seed", "scorer")
"""What makes two lines speak of the same thing."""
LINE = {
    **dict.fromkeys(("stage", "kind", "prompt", "scorer", "template", "category"), str),
    **dict.fromkeys(("context_top1", "accessory_top1"), (bool, float, None)),
    "seed": int,
    "value": float,
    "nearest": float,
    "nearest_reference": int,
    "*": object,
}
"""The shape of a line (`files.fits`)."""
LARGEST_LINE = 100_000
"""Characters; a prompt may have some thousand."""
ANEW = "delete the file and run the run's own command again, which scores its pictures anew"


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `path`; none when it does not exist.

    Raises:
        ValueError: a line is not a score.
    """
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = parse_json(text[:LARGEST_LINE])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a score ({error}); {ANEW}") from error
        if not fits(line, LINE) or not {*KEY, "value"} <= set(line):
            raise ValueError(f"{path}, line {number}: not a score: needs {', '.join(KEY)}; {ANEW}")
        lines.append({**line, "value": float(line["value"])})
    return lines


def merge_scores(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Add `lines` to the file, each instead of an older one on the same thing; return how many it holds.

    Atomic, and the same lines may come twice: a resumed run scores again without leaving doubles.
    """
    before = read_scores(path) if is_whole(path) else []
    merged = {tuple(line[key] for key in KEY): line for line in [*before, *lines]}
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in merged.values())
    write_text(path, text)
    return len(merged)
