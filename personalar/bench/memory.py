"""Memory of the 7B by method and spared item: `python -m personalar.bench memory batch=4 resolution=512`.

Nothing is measured here: the program's own estimate (`personalar/training/memory.py`), which a test holds against real
allocations, is printed for Lumina-mGPT's shape.

    batch=4             sequences of one pass
    resolution=512      pixels a side
"""

from __future__ import annotations

from dataclasses import replace

import torch

from personalar.generation.batching import PICTURES_AT_ONCE
from personalar.models.chameleon.memory_shape import decode_bytes
from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.chameleon.vq import VQConfig
from personalar.training.memory import Workload, estimate, peak, sampling_bytes

QKV = ("model.layers.*.self_attn.[qkv]_proj.weight",)
METHODS = {
    "embedding_only": {"patterns": ()},
    "lora (rank 16)": {"patterns": (), "lora_rank": 16},
    "qlora (rank 16)": {"patterns": (), "lora_rank": 16, "base_bits": 4},
    "paper (q, k, v)": {"patterns": QKV},
    "full": {"patterns": ("model.layers.*",)},
}
CODE_PX, PROMPT_TOKENS = 16, 64


def main(arguments: list[str]) -> None:
    """Entry point: print the table in Markdown."""
    given = {"batch": 4, "resolution": 512}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in given or not value.isdigit() or int(value) < 1:
            raise ValueError(f"{argument!r} is no setting; allowed: batch=N, resolution=N")
        given[name] = int(value)
    side = given["resolution"] // CODE_PX
    work = Workload(
        shape=TransformerConfig(), dtype=torch.bfloat16, patterns=(), batch=given["batch"],
        tokens=side * (side + 1) + 5 + PROMPT_TOKENS, image_tokens=side * side, choices=8192, sample_batch=4,
        pictures=decode_bytes(VQConfig(), PICTURES_AT_ONCE, given["resolution"] ** 2),
    )  # fmt: skip
    columns = ("frozen weights", "trained weights", "gradients", "optimizer states", "logits", "activations")
    print(f"| method, batch {work.batch} x {work.tokens} tokens | {' | '.join(columns)} | sum | recomputed |")
    print("|---" * (len(columns) + 3) + "|")
    for name, changes in METHODS.items():
        items = estimate(replace(work, **changes))
        spared = peak(estimate(replace(work, **changes, recompute=True)))
        cells = " | ".join(f"{items[column] / 1e9:.2f}" for column in columns)
        print(f"| {name} | {cells} | **{peak(items) / 1e9:.1f}** | {spared / 1e9:.1f} |")
    print(f"\nSampling 4 images together: {peak(sampling_bytes(work)) / 1e9:.1f} GB.")
