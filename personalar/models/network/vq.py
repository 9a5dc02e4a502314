"""The VQGAN image tokenizer (taming-transformers, arXiv 2012.09841): encoder, codebook and decoder.

Parameter names are those of upstream. The encoder is that of transformers' Chameleon, the decoder that of
Janus. One addition: `patch_size` folds patches of pixels into channels, for speed on a CPU.
Shapes: pixels (B, 3, H, W) in [-1, 1]; codes (B, h, w) with h = H / downsample; latents (B, embed_dim, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits

BYTES_AT_ONCE = 2 * 10**9
"""Memory for the images that the VQ model processes together: four of 512x512 with Chameleon's."""


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Sizes of a VQ model, with the names of transformers' `ChameleonVQVAEConfig` and `patch_size`."""

    embed_dim: int = field(default=256, metadata=limits(1, 2**14))
    num_embeddings: int = field(default=8192, metadata=limits(1, 2**20))
    latent_channels: int = field(default=256, metadata=limits(1, 2**14))
    resolution: int = field(default=512, metadata=limits(1, 2**16))
    """Side in pixels of the training images; only used to find the levels of `attn_resolutions`."""
    base_channels: int = field(default=128, metadata=limits(1, 2**14))
    channel_multiplier: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), metadata=limits(1, 64))
    num_res_blocks: int = field(default=2, metadata=limits(1, 64))
    attn_resolutions: tuple[int, ...] = field(default=(), metadata=limits(1, 2**16))
    dropout: float = field(default=0.0, metadata=limits(0.0, 1.0))
    attn_type: str | None = "vanilla"
    patch_size: int = field(default=1, metadata=limits(1, 64))
    # No settings: the first is read by transformers' encoder, the other is measured.
    double_latent = False
    decode_maps = 3
    """Maps at full resolution that decoding needs at the same time."""

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
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
    def in_channels(self) -> int:
        """Channels of the encoder's input and of the decoder's output: the colours of a patch."""
        return 3 * self.patch_size**2

    out_channels = in_channels

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per level, from full resolution to the lowest."""
        return tuple(self.base_channels * m for m in self.channel_multiplier)

    def images_at_once(self, pixels: int) -> int:
        """Return the number of images of `pixels` pixels each that the VQ model processes together."""
        return max(1, BYTES_AT_ONCE // self._maps_bytes(pixels))

    def decode_bytes(self, images: int, pixels: int) -> int:
        """Estimate the bytes for decoding images, without weights and workspaces of libraries."""
        return min(images, self.images_at_once(pixels)) * self._maps_bytes(pixels)

    def _maps_bytes(self, pixels: int) -> int:
        # In float32. Folding patches reduces the number of positions at full resolution.
        return self.decode_maps * 4 * self.channels[0] * pixels // self.patch_size**2

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
        own = {"model_type": "chameleon_vqgan", "double_latent": False, "in_channels": self.in_channels}
        return own | asdict(self)


class Decoder(nn.Module):
    """Maps latents after `post_quant_conv` to folded pixels; Janus' decoder with the names of taming.

    `up[0]` is full resolution, although it is applied last.

    Args:
        attention: for every level, from full resolution on, whether its blocks have attention.
    """

    def __init__(self, config: VQConfig, attention: list[bool]) -> None:
        from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder

        super().__init__()
        theirs = JanusVQVAEDecoder(config)
        self.conv_in, self.mid = theirs.conv_in, theirs.mid
        if config.attn_type != "vanilla":
            self.mid.attn_1 = nn.Identity()
        self.up: Any = nn.ModuleList(reversed(theirs.up))
        for level, has in zip(reversed(theirs.up), attention, strict=True):
            blocks = level.block if has else ()
            level.attn = nn.ModuleList(JanusVQVAEAttnBlock(block.out_channels) for block in blocks)
        self.norm_out, self.conv_out = theirs.norm_out, theirs.conv_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, latent_channels, h, w) to (B, in_channels, H/p, W/p)."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                x = block(x)
                x = level.attn[i](x) if len(level.attn) else x
            if hasattr(level, "upsample"):
                x = level.upsample(x)
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
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEEncoder

        super().__init__()
        self.config = config
        # Its attention is set by the sides of its input, which are those after the patches are folded.
        folded = replace(config, resolution=config.resolution // config.patch_size)
        encoder = ChameleonVQVAEEncoder(folded)
        self.encoder: nn.Module = encoder
        self.decoder: nn.Module = Decoder(config, [len(level.attn) > 0 for level in encoder.down])
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
