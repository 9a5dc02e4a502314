"""Emu3's image tokenizer: a video tokenizer (MoVQGAN with temporal convolutions), applied to one frame.

Upstream repeats a picture four times, encodes the four frames to one map of codes, decodes four frames and
keeps the first. Here the two-dimensional layers, which take nearly all of the time and memory, run on one
frame only. The results are the same, because the four frames are equal and only the first is kept.
Parameter names are those of BAAI/Emu3-VisionTokenizer. Shapes: B batch, C channels, T frames, (h, w) a map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits
from personalar.models.network.vq import Decoder, Encoder, VQConfig, VQModel

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

    @property
    def time_steps(self) -> int:
        """Number of convolutions that halve the number of frames."""
        return self.temporal_downsample_factor.bit_length() - 1

    def has_attention(self, level: int) -> bool:
        """Return whether the blocks of `level` have attention."""
        return level in self.attn_resolutions

    def build(self) -> OneFrameVQ:
        """Return an image tokenizer of this shape, on torch's default device."""
        return OneFrameVQ(self)


class FixedNorm(nn.Module):
    """Batch norm that always uses the statistics of pretraining, also in training mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        # Parameters, not buffers: a model built on meta is then filled completely from the file.
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, T, h, w)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class CausalConv(nn.Module):
    """A convolution over time and space that is causal in time.

    Args:
        channels_in, channels_out: channels of input and output.
        frames: size of the kernel in time.
        side: size of the kernel in space, an odd number.
        step: stride in time.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, frames: int = 3, side: int = 3, step: int = 1
    ) -> None:
        super().__init__()
        # Time is padded in `forward`, before the first frame only.
        kernel, padding = (frames, side, side), (0, side // 2, side // 2)
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride=(step, 1, 1), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, T, h, w) to (B, out, T / step, h, w)."""
        # Two earlier frames of zeros, and no later one. It is 2 upstream too for a kernel of 4 frames.
        return self.conv(F.pad(x, (0, 0, 0, 0, 2, 0)))


class Halve(nn.Module):
    """Halves the number of frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, frames=4, step=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, h, w) to (B, C, T / 2, h, w)."""
        return F.silu(self.conv(x))


class Double(nn.Module):
    """Doubles the number of frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, h, w) to (B, C, 2 T, h, w)."""
        return F.silu(self.conv(x.repeat_interleave(2, dim=2)))


class TimeBlock(nn.Module):
    """Residual block: norm, SiLU and convolution over time and space, twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = FixedNorm(channels)
        self.conv1 = CausalConv(channels, channels)
        self.norm2 = FixedNorm(channels)
        self.conv2 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, h, w) to (B, C, T, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted at every position by the quantised map (MoVQ, arXiv 2209.09002)."""

    def __init__(self, norm_layer: nn.Module, channels: int, map_channels: int) -> None:
        super().__init__()
        self.norm_layer = norm_layer
        self.conv_y = nn.Conv2d(map_channels, channels, 1)
        self.conv_b = nn.Conv2d(map_channels, channels, 1)

    def forward(self, x: Tensor, quantised: Tensor) -> Tensor:
        """Normalise (B, C, h, w); `quantised` is (B, map_channels, h', w') and is scaled to (h, w)."""
        quantised = F.interpolate(quantised, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(quantised) + self.conv_b(quantised)  # (B, C, h, w)


class FrameEncoder(Encoder):
    """The image encoder, followed by the temporal layers on copies of its output, one per frame."""

    def __init__(self, config: OneFrameVQConfig) -> None:
        super().__init__(config)
        self.frames, channels = config.temporal_downsample_factor, config.latent_channels
        self.time_conv = nn.ModuleList(Halve(channels) for _ in range(config.time_steps))
        self.time_res_stack = nn.Sequential(*(TimeBlock(channels) for _ in range(config.num_res_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, latent_channels, 1, h, w)."""
        # The encoder is two-dimensional, so the copies of one frame have equal latents.
        x = super().forward(x)[:, :, None].repeat(1, 1, self.frames, 1, 1)
        for step in self.time_conv:
            x = step(x)
        return self.time_res_stack(x)


class FrameDecoder(Decoder):
    """The temporal layers, followed by the image decoder with spatial norms, on the first frame."""

    def __init__(self, config: OneFrameVQConfig) -> None:
        super().__init__(config)
        channels = config.latent_channels
        for module in list(self.modules()):
            for name, norm in list(module.named_children()):
                # The names stay "norm.norm_layer.*", as in the checkpoint.
                if isinstance(norm, nn.GroupNorm):
                    setattr(module, name, SpatialNorm(norm, norm.num_channels, config.embed_dim))
        self.time_res_stack = nn.Sequential(*(TimeBlock(channels) for _ in range(config.num_res_blocks)))
        self.time_conv = nn.ModuleList(Double(channels) for _ in range(config.time_steps))

    def forward(self, x: Tensor, *maps: Tensor) -> Tensor:
        """Map latents and their quantised map, both (B, latent_channels, 1, h, w), to (B, 3, H, W)."""
        # Latents and quantised map pass the same layers, so they are stacked: (2 B, C, T, h, w).
        both = self.time_res_stack(torch.cat((x, *maps)))
        for step in self.time_conv:
            both = step(both)
        # The decoder is two-dimensional, so later frames do not affect the first.
        first, quantised = both[:, :, 0].chunk(2)
        return super().forward(first, quantised)


class OneFrameVQ(VQModel):
    """Encodes images to codes and decodes them."""

    def __init__(self, config: OneFrameVQConfig) -> None:
        super().__init__(config)
        latent, width = config.latent_channels, config.embed_dim
        self.encoder, self.decoder = FrameEncoder(config), FrameDecoder(config)
        # Temporal here; the names are those of `VQModel`, so loading is shared.
        self.quant_conv: nn.Module = CausalConv(latent, width, side=1)
        self.post_quant_conv: nn.Module = CausalConv(width, latent, side=1)

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1], sides multiples of `downsample`, to latents (B, D, h, w)."""
        return super().encode_latents(pixels)[:, :, 0]

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1] to codes (B, h, w) int64."""
        # 720 x 720 pixels have 8100 codes, and their distances to 32768 rows take 1 GB.
        rows = self.encode_latents(pixels).split(ROWS_AT_ONCE, dim=2)
        return torch.cat([self.quantize.nearest(some) for some in rows], dim=1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Map latents (B, embed_dim, h, w) to pixels (B, 3, H, W), not clamped."""
        quantised = latents[:, :, None]
        return self.decoder(self.post_quant_conv(quantised), quantised)
