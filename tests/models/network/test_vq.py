"""The VQ model against transformers' encoder, upstream's key names and shapes, and its own patch folding."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest_backend import TINY_VQ

from personalar.models.image_transforms import to_uint8
from personalar.models.network.vq import VQConfig, VQModel

SMALL = {
    "embed_dim": 8,
    "num_embeddings": 128,
    "latent_channels": 16,
    "resolution": 32,
    "base_channels": 32,
    "channel_multiplier": (1, 2, 2),
}


def build(seed: int = 0, **numbers: object) -> VQModel:
    vq = VQModel(VQConfig(**(SMALL | numbers)))
    vq.init_weights(torch.Generator().manual_seed(seed))
    return vq.eval().requires_grad_(False)


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (64, 16)])
@pytest.mark.parametrize("attn_resolutions", [(), (16,)])
def test_codes_equal_transformers(size: tuple[int, int], attn_resolutions: tuple[int, ...]) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    ours = build(attn_resolutions=attn_resolutions)
    numbers = {
        key: value for key, value in ours.config.to_hf().items() if key not in ("model_type", "patch_size")
    }
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in numbers.items()}
    theirs = ChameleonVQVAE(ChameleonVQVAEConfig(**lists))
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not report.missing_keys
    assert all(key.startswith("decoder.") for key in report.unexpected_keys)
    images = pixels(2, *size)
    with torch.no_grad():
        expected = theirs.encode(images, return_dict=True).image_tokens.view(2, size[0] // 4, size[1] // 4)
    codes = ours.encode(images)
    assert codes.unique().numel() > 5
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (4, 1)])
@pytest.mark.parametrize("attn_resolutions", [(), (2,)])
def test_pictures_equal_transformers(shape: tuple[int, int], attn_resolutions: tuple[int, ...]) -> None:
    """The oracle: Janus' decoder, transformers' own reading of the same architecture; the rest by hand.

    In float64, where a slip shows that float32 would hide. Weights are random, biases and norms too, and
    small before the first norm, where its eps then counts.
    """
    single, codes = decodable(attn_resolutions=attn_resolutions), some_codes(2, *shape)
    bytes_ = to_uint8((single.decode(codes) + 1) / 2).numpy()
    ours = single.double()
    latents = ours.quantize.embedding.weight[codes.flatten()].view(2, *shape, 8).movedim(-1, 1)
    kernel, bias = ours.post_quant_conv.weight[..., 0, 0], ours.post_quant_conv.bias
    mixed = torch.einsum("oi,bihw->bohw", kernel, latents) + bias[:, None, None]
    with torch.no_grad():
        wanted = januses(ours, attention=bool(attn_resolutions))(mixed)
    got = ours.decode_latents(ours.lookup(codes))
    assert got.shape == (2, 3, 16 * shape[0], 16 * shape[1]) and got.std() > 0.3
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
    assert (wanted.abs() > 1).any()
    levels = ((wanted.clamp(-1, 1) + 1) / 2 * 255).movedim(1, -1).numpy()
    sure = np.abs(levels - levels.round()) > 0.01  # elsewhere float32 may cross a level
    assert np.array_equal(bytes_[sure], levels.astype(np.uint8)[sure]) and sure.mean() > 0.5
    assert not np.array_equal(bytes_[sure], levels.round()[sure])


def some_codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 128, shape, generator=torch.Generator().manual_seed(2))


def decodable(**numbers: object) -> VQModel:
    """Return a model of the 7B's depth whose every tensor matters to the pictures."""
    ours = build(resolution=32, channel_multiplier=(1, 1, 2, 2, 4), num_res_blocks=2, **numbers)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in ours.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if name.startswith(("post_quant_conv", "decoder.conv_in")):
            parameter.mul_(0.01)
    return ours


def januses(ours: VQModel, *, attention: bool) -> torch.nn.Module:
    """Return Janus' decoder with our weights; its levels are numbered from the lowest resolution."""
    from transformers import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

    names = ("latent_channels", "base_channels", "channel_multiplier", "num_res_blocks")
    config = JanusVQVAEConfig(**{name: getattr(ours.config, name) for name in names})
    theirs = JanusVQVAEDecoder(config).to(ours.post_quant_conv.weight.dtype)
    if not attention:  # theirs has it in every block of the lowest level
        theirs.up[0].attn = torch.nn.ModuleList()
    last = len(ours.config.channel_multiplier) - 1
    state = {
        re.sub(r"^up\.(\d)", lambda level: f"up.{last - int(level[1])}", name): tensor
        for name, tensor in ours.decoder.state_dict().items()
    }
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def test_upstream_keys_and_sizes() -> None:
    with torch.device("meta"):
        state = VQModel(VQConfig()).state_dict()
    assert len(state) == 293
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6, 1) == 68.7
    assert sum(key.startswith("encoder.") for key in state) == 124
    assert sum(key.startswith("decoder.") for key in state) == 164
    for key in (
        "encoder.down.3.downsample.conv.weight",
        "encoder.down.4.block.0.nin_shortcut.weight",
        "decoder.up.3.block.0.nin_shortcut.weight",
        "decoder.up.1.block.0.nin_shortcut.bias",
        "decoder.up.4.upsample.conv.weight",
        "decoder.mid.attn_1.proj_out.weight",
        "quantize.embedding.weight",
        "post_quant_conv.weight",
    ):
        assert key in state
    assert "decoder.up.0.upsample.conv.weight" not in state
    assert state["decoder.conv_in.weight"].shape == (512, 256, 3, 3)
    assert state["decoder.conv_out.weight"].shape == (3, 128, 3, 3)


def test_nearest_is_nearest_and_inverts_lookup() -> None:
    vq = build()
    codes = torch.randint(0, 128, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(vq.quantize.nearest(vq.lookup(codes)), codes)
    latents = vq.encode_latents(pixels(1, 16, 16))
    distances = torch.cdist(latents.flatten(2).transpose(1, 2), vq.quantize.embedding.weight[None])
    assert torch.equal(vq.encode(pixels(1, 16, 16)).flatten(), distances.argmin(-1).flatten())


def test_patches_fold_and_unfold() -> None:
    vq = VQModel(TINY_VQ)
    assert TINY_VQ.downsample == 8
    assert vq.encode(pixels(1, 32, 48)).shape == (1, 4, 6)
    assert vq.decode(torch.zeros(1, 4, 6, dtype=torch.int64)).shape == (1, 3, 32, 48)
    vq.encoder, vq.decoder = torch.nn.Identity(), torch.nn.Identity()
    vq.quant_conv, vq.post_quant_conv = torch.nn.Identity(), torch.nn.Identity()
    images = pixels(1, 32, 48)
    assert torch.equal(vq.decode_latents(vq.encode_latents(images)), images)


def test_config_round_trip() -> None:
    assert VQConfig.from_hf(TINY_VQ.to_hf()) == TINY_VQ
    assert VQConfig.from_hf({}) == VQConfig()
    assert VQConfig().downsample == 16


def test_wrong_image_size() -> None:
    with pytest.raises(ValueError, match="30x32 pixels; both must be multiples of 4"):
        build().encode(pixels(1, 32, 30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 2}, r"in_channels=3 must be 3 \* patch_size \*\* 2 = 12"),
        ({"base_channels": 48}, "must be a multiple of 32"),
        ({"attn_type": "linear"}, "attn_type='linear' is unknown"),
        ({"double_latent": True}, "double_latent=true"),
    ],
)
def test_config_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQConfig.from_hf(SMALL | change)
