"""The least time that memory allows: what a step must read, and how fast this machine reads."""

from __future__ import annotations

import time

import torch

from personalar.models.chameleon.backend import ChameleonBackend

FORMULA = (
    "bytes of a step = transformer weights without embedding and head + image rows of the head "
    "+ B x rows x mean filled length x 2 x layers x kv heads x head size x bytes per number"
)


def step_bytes(backend: ChameleonBackend, *, batch: int, prompt: int, answer: int, guided: bool) -> float:
    """Return what an average step of plain decoding reads; see `FORMULA`.

    Args:
        prompt, answer: tokens before the image, and of the image.
    """
    transformer = backend.transformer
    weights = sum(p.nbytes for p in transformer.parameters())
    weights -= transformer.lm_head.weight.nbytes + transformer.model.embed_tokens.weight.nbytes
    weights += transformer.lm_head.weight[backend.tokenizer.image_rows].nbytes
    cache = backend.new_cache(capacity=1, pad=torch.zeros(1, dtype=torch.int64, device=backend.device))
    token = sum(t.nbytes for t in (*cache.keys, *cache.values))
    filled = (prompt + answer / 2) + (answer / 2 if guided else 0)
    return weights + batch * filled * token


def copy_bandwidth(device: torch.device) -> float:
    """Measure bytes per second (read and written) of copying a large tensor."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
