"""How many operations a training step takes, by what trains in it, to compare its speed with a device.

Frozen matrices pass the gradient on (2 operations per weight and token) but get none of their own (2 more);
the forward pass takes 2. Recomputing is not counted: it is a cost, not work done.
"""

from __future__ import annotations

import torch

from personalar.models.chameleon.transformer import TransformerConfig
from personalar.training.context import Session
from personalar.training.memory import parameter_counts
from personalar.training.stage import Stage, sequences_per_step

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations per second, as the makers state them."""


def step_flops(
    shape: TransformerConfig, *, sequences: int, tokens: int, image_tokens: int, choices: int, trained: int
) -> float:
    """Return the operations of one optimizer step.

    Args:
        sequences: in the step, over all processes.
        tokens: ids of one sequence.
        image_tokens: of them predicted, among `choices` rows of the head.
        trained: parameters of matrices that get a gradient of their own.
    """
    width, kv = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    block = 2 * width * width + 2 * width * kv + 3 * width * shape.intermediate_size
    through = 4.0 * block * shape.num_hidden_layers * tokens + 4.0 * choices * width * image_tokens
    # Causal attention: half of T x T, for scores and for values, forward and twice in the backward pass.
    attention = 3 * 2.0 * width * tokens * tokens * shape.num_hidden_layers
    return sequences * (through + attention + 2.0 * trained * tokens)


def peak_of(device_name: str) -> float | None:
    """Return the stated peak of a GPU by its name, or None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def stage_flops(session: Session, stage: Stage) -> float:
    """Return the operations of one optimizer step of `stage`."""
    work = session.plans[stage.name]
    _, _, trained = parameter_counts(work)
    return step_flops(
        work.shape,
        sequences=sequences_per_step(stage.numbers),
        tokens=work.tokens,
        image_tokens=work.image_tokens,
        choices=work.choices,
        trained=trained,
    )


def device_peak() -> float | None:
    """Return the stated speed of this machine's GPU; None without one, or where it is not known."""
    return peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
