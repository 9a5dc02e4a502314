"""What every number of the configuration may be, on one page: smallest and largest value by pattern.

Checked on what is composed, before anything is loaded. The dataclasses check names and what contradicts what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

MANY, LARGEST_SEED = 10**9, 2**63 - 1
RANGES: dict[str, tuple[float, float]] = {
    "*seed": (0, LARGEST_SEED),
    "*seeds": (0, LARGEST_SEED),
    "samples.num_grid_prompts": (1, 100),
    "samples.grid_every_steps": (0, MANY),
    "samples.time_share": (0, 1),
    "samples.prior_images": (2, MANY),
    "logger.wandb_upload_seconds": (0, MANY),
    "scorer.likeness_weight": (0, 1),
    "model.*hub.gigabytes": (0, MANY),
    "model.sampling.batch": (1, MANY),
    "*.cfg_scale": (0, 1000),
    "*.top_k": (0, MANY),
    "*.top_p": (1e-6, 1),
    "*.temperature": (0, 1000),
    "decoder.window": (2, MANY),
    "decoder.max_batch": (1, MANY),
    "decoder.bucket": (1, MANY),
    "model.layout.grid_px": (1, 4096),
    "model.layout.resolution": (1, 65536),
    "model.layout.ids.*": (0, MANY),
    "model.recipe.z_loss": (0, 1000),
    "model.recipe.dropout": (0, 0.9),
    "model.recipe.stages.*.steps": (1, MANY),
    "model.recipe.stages.*.batch": (1, MANY),
    "model.recipe.stages.*.accumulate": (1, MANY),
    "model.recipe.stages.*lr": (0, 1000),
    "model.recipe.stages.*.weight_decay": (0, 1000),
    "model.recipe.stages.*.betas": (0, 0.999999),
    "model.recipe.stages.*.gradient_clip": (1e-9, MANY),
    "model.recipe.stages.*.replay_ratio": (0, 0.9),
    "model.recipe.stages.*.image_token_ratio": (0, 1),
    "model.recipe.data.*prompt_dropout": (0, 1),
    "model.recipe.data.*_per_photo": (0, MANY),
    "model.recipe.data.crop_scale": (0.1, 1),
    "model.recipe.data.replay_images": (0, MANY),
    "method.base_bits": (4, 16),
    "method.stages.*.lora.rank": (0, MANY),
    "method.stages.*.lora.every_n_layers": (1, MANY),
    "trainer.devices": (1, 4096),
    "trainer.num_nodes": (1, MANY),
    "trainer.threads": (1, 4096),
    "trainer.checkpoint_every_steps": (1, MANY),
    "memory.gigabytes": (0.001, MANY),
    "benchmark.published.*": (0, MANY),
    "benchmark.tolerance": (0, 1),
    "jobs": (1, MANY),
}
SIZES = {"model.recipe.stages.*.betas": 2}
"""How many numbers a list must hold."""


def range_of(knob: str) -> tuple[float, float] | None:
    """Return the smallest and the largest value of `knob` (a.b.c); None where the page does not know it."""
    return next((found for pattern, found in RANGES.items() if fnmatchcase(knob, pattern)), None)


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (a.b.c, value) of nested mappings."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_ranges(config: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the knob and what is allowed, for a number that cannot be meant."""
    for knob, value in leaves(config):
        for pattern, count in SIZES.items():
            if fnmatchcase(knob, pattern) and len(value) != count:
                raise ValueError(f"{knob}={value} must hold {count} numbers")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            low, high = range_of(knob) or (-math.inf, math.inf)
            if not low <= number <= high or not math.isfinite(number):
                most = "" if high >= MANY else f" to {high:g}"
                raise ValueError(
                    f"{knob}={number} is out of range; allowed: {low:g}{most or ' and more'}, a finite number"
                )
