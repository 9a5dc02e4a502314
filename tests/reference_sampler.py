"""Lumina-mGPT's sampler written down step by step: every logit of the vocabulary, no cache, one image.

What happens at a position follows from the ids so far alone (the table in docs/compatibility.md). The draw is
ours, so that codes can be compared under one seed: noise keyed by (seed, number of the code).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from personalar.generation.sampling import gumbel_noise, seed_tensor

BOI, EOI, SEP, NEWLINE, SIZE_ZERO, FIRST_CODE, NUM_CODES = 8197, 8196, 8710, 8803, 8804, 4, 8192
Model = Callable[[list[int]], Tensor]
"""Ids -> logits (V,) of the next."""


def guidance(ids: list[int], logits: Tensor, model: Model, scale: float) -> Tensor:
    """Apply guidance once the size tokens are there; its context is all from the last BOI on."""
    state = open_image(ids)
    if state is None or len(state) < 3 or scale == 1:
        return logits
    without = model(state)
    return without + scale * (logits - without)


def structure(ids: list[int], logits: Tensor) -> Tensor:
    """Force newlines and the end of the image, and allow codes only between them."""
    state = open_image(ids)
    if state is None or len(state) < 3:
        return logits  # text and size tokens are free
    h, w = (2 * (size - SIZE_ZERO) for size in state[1:3])
    place = len(state) - 3 + 1  # of the token to be drawn, counted from 1
    masked = torch.full_like(logits, float("-inf"))
    if place % (w + 1) == 0:
        masked[NEWLINE] = 0
    elif place == (w + 1) * h + 1:
        masked[EOI] = 0
    else:
        masked[FIRST_CODE : FIRST_CODE + NUM_CODES] = logits[FIRST_CODE : FIRST_CODE + NUM_CODES]
    return masked


def top_k(ids: list[int], logits: Tensor, *, image: int, text: int) -> Tensor:
    """Keep the k largest, and what ties with the last of them; k depends on whether an image is open."""
    k = min(image if open_image(ids) is not None else text, len(logits))
    return logits.masked_fill(logits < logits.topk(k).values[-1], float("-inf"))


def open_image(ids: list[int]) -> list[int] | None:
    """Return the ids from the last BOI on while it has no EOI, else None."""
    if ids.count(BOI) != ids.count(EOI) + 1:
        return None
    return ids[len(ids) - 1 - ids[::-1].index(BOI) :]


def sample(
    model: Model, prompt: list[int], *, seed: int, scale: float, k: int, temperature: float, text_k: int = 10
) -> list[int]:
    """Return the ids after `prompt`, up to and with SEP; free tokens other than codes are the likeliest."""
    ids, drawn = list(prompt), 0
    while len(ids) == len(prompt) or ids[-1] != SEP:
        logits = guidance(ids, model(ids), model, scale)
        logits = top_k(ids, structure(ids, logits), image=k, text=text_k) / temperature
        probabilities = logits.softmax(-1)
        codes = probabilities[FIRST_CODE : FIRST_CODE + NUM_CODES]
        if codes.sum() > 0.5:
            seeds, place = seed_tensor([seed], logits.device), torch.tensor([drawn])
            noise = gumbel_noise(seeds, place, NUM_CODES)[0, 0]
            ids.append(FIRST_CODE + int((codes.log() + noise).argmax()))
            drawn += 1
        else:
            ids.append(int(probabilities.argmax()))
    return ids[len(prompt) :]
