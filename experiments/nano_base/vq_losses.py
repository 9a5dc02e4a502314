"""Losses of the image tokenizer: pixels, gradients, features of a scorer, and a patch discriminator.

All pictures are (B, 3, H, W) in [-1, 1].
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import WORKING
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ViTModel

JUDGE_LAYERS = (2, 4)  # of six; the patch tokens of these layers still describe small parts


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring pixels, horizontal and vertical."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """Return L1 + 4 MSE + 0.6 L1 of the gradients."""
    error = out - target
    dx, dy = gradients(error)
    return error.abs().mean() + 4 * error.square().mean() + 0.6 * (dx.abs().mean() + dy.abs().mean())


def gradient_energy(x: Tensor) -> Tensor:
    """Return the mean squared gradient per picture, (B,), a measure of sharpness."""
    dx, dy = gradients(x)
    return dx.square().mean((1, 2, 3)) + dy.square().mean((1, 2, 3))


class InstanceJudge(nn.Module):
    """The packaged DINO as a frozen perceptual network."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        # The backward pass of eager attention is faster on a CPU.
        options = {"add_pooling_layer": False, "attn_implementation": "eager"}
        self.net = ViTModel.from_pretrained(folder, **options).to(WORKING).eval().requires_grad_(False)
        self.size = self.net.config.image_size

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the normalised tokens of `JUDGE_LAYERS`, and the output class token (B, 1, D)."""
        small = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        out = self.net(pixel_values=small.to(WORKING), output_hidden_states=True)
        chosen = [out.hidden_states[i] for i in JUDGE_LAYERS] + [out.last_hidden_state[:, :1]]
        return [F.normalize(tokens.float(), dim=-1) for tokens in chosen]

    def likeness(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the cosine similarity of the output class tokens, (B,)."""
        return (self.features(a)[-1] * self.features(b)[-1]).sum(-1)[:, 0]

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Return the mean of 1 - cosine similarity over `JUDGE_LAYERS` and the output."""
        with torch.no_grad():
            wanted = self.features(target)
        cosines = [(a * b).sum(-1).mean() for a, b in zip(self.features(out), wanted, strict=True)]
        return 1 - torch.stack(cosines).mean()


class Discriminator(nn.Module):
    """Classifies patches of about 28 pixels as real or reconstructed, with a logit per 8 pixels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            spectral_norm(nn.Conv2d(48, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width * 3 // 2, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width * 3 // 2, width * 2, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width * 2, 1, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to logits (B, 1, H/8, W/8); positive means real.

        The patches have a random offset. With fixed patches, equal to the 4 x 4 pixels of the decoder, a grid
        of 4 pixels appeared that the discriminator could not see.
        """
        down, right = torch.randint(4, (2,)).tolist()
        x = F.pad(x, (right, 4 - right, down, 4 - down), mode="reflect")
        with torch.autocast("cpu", torch.bfloat16, enabled=WORKING is torch.bfloat16):
            return self.layers(x).float()

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """Return the hinge loss on real and (detached) reconstructed pictures."""
        return F.relu(1 - self(real)).mean() + F.relu(1 + self(made.detach())).mean()
