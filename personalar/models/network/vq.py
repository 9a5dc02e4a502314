"""The VQGAN image tokenizer (taming-transformers, arXiv 2012.09841): encoder, codebook and decoder.

Parameter names are those of upstream. The encoder equals transformers' `ChameleonVQVAE`, the decoder that of
Janus. One addition: `patch_size` folds patches of pixels into channels, for speed on a CPU (default 1).
Shapes: pixels (B, 3, H, W) in [-1, 1]; codes (B, h, w) with h = H / downsample; latents (B, embed_dim, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Sizes of a VQ model, with the names of transformers' `ChameleonVQVAEConfig` and `patch_size`."""

    embed_dim: int = field(default=256, metadata=limits(1, 2**14))
    num_embeddings: int = field(default=8192, metadata=limits(1, 2**20))
    latent_channels: int = field(default=256, metadata=limits(1, 2**14))
    resolution: int = field(default=512, metadata=limits(1, 2**16))
    """Side in pixels of the training images; only used to find the levels of `attn_resolutions`."""
    in_channels: int = field(default=3, metadata=limits(1, 2**14))
    """Input and output channels: 3 * patch_size ** 2."""
    base_channels: int = field(default=128, metadata=limits(1, 2**14))
    channel_multiplier: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), metadata=limits(1, 64))
    num_res_blocks: int = field(default=2, metadata=limits(1, 64))
    attn_resolutions: tuple[int, ...] = field(default=(), metadata=limits(1, 2**16))
    dropout: float = field(default=0.0, metadata=limits(0.0, 1.0))
    attn_type: str | None = "vanilla"
    patch_size: int = field(default=1, metadata=limits(1, 64))

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
        if self.in_channels != 3 * self.patch_size**2:
            raise ValueError(
                f"in_channels={self.in_channels} must be 3 * patch_size ** 2 = {3 * self.patch_size**2}; "
                "set both or neither"
            )
        if not self.channels or any(width % 32 for width in (self.base_channels, *self.channels)):
            raise ValueError(
                f"base_channels={self.base_channels} times each of "
                f"channel_multiplier={self.channel_multiplier} (not empty) must be a multiple of 32 (norms)"
            )
        if self.attn_type not in ("vanilla", "none", None):
            raise ValueError(f"attn_type={self.attn_type!r} is unknown; use 'vanilla' or None")

    @property
    def downsample(self) -> int:
        """Side in pixels of the square of one code."""
        return self.patch_size * 2 ** (len(self.channel_multiplier) - 1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per level, from full resolution to the lowest."""
        return tuple(self.base_channels * m for m in self.channel_multiplier)

    def has_attention(self, level: int) -> bool:
        """Return whether the blocks of `level` (0 = full resolution) have attention."""
        side = self.resolution // self.patch_size >> level
        return self.attn_type == "vanilla" and side in self.attn_resolutions

    def build(self) -> VQModel:
        """Return an image tokenizer of this shape, on torch's default device."""
        return VQModel(self)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the JSON of a `ChameleonVQVAEConfig`; missing keys get the values of Chameleon 7B."""
        if config.get("double_latent", False):
            raise ValueError("config.json has double_latent=true; only deterministic latents are supported")
        given = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Return the JSON that `from_hf` reads."""
        return {"model_type": "chameleon_vqgan", "double_latent": False, **asdict(self)}


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU and 3x3 convolution, twice."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head attention over all positions, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        hidden = self.norm(x)  # (B, C, h, w)
        query, key, value = (conv(hidden).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        weights = (query @ key.transpose(1, 2) * x.shape[1] ** -0.5).softmax(-1)  # (B, hw, hw)
        return x + self.proj_out((weights @ value).transpose(1, 2).reshape(x.shape))  # (B, C, h, w)


class Downsample(nn.Module):
    """Halves the sides by a strided convolution, padded only on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # torch pads both sides equally, upstream does not


class Upsample(nn.Module):
    """Doubles the sides by nearest-neighbour interpolation and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, followed by the change to the next resolution, if there is one."""

    def __init__(self, config: VQConfig, index: int, width_in: int, width: int, *, blocks: int) -> None:
        super().__init__()
        widths = [width_in] + [width] * blocks
        self.block = nn.ModuleList(ResBlock(a, b, config.dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width) for _ in self.block if config.has_attention(index))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h', w')."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, *, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Maps folded pixels to latents before `quant_conv`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.Sequential()
        for i, (width_in, width) in enumerate(zip((config.base_channels, *widths), widths, strict=False)):
            level = Level(config, i, width_in, width, blocks=config.num_res_blocks)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], attention=config.attn_type == "vanilla", dropout=config.dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H/p, W/p) to (B, latent_channels, h, w)."""
        x = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Maps latents after `post_quant_conv` to folded pixels, with one more block per level than `Encoder`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attention=config.attn_type == "vanilla", dropout=config.dropout)
        levels = []
        for i, (width_in, width) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True)):
            level = Level(config, i, width_in, width, blocks=config.num_res_blocks + 1)
            if i > 0:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)  # index 0 is full resolution, although it is applied last
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, latent_channels, h, w) to (B, in_channels, H/p, W/p)."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """The table of latents, one per code."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)

    def nearest(self, latents: Tensor) -> Tensor:
        """Map latents (B, D, h, w) to the indices of the nearest rows (squared L2), (B, h, w) int64."""
        flat, table = latents.permute(0, 2, 3, 1), self.embedding.weight  # (B, h, w, D), (K, D)
        # The same terms in the same order as upstream, so that near-ties are resolved in the same way.
        distances = flat.square().sum(-1, keepdim=True) + table.square().sum(1) - 2 * (flat @ table.T)
        return distances.argmin(-1)  # of equal distances the first, as upstream


class VQModel(nn.Module):
    """Encodes images to codes and decodes them."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv: nn.Module = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv: nn.Module = nn.Conv2d(config.embed_dim, config.latent_channels, 1)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw weights from N(0, 1 / fan_in) and the codebook from N(0, 1); set norms to the identity."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                fan_in = 1 if name.startswith("quantize") else parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)

    def check_sides(self, pixels: Tensor) -> None:
        """Raise ValueError unless the sides of `pixels` are multiples of `downsample`."""
        if pixels.shape[-1] % self.config.downsample or pixels.shape[-2] % self.config.downsample:
            raise ValueError(
                f"got an image of {pixels.shape[-1]}x{pixels.shape[-2]} pixels; both must be multiples of "
                f"{self.config.downsample}: crop or resize it first"
            )

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1] to latents (B, D, h, w); ValueError for other sides."""
        self.check_sides(pixels)
        return self.quant_conv(self.encoder(F.pixel_unshuffle(pixels, self.config.patch_size)))

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [-1, 1] to codes (B, h, w) int64."""
        return self.quantize.nearest(self.encode_latents(pixels))

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to their latents (B, embed_dim, h, w)."""
        return self.quantize.embedding(codes).permute(0, 3, 1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Map latents (B, embed_dim, h, w) to pixels (B, 3, H, W), not clamped (for training)."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(latents)), self.config.patch_size)

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to pixels (B, 3, H, W) clamped to [-1, 1]."""
        return self.decode_latents(self.lookup(codes)).clamp(-1.0, 1.0)
