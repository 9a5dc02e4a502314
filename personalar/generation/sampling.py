"""Sample the next image code from logits; pure functions that all decoders share.

The order is that of Lumina-mGPT: guidance on raw logits, top-k, temperature, top-p, then sampling. Sampling
is argmax(logits + g) with Gumbel noise g (the Gumbel-max trick). The noise depends only on the image's seed
and the index of the code, so every decoder draws the same code. Shapes: B images, K image codes, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personalar.models.random_keys import bits, mix


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters, applied to the logits of one code; `DecoderConfig` checks their ranges."""

    cfg_scale: float = 1.0
    """Classifier-free guidance scale, at least 0; 1 turns guidance off and halves the computation."""
    top_k: int = 0
    """Sample from the k most likely codes, including ties with the k-th; 0 is off."""
    top_p: float = 1.0
    """Sample from the fewest most likely codes that together reach this probability; 1 is off."""
    temperature: float = 1.0
    """Divides the logits; 0 means the most likely code."""

    @property
    def guided(self) -> bool:
        """True if guidance is on, so that every image needs a second, unconditional row in the batch."""
        return self.cfg_scale != 1.0

    def guide(self, logits: Tensor) -> Tensor:
        """Apply guidance to logits (2B, ..., K), conditional rows first; return (B, ..., K)."""
        if not self.guided:
            return logits
        conditional, unconditional = logits.chunk(2)
        return cfg_combine(conditional, unconditional, self.cfg_scale)

    def shape(self, logits: Tensor) -> Tensor:
        """Apply top-k, temperature and top-p to logits (..., K); excluded codes become -inf."""
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        # Before top-p, which depends on it; top-k does not.
        if self.temperature not in (0.0, 1.0):
            logits = logits / self.temperature
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (..., K) with which codes are sampled from guided logits (..., K)."""
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        return self.shape(logits).softmax(-1)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Sample codes (...) from guided logits (..., K) with Gumbel `noise` of the same shape."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Faster than sorting, but its loop would synchronize with a GPU in every iteration.
        if self.top_p < 1 and logits.device.type == "cpu":
            return nucleus_argmax(replace(self, top_p=1.0).shape(logits), noise, self.top_p)
        return gumbel_argmax(self.shape(logits), noise)


def cfg_combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return classifier-free guidance, u + scale * (c - u), on raw logits."""
    # On logits and not on log-probabilities: the normalisation cancels in the softmax.
    return torch.add(unconditional, conditional - unconditional, alpha=scale)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of (..., K) to -inf; ties with the k-th are kept."""
    if k >= logits.shape[-1]:
        return logits
    # By the value and not by indices, so that ties do not depend on the order of a sort.
    threshold = logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest largest logits (..., K) that together reach probability p; set the others to -inf.

    Ties with the smallest logit that is kept are kept too.
    """
    ordered = logits.sort(dim=-1, descending=True).values
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # total probability of all larger logits
    threshold = ordered.masked_fill(before >= p, float("inf")).amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def nucleus_argmax(logits: Tensor, noise: Tensor, p: float) -> Tensor:
    """Return `gumbel_argmax(keep_top_p(logits, p), noise)` without sorting the logits.

    The argmax is accepted if all more likely codes together stay below p, that is, if it is in the nucleus.
    Otherwise it and all codes that are at most as likely are excluded, and the argmax is taken again. Few
    iterations are needed, because the argmax is usually in the nucleus.
    """
    probabilities = logits.softmax(-1)
    noisy = logits + noise
    while True:
        best = noisy.argmax(-1, keepdim=True)
        # Ties with the argmax count as not more likely, as in `keep_top_p`.
        level = probabilities.gather(-1, best)  # (..., 1)
        outside = (probabilities * (probabilities > level)).sum(-1, keepdim=True) >= p
        if not outside.any():
            return best[..., 0]
        noisy = noisy.masked_fill(outside & (probabilities <= level), float("-inf"))


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Sample from softmax(logits), shape (..., K), as argmax(logits + noise) with standard Gumbel noise."""
    return (logits + noise).argmax(-1)


def gumbel_noise(seeds: Tensor, positions: Tensor, num_codes: int) -> Tensor:
    """Return standard Gumbel noise (B, P, K), a hash of (seed, position, code).

    A hash instead of torch's generators, because those give different numbers on different devices.

    Args:
        seeds: (B,) int64, from `seed_tensor`.
        positions: (P,) or (B, P) int64, index of each code in its image.
        num_codes: K.
    """
    codes = torch.arange(num_codes, device=seeds.device)
    place = mix(mix(seeds[:, None]) + positions)  # (B, P)
    drawn = bits(place[:, :, None], codes)  # (B, P, K)
    # -log(-log1p(-u)), not -log(-log(u)): large noise then comes from u near 0, where float32 is most
    # precise; near 1 its steps are too coarse for rare, large values. In place, to save memory.
    uniform = drawn.float().add_(0.5).mul_(2.0**-32).clamp_max_(1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def seed_tensor(seeds: list[int], device: torch.device) -> Tensor:
    """Return seeds as a tensor (B,) int64; any Python integer is allowed and reduced modulo 2**63."""
    return torch.tensor([seed % 2**63 for seed in seeds], dtype=torch.int64, device=device)
