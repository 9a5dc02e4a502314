"""Emu3's image tokenizer: a video tokenizer (MoVQGAN with temporal convolutions), applied to one frame.

Upstream repeats a picture four times, encodes the four frames to one map of codes, decodes four frames and
keeps the first. Here the two-dimensional layers, which take nearly all of the time and memory, run on one
frame only. The results are the same, because the four frames are equal and only the first is kept.
Shapes: B batch, C channels, T frames, (h, w) a map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits
from personalar.models.network.vq import Codebook, VQConfig, VQModel

ROWS_AT_ONCE = 8
"""Rows of a map whose distances to the codebook are computed together, which limits memory."""


@dataclass(frozen=True, kw_only=True)
class OneFrameVQConfig(VQConfig):
    """Sizes of the tokenizer; the defaults are those of the published one."""

    embed_dim: int = field(default=4, metadata=limits(1, 2**14))
    num_embeddings: int = field(default=32768, metadata=limits(1, 2**20))
    latent_channels: int = field(default=4, metadata=limits(1, 2**14))
    base_channels: int = field(default=256, metadata=limits(1, 2**14))
    channel_multiplier: tuple[int, ...] = field(default=(1, 2, 2, 4), metadata=limits(1, 64))
    attn_resolutions: tuple[int, ...] = field(default=(3,), metadata=limits(0, 64))
    """Levels whose blocks have attention; 0 is full resolution. (Side lengths in `VQConfig`.)"""
    temporal_downsample_factor: int = field(default=4, metadata=limits(1, 64))
    """Frames per map of codes; a power of 2."""
    decode_maps = 10

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
        super().__post_init__()
        if self.embed_dim != self.latent_channels:
            raise ValueError(
                f"embed_dim={self.embed_dim} and latent_channels={self.latent_channels} must be equal"
            )
        if self.temporal_downsample_factor.bit_count() != 1:
            raise ValueError(
                f"temporal_downsample_factor={self.temporal_downsample_factor} must be a power of 2"
            )

    def build(self) -> OneFrameVQ:
        """Return an image tokenizer of this shape, on torch's default device."""
        return OneFrameVQ(self)


class OneFrameVQ(VQModel):
    """Encodes images to codes and decodes them, with the layers of transformers' `Emu3VQVAE`."""

    def __init__(self, config: OneFrameVQConfig) -> None:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        nn.Module.__init__(self)
        self.config, self.frames = config, config.temporal_downsample_factor
        theirs = Emu3VQVAE(
            Emu3VQVAEConfig(
                codebook_size=config.num_embeddings,
                embed_dim=config.embed_dim,
                latent_channels=config.latent_channels,
                base_channels=config.base_channels,
                channel_multiplier=config.channel_multiplier,
                num_res_blocks=config.num_res_blocks,
                attn_resolutions=config.attn_resolutions,
                temporal_downsample_factor=config.temporal_downsample_factor,
                hidden_size=config.channels[-1],
            )
        )
        self.encoder, self.decoder, self.quantize = theirs.encoder, theirs.decoder, Codebook(config)
        self.quant_conv, self.post_quant_conv = theirs.quant_conv, theirs.post_quant_conv

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the temporal norms always use the statistics of pretraining."""
        return super().train(False)

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1], sides multiples of `downsample`, to latents (B, D, h, w)."""
        self.check_sides(pixels)
        parts: Any = self.encoder
        x = parts.middle_block(parts.down_block(parts.conv_in(pixels)))
        x = parts.conv_out(F.silu(parts.norm_out(x)))
        # These layers are two-dimensional, so the copies of one frame have equal latents.
        x = x[:, :, None].repeat(1, 1, self.frames, 1, 1)
        for halve in parts.time_conv:
            x = F.silu(halve(x))
        for block in parts.time_res_stack:
            x = block(x)
        return self.quant_conv(x)[:, :, 0]

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1] to codes (B, h, w) int64."""
        # 720 x 720 pixels have 8100 codes, and their distances to 32768 rows take 1 GB.
        rows = self.encode_latents(pixels).split(ROWS_AT_ONCE, dim=2)
        return torch.cat([self.quantize.nearest(some) for some in rows], dim=1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Map latents (B, embed_dim, h, w) to pixels (B, 3, H, W), not clamped."""
        parts: Any = self.decoder
        quantised = latents[:, :, None]
        # Latents and quantised map pass the same layers, so they are stacked: (2 B, C, T, h, w).
        both = torch.cat((self.post_quant_conv(quantised), quantised))
        for block in parts.time_res_stack:
            both = block(both)
        for double in parts.time_conv:
            both = F.silu(double(both))
        # The other layers are two-dimensional, so later frames do not affect the first.
        x, quantised = both[:, :, 0].chunk(2)
        x = parts.up_block(parts.middle_block(parts.conv_in(x), quantised), quantised)
        return parts.conv_out(F.silu(parts.norm_out(x, quantised)))
