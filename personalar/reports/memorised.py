"""Memorisation: pictures that are more similar to a training photo than any two photos to each other.

Similarity is the cosine of DINO features, in [-1, 1]. With a single photo memorisation is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from personalar.core.png import is_whole_png

MEANING = "more similar to a training photo than the two most similar photos are to each other"


def is_memorised(line: Mapping[str, Any], bounds: Mapping[str, Any]) -> bool | None:
    """Return whether a line of scores.jsonl is about a memorised picture; None if that is unknown.

    Args:
        line: a line of scores.jsonl.
        bounds: `SubjectScorer.bounds`, from run.json.
    """
    most = (bounds.get("photos") or {}).get("dino_max")
    if most is None or line["scorer"] != "dino" or "nearest" not in line:
        return None
    return bool(line["nearest"] > most)


def memorised_share(lines: Iterable[Mapping[str, Any]], bounds: Mapping[str, Any]) -> float | None:
    """Return the share of memorised pictures, 0 to 1; None if it is unknown for all of them."""
    found = [is_memorised(line, bounds) for line in lines]
    known = [answer for answer in found if answer is not None]
    return round(sum(known) / len(known), 6) if known else None


def copied_photo(run_dir: Path, line: Mapping[str, Any], bounds: Mapping[str, Any]) -> Path | None:
    """Return the most similar training photo of a memorised picture; None for other pictures."""
    if not is_memorised(line, bounds) or "nearest_reference" not in line:
        return None
    path = run_dir / "references" / f"{line['nearest_reference']:02d}.png"
    # A run folder may have been copied without its photos.
    return path if is_whole_png(path) else None
