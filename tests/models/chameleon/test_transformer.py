"""The transformer against transformers' own, and against itself cached, padded, compiled and in bf16."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import TINY_TRANSFORMER

from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig

VOCAB = 90


def build(seed: int = 0, **numbers: object) -> ChameleonTransformer:
    transformer = ChameleonTransformer(TransformerConfig(vocab_size=VOCAB, **(TINY_TRANSFORMER | numbers)))
    generator = torch.Generator().manual_seed(seed)
    transformer.init_weights(generator, std=0.2)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return transformer.requires_grad_(False)


def random_ids(batch: int, num_tokens: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, num_tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_equals_transformers(swin_norm: bool, kv_heads: int) -> None:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    ours = build(
        swin_norm=swin_norm,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rope_theta=5000.0,
    )
    vq = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 4}
    vq |= {"embed_dim": 4, "num_embeddings": 4, "resolution": 32}
    numbers = {key: value for key, value in ours.config.to_hf().items() if key != "model_type"}
    theirs = ChameleonForConditionalGeneration(
        ChameleonConfig(**numbers, vocabulary_map={"<image>": 5}, vq_config=vq)
    ).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith("model.vqmodel.") for key in report.missing_keys)
    ids = random_ids(2, 17)
    with torch.no_grad():
        hidden = theirs.model(input_ids=ids).last_hidden_state
        logits = theirs.lm_head(hidden)
    got = ours(ours.embed(ids))
    torch.testing.assert_close(got, hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits(got), logits, atol=1e-5, rtol=1e-5)


def test_config_survives_transformers_json() -> None:
    from transformers import ChameleonConfig

    config = TransformerConfig(vocab_size=VOCAB, **TINY_TRANSFORMER, rope_theta=1234.0, swin_norm=True)
    numbers = {key: value for key, value in config.to_hf().items() if key != "model_type"}
    theirs = ChameleonConfig(**numbers, vocabulary_map={"<image>": 5}).to_dict()
    assert TransformerConfig.from_hf(theirs) == config
    assert TransformerConfig.from_hf(theirs | {"dropout": 0.05}) == config  # the recipe says, not the base
    legacy = {key: value for key, value in config.to_hf().items() if key != "rope_parameters"}
    assert TransformerConfig.from_hf(legacy | {"rope_theta": 1234.0}) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"hidden_size": 33}, "must be num_attention_heads=2 times an even number"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads=3"),
    ],
)
def test_config_errors(change: dict[str, object], message: str) -> None:
    numbers = TransformerConfig(vocab_size=VOCAB, **TINY_TRANSFORMER).to_hf()
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_hf(numbers | change)


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("widths", [[5, 1, 1, 2, 1, 2], [1, 1, 1, 1, 8]])
def test_cached_equals_uncached_with_left_padding(kv_heads: int, widths: list[int]) -> None:
    transformer = build(num_key_value_heads=kv_heads)
    short, long = random_ids(1, 9, seed=1), random_ids(1, 12, seed=2)
    padded = torch.cat((torch.cat((torch.full((1, 3), 7), short), dim=1), long))  # (2, 12)
    cache = transformer.new_cache((torch.arange(14) - torch.tensor([[3], [0]])).clamp_min(-1))
    chunks = [transformer(transformer.embed(part), cache=cache) for part in padded.split(widths, dim=1)]
    got = torch.cat(chunks, dim=1)
    assert got.isfinite().all()
    torch.testing.assert_close(got[:1, 3:], transformer(transformer.embed(short)), atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1:], transformer(transformer.embed(long)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traces_as_one_graph(dtype: torch.dtype) -> None:
    transformer = build().to(dtype).requires_grad_(True)
    embeds = transformer.embed(random_ids(2, 8)).detach()
    compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(compiled(embeds), transformer(embeds), atol=tolerance, rtol=tolerance)
    compiled(embeds).sum().backward()
    assert transformer.lm_head.weight.grad is None
    assert transformer.model.embed_tokens.weight.grad is None
    assert transformer.model.norm.weight.grad.dtype == dtype


def test_state_is_parameters_only() -> None:
    transformer = build()
    assert set(transformer.state_dict()) == {name for name, _ in transformer.named_parameters()}
    assert not list(transformer.buffers())
