"""The choice of the next image code: pure functions on logits, shared by all decoders.

The order is Lumina-mGPT's: guidance on raw logits, top-k, temperature, top-p, then a draw. The draw is
argmax(logits + g) with Gumbel noise g that belongs to (image seed, index of the code) and nothing else.
Shapes: B images, K image codes, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personalar.models.random_keys import apart, bits, high_bits, mix


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the distribution of one code is shaped before it is drawn from."""

    cfg_scale: float = 1.0
    """Classifier-free guidance; 1 is off and costs nothing."""
    top_k: int = 0
    """Keep the k most likely codes, and all that tie with the last of them; 0 is off."""
    top_p: float = 1.0
    """Keep the most likely codes that together reach this probability; 1 is off."""
    temperature: float = 1.0
    """0 takes the most likely code."""

    def __post_init__(self) -> None:
        """Raise ValueError for values without a meaning, naming the knob."""
        if self.cfg_scale < 0:
            raise ValueError(f"cfg_scale={self.cfg_scale} must be at least 0; 1 turns guidance off")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0; 0 turns it off")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 turns it off")
        if self.temperature < 0:
            raise ValueError(
                f"temperature={self.temperature} must be at least 0; 0 takes the most likely code"
            )

    @property
    def guided(self) -> bool:
        """Tell whether every image needs its unconditional row."""
        return self.cfg_scale != 1.0

    def guide(self, logits: Tensor) -> Tensor:
        """Combine the conditional rows of (2B, ..., K) with the unconditional ones, which come last."""
        if not self.guided:
            return logits
        conditional, unconditional = logits.chunk(2)
        return cfg_combine(conditional, unconditional, self.cfg_scale)

    def shape(self, logits: Tensor) -> Tensor:
        """Apply top-k, temperature and top-p to (..., K)."""
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        if self.temperature not in (0.0, 1.0):
            logits = logits / self.temperature
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        return logits

    def law(self, logits: Tensor) -> Tensor:
        """Return the probabilities that codes are drawn with, from guided logits (..., K)."""
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        return self.shape(logits).softmax(-1)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Choose codes (...) from guided logits (..., K) with Gumbel `noise` of that shape."""
        if self.temperature == 0:
            return logits.argmax(-1)
        if self.top_p < 1 and logits.device.type == "cpu":  # elsewhere its loop would wait for the device
            return nucleus_argmax(replace(self, top_p=1.0).shape(logits), noise, self.top_p)
        return gumbel_argmax(self.shape(logits), noise)


def cfg_combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return u + s (c - u) of raw logits."""
    return torch.add(unconditional, conditional - unconditional, alpha=scale)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest of (..., K) to -inf; what ties with the k-th stays."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set (..., K) to -inf but for the fewest largest values that together reach probability p, with ties."""
    ordered = logits.sort(dim=-1, descending=True).values
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the larger ones reach without this one
    threshold = ordered.masked_fill(before >= p, float("inf")).amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def nucleus_argmax(logits: Tensor, noise: Tensor, p: float) -> Tensor:
    """Return `gumbel_argmax(keep_top_p(logits, p), noise)` without sorting.

    A draw stays if the likelier codes do not reach p; else it and all that are not likelier are ruled out.
    """
    probabilities = logits.softmax(-1)
    noisy = logits + noise
    while True:
        best = noisy.argmax(-1, keepdim=True)
        level = probabilities.gather(-1, best)
        outside = (probabilities * (probabilities > level)).sum(-1, keepdim=True) >= p
        if not outside.any():
            return best[..., 0]
        noisy = noisy.masked_fill(outside & (probabilities <= level), float("-inf"))


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw from softmax(logits) (..., K) by argmax(logits + noise), `noise` being standard Gumbel."""
    return (logits + noise).argmax(-1)


def gumbel_noise(seeds: Tensor, positions: Tensor, num_codes: int) -> Tensor:
    """Return standard Gumbel noise (B, P, K): a hash of (seed, position, code), equal on every device.

    Args:
        seeds: (B,) int64, from `seed_tensor`.
        positions: (P,) or (B, P) int64, index of the code in its image.
        num_codes: K.
    """
    codes = torch.arange(num_codes, device=seeds.device)
    place = mix(mix(seeds[:, None]) + positions)  # (B, P)
    drawn = bits(place[:, :, None], codes)  # (B, P, K)
    # In place, because these are the largest tensors of a step: in (0, 1), fine near 0 ...
    uniform = drawn.float().add_(0.5).mul_(2.0**-32).clamp_max_(1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()  # ... and so fine where the noise is large


def random_codes(seeds: Tensor, positions: Tensor, num_codes: int) -> Tensor:
    """Return uniform codes (B, P) for (B, P) positions, independent of the noise there."""
    place = mix(mix(apart(seeds[:, None])) + positions)
    return (high_bits(place) * num_codes) >> 32


def seed_tensor(seeds: list[int], device: torch.device) -> Tensor:
    """Return seeds as (B,) int64; any Python int will do."""
    return torch.tensor([seed % 2**62 for seed in seeds], dtype=torch.int64, device=device)
