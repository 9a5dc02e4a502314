"""Class images that the base generates for prior preservation: their prompts, and the logits of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from personalar.config.recipe import PriorConfig
from personalar.data.prompts import class_prompt
from personalar.models.base import Backend


def class_prompts(prior: PriorConfig, *, noun: str, live: bool) -> list[str]:
    """Return the prompts of the class images, cycling through the templates of `prior`.

    Args:
        live: the subject is an animal or a person; adds the templates for those.
    """
    templates = [*prior.prompts, *(prior.prompts_live if live else [])]
    return [class_prompt(template, noun) for template in islice(cycle(templates), prior.images)]


@torch.no_grad()
def class_logits(
    backend: Backend,
    prompts: Sequence[str],
    codes: Sequence[Tensor],
    *,
    progress: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Return the logits of the image codes under the base, to distill from; see `stream.Replay.frozen`.

    Args:
        backend: the base.
        prompts: of the images.
        codes: (h, w) of each image.
        progress: called after each image.

    Returns:
        Float16 (h w, K), for each image with its prompt and without it: 17 MB each at 7B and 512 pixels.
    """
    found = []
    for prompt, image in zip(prompts, codes, strict=True):
        for make in (backend.training_sequence, backend.unconditional_sequence):
            sequence = make(prompt, image, loss="image_tokens")
            ids = torch.tensor([sequence.ids], device=backend.device)
            predicts = torch.tensor(sequence.loss_mask[1:], device=backend.device)
            hidden = backend.forward(backend.embed(ids))[0, :-1][predicts]
            found.append(backend.image_logits(hidden).half().cpu())
        progress()
    return found
