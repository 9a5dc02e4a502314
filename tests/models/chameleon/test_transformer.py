"""The transformer against transformers' own."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import TINY_TRANSFORMER
from conftest_upstream import transformers_model

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
    ours = build(
        swin_norm=swin_norm,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rope_theta=5000.0,
    )
    theirs = transformers_model(ours.config.to_hf() | {"vocabulary_map": {"<image>": 5}}, ours.state_dict())
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
