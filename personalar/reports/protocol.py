"""The protocol of a table in one paragraph: what was drawn, which scorers, and what the means are over.

Scores of the same method differ by .07 between papers, since pictures per prompt, prompts, checkpoints and
crops differ; a table without them supports no claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

JUDGES = {
    "clip": "CLIP",
    "clip_preprocessing": "CLIP preprocessing",
    "clip_text": "CLIP-T reads",
    "dino": "DINO",
    "dino_preprocessing": "DINO preprocessing",
}
TEXTS = {"class": "the prompt with the class for [V]", "prompt": "the prompt as it is"}
MEANS = "means over references, then pictures, then subjects"


def protocol(runs: Iterable[Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the protocol of pictures of the subject; "" without scores.

    Args:
        runs: the records (run.json) of the runs in a table.
        lines: their lines of scores.jsonl.
    """
    runs, lines = list(runs), list(lines)
    if not lines:
        return ""
    parts = [_pictures(lines)]
    known = [run.get("scorers") or {} for run in runs]
    for key, title in JUDGES.items():
        if found := sorted({str(scorers[key]) for scorers in known if scorers.get(key)}):
            parts.append(f"{title} {' or '.join(TEXTS.get(value, value) for value in found)}")
    parts += sorted({run["selection"] for run in runs if run.get("selection")})
    others = sorted({name for scorers in known for name in scorers if name not in JUDGES})
    if others:
        parts.append(f"other scorers: {', '.join(others)}")
    crop = ", and the subject's box where a column says so" if "subject_crop" in others else ""
    parts.append(f"scored: the whole picture{crop}")
    return "Protocol: " + "; ".join([*filter(None, parts), MEANS])


def _pictures(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return how many pictures there are for how many prompts, and their seeds."""
    seeds: dict[str, set[int]] = {}
    for line in lines:
        if line["kind"] == "subject":
            seeds.setdefault(str(line.get("template", line["prompt"])), set()).add(line["seed"])
    if not seeds:
        return ""
    counts = sorted({len(found) for found in seeds.values()})
    drawn = sorted(set.union(*seeds.values()))
    listed = ", ".join(map(str, drawn[:8])) + (", ..." if len(drawn) > 8 else "")
    some = f"{counts[0]} to {counts[-1]} pictures" if len(counts) > 1 else _plural(counts[0], "picture")
    return f"{_plural(len(seeds), 'prompt')}, {some} for each and stage (seeds {listed})"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"
