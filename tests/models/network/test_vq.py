"""The VQ model against transformers', upstream's key names and shapes, and its own patch folding."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import TINY_VQ
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

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
@pytest.mark.parametrize("attn_resolutions", [(), (8,), (16, 32)])
def test_pictures_equal_transformers(shape: tuple[int, int], attn_resolutions: tuple[int, ...]) -> None:
    """Janus' own loop over the same layers; its levels are numbered from the lowest resolution."""
    decoder = build(attn_resolutions=attn_resolutions).double().decoder
    attention = {name.split(".")[1] for name in decoder.state_dict() if ".attn." in name}
    assert attention == {str({32: 0, 16: 1, 8: 2}[side]) for side in attn_resolutions}
    latents = torch.randn(2, 16, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = decoder(latents)
    assert got.shape == (2, 3, 4 * shape[0], 4 * shape[1]) and got.std() > 0.3
    decoder.up = torch.nn.ModuleList(reversed(decoder.up))
    decoder.num_resolutions, decoder.num_res_blocks = 3, 2
    torch.testing.assert_close(got, JanusVQVAEDecoder.forward(decoder, latents), atol=1e-9, rtol=1e-9)


def test_a_tokenizer_without_attention() -> None:
    assert not [name for name in build(attn_type=None).state_dict() if "attn" in name]


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
        ({"base_channels": 48}, "must be a multiple of 32"),
        ({"attn_type": "linear"}, "attn_type='linear' is unknown"),
        ({"double_latent": True}, "double_latent=true"),
    ],
)
def test_config_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQConfig.from_hf(SMALL | change)
