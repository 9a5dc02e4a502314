"""Whether a batch was drawn from numbers: noted at every step, asked once at the end.

NaN is the largest value to argmax, so a network that answers with it draws code 0 for ever: pictures of one
colour, and no error. Asking at every step would make the host wait for the device; so decoders keep the
largest logit of every code (B, K) that they met, in which NaN and infinity stay.
"""

from __future__ import annotations

import math

from torch import Tensor


def check_finite(peaks: Tensor) -> None:
    """Look at the largest logits of every image, (B, K); -inf, a code that is forbidden, is a number here.

    Raises:
        FloatingPointError: with how many images are concerned, likely causes and what to do.
    """
    lost = int((~(peaks < math.inf).all(-1)).sum())  # NaN is not smaller either; the one wait for the device
    if lost:
        raise FloatingPointError(
            f"the model's logits are NaN or infinite for {lost} of {len(peaks)} pictures, which would be "
            "noise or one colour: its precision is too narrow (model.dtype=float16 overflows beyond 65504: "
            "choose bfloat16 or float32), its files are damaged (get them again), or its weights were left "
            "by a training that diverged (lower model.recipe.stages.*.lr and identifier_lr)"
        )
