"""The comparison of runs as text: a Markdown table, and sentences on the differences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from personalar.core.errors import is_control
from personalar.core.measures import MEASURES


def columns_of(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return name -> title for the measures that at least one record contains."""
    titles = titles_of(records)
    names = [name for name in records[0] if any(record[name] is not None for record in records)]
    return {name: titles[name] for name in names if titles.get(name)}


def titles_of(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return name -> title for all measures, including user-defined ones; "" for those without a column."""
    own = {name: measure.title or "" for name, measure in MEASURES.items()}
    return own | {name: title for record in records for name, title in record["titles"].items()}


def _cell(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return "–"
    if name == "seconds":
        return f"{value:.0f}"
    ends = record.get(f"{name}_interval")
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else f"{value:.3f}"


def titled(record: dict[str, Any]) -> str:
    """Return a row's title, marked if its scores come from other scorers than the reference's."""
    return f"{record['row']} (other scorers)" if record["other_judges"] else record["row"]


def as_markdown(text: str) -> str:
    """Escape a foreign text for Markdown, and replace control characters that terminals interpret."""
    # Names of folders are printed to a terminal, where escape sequences could run.
    plain = "".join("�" if is_control(character) else character for character in text)
    return re.sub(r"([\\`*\[\]|<>&#~])", r"\\\1", plain)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown with its protocol; columns without any value are left out."""
    columns = columns_of(records)
    if "fidelity" in columns:
        columns.pop("dino", None)  # fidelity is DINO on another scale
    head = ["", "subjects", "images", *columns.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in records:
        cells = [as_markdown(titled(record)), str(record["subjects"]), str(record["images"])]
        lines.append("| " + " | ".join([*cells, *(_cell(record, name) for name in columns)]) + " |")
    said = records[0]["protocol"]
    return "\n".join([*lines, *(["", as_markdown(said)] if said else [])])


def _sentence(name: str, found: dict[str, Any]) -> str:
    # Significant if the 95 % interval does not contain 0.
    note = "" if found["low"] > 0 or found["high"] < 0 else " (not significant)"
    return (
        f"{name} {found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], p={found['p']:.3f}{note}"
    )


def verdicts(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return one sentence per row with its differences to the reference, and whether they are significant."""
    sentences, titles = [], titles_of(records)
    for record in records:
        parts = [_sentence(titles[name], found) for name, found in record["versus"].items()]
        if record["other_judges"]:
            measures = ", ".join(titles[name] for name in record["other_judges"])
            parts.append(
                f"{measures} not compared, because the pictures were scored by other scorers: run both "
                "commands again with the same scorer= (concepts and pictures are kept)"
            )
        if parts:
            names = f"{as_markdown(record['row'])} against {as_markdown(record['against'])}"
            sentences.append(f"{names}: {'; '.join(parts)}")
    return sentences
