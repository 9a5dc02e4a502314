"""What a measurement of sampling says: one row per decoder and batch, as a record and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from personalar.bench.baseline import BASELINES
from personalar.bench.peak import Peak
from personalar.bench.roofline import step_bytes
from personalar.models.chameleon.backend import ChameleonBackend

PROMPT = "a photo of a cat in the snow"


@dataclass(kw_only=True)
class Contender:
    """One decoder or baseline at one batch size, and what was measured of it."""

    name: str
    batch: int
    draw: Callable[..., Any]
    decode_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    """With image tokenizer and PNG."""
    cpu_s: list[float] = field(default_factory=list)
    """Processor time of decoding: on a busy CPU steadier than the clock's."""
    steps: list[int] = field(default_factory=list)
    first_s: float = 0.0
    """The first run, with compiling and capturing."""
    peak: Peak = field(default_factory=Peak)
    failed: str = ""
    """Why it could not be measured."""


def summary(
    contender: Contender, everyone: list[Contender], backend: ChameleonBackend, bandwidth: float
) -> dict[str, Any]:
    """Return one row of the table."""
    if contender.failed:
        return {"decoder": contender.name, "batch": contender.batch, "failed": contender.failed}
    side = backend.protocol.config.resolution
    h, w = backend.protocol.code_shape(side, side)
    grammar = len(backend.grammar(h, w))
    prompt = len(backend.protocol.prompt_ids(PROMPT, side, side))
    guided = contender.draw.sampling.guided
    batch, decode = contender.batch, statistics.median(contender.decode_s)
    steps = statistics.mean(contender.steps)
    steps = steps if steps > 2 else h * w  # graphs that were captured before pass the counter by
    read = step_bytes(backend, batch=batch, prompt=prompt, answer=grammar, guided=guided)
    ordered = sorted(contender.decode_s)
    row = {
        "decoder": contender.name,
        "batch": batch,
        "steps": steps,
        "ms_per_step": 1e3 * decode / steps,
        "decode_s": decode,
        "cpu_s": statistics.median(contender.cpu_s),
        "decode_s_p10": ordered[round(0.1 * (len(ordered) - 1))],
        "decode_s_p90": ordered[round(0.9 * (len(ordered) - 1))],
        "images_per_s": batch / statistics.median(contender.total_s),
        "peak_mb": contender.peak.used / 1e6,
        **({"reserved_mb": contender.peak.reserved / 1e6} if contender.peak.reserved else {}),
        "first_run_extra_s": max(0.0, contender.first_s - decode),
        "bytes_per_step": read,
        "roofline_fraction": h * w * read / bandwidth / decode,
    }
    for name in BASELINES.values():
        for other in everyone:
            if other.name == name and other.batch in (batch, 1) and not other.failed:
                for kind, mine, theirs in (
                    ("x", contender.decode_s, other.decode_s),
                    ("cpu x", contender.cpu_s, other.cpu_s),
                ):
                    pairs = zip(theirs, mine, strict=True)
                    per_image = statistics.median(a / other.batch / (b / batch) for a, b in pairs)
                    row[f"{kind} {name}, batch {other.batch}"] = per_image
    return row


def ratio(row: dict[str, Any], kind: str, name: str) -> str:
    """Return how many times as fast a row is as the baseline `name` at its batch, or - without that one."""
    value = row.get(f"{kind} {name}, batch {row['batch']}")
    return "-" if value is None else f"{value:.2f}"


def table(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| decoder | batch | steps | ms/step | s/batch (p10-p90) | images/s with PNG | peak MB (reserved) "
        "| first run +s | of roofline | x generate | x static | cpu s | cpu x generate | cpu x static |",
        "|" + "---|" * 14,
    ]
    for row in record["rows"]:
        if "failed" in row:
            lines.append(f"| {row['decoder']} | {row['batch']} | {row['failed']} |" + " |" * 11)
            continue
        reserved = f" ({row['reserved_mb']:.0f})" if "reserved_mb" in row else ""
        ratios = [ratio(row, kind, name) for kind in ("x", "cpu x") for name in BASELINES.values()]
        lines.append(
            f"| {row['decoder']} | {row['batch']} | {row['steps']:.0f} | {row['ms_per_step']:.2f} "
            f"| {row['decode_s']:.2f} ({row['decode_s_p10']:.2f}-{row['decode_s_p90']:.2f}) "
            f"| {row['images_per_s']:.2f} | {row['peak_mb']:.0f}{reserved} | {row['first_run_extra_s']:.1f} "
            f"| {100 * row['roofline_fraction']:.1f} % | {ratios[0]} | {ratios[1]} "
            f"| {row['cpu_s']:.2f} | {ratios[2]} | {ratios[3]} |"
        )
    return "\n".join(lines)
