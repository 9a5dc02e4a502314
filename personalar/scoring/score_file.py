"""Read and write `scores.jsonl`, with one JSON object per line; the file is always replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from personalar.core.files import fits, is_whole, parse_json, write_text

KEY = ("stage", "kind", "prompt", "seed", "scorer")
"""Two lines with equal values of these fields are about the same picture and measure."""
LINE = {
    **dict.fromkeys(("stage", "kind", "prompt", "scorer", "template", "category"), str),
    **dict.fromkeys(("context_top1", "accessory_top1", "style_top1"), (bool, float, None)),
    "seed": int,
    "value": float,
    "nearest": float,
    "nearest_reference": int,
    "*": object,
}
"""Allowed fields of a line and their types; see `files.fits`."""
LARGEST_LINE = 100_000
"""Characters that are parsed per line; prompts can have several thousand."""
ANEW = "delete the file and run the same command again, which scores the pictures again"


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the score lines of `path`; an empty list if it does not exist.

    Raises:
        ValueError: a line is not a valid score.
    """
    if not path.is_file():
        return []
    lines = []
    # errors="replace": a damaged byte gives an invalid line with its number instead of a decoding error.
    # Not `splitlines`, which also splits at characters that prompts may contain, such as U+2028.
    texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    for number, text in enumerate(texts.split("\n") if texts else (), start=1):
        try:
            # A longer line is cut, and then invalid.
            line = parse_json(text[:LARGEST_LINE])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a score ({error}); {ANEW}") from error
        # The comparison is false for NaN too.
        valid = fits(line, LINE) and {*KEY, "value"} <= set(line)
        if not valid or not abs(line["value"]) < 1e300:
            raise ValueError(
                f"{path}, line {number}: not a score; required: {', '.join((*KEY, 'value'))}; {ANEW}"
            )
        lines.append({**line, "value": float(line["value"])})
    return lines


def merge_scores(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Add `lines` to the file, replacing older lines with the same `KEY`; return the number of lines.

    The file is replaced atomically. A resumed run can therefore score again without duplicates.
    """
    before = read_scores(path) if is_whole(path) else []
    # A dict keeps the place of an older line, so an unchanged file stays byte-identical.
    merged = {tuple(line[key] for key in KEY): line for line in [*before, *lines]}
    write_scores(path, merged.values())
    return len(merged)


def write_scores(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write `lines`, and nothing else, into the file."""
    write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
