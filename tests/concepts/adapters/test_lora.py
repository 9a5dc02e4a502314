"""LoRA: nothing changes at first, merging changes nothing, and PEFT reads what is written."""

from __future__ import annotations

import json

import pytest
import torch
from conftest_backend import make_backend
from safetensors.torch import load, save

from personalar.concepts.adapters.lora import (
    has_lora,
    inject_lora,
    load_lora,
    lora_files,
    merge_lora,
    remove_lora,
)
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.transformer import ChameleonTransformer

IDS = torch.tensor([[0, 70, 5, 9, 30, 200]])


@torch.no_grad()
def hidden(transformer: ChameleonTransformer) -> torch.Tensor:
    return transformer(transformer.embed(IDS))


def adapted(seed: int = 1, **numbers: int) -> tuple[ChameleonBackend, dict[str, torch.nn.Parameter]]:
    backend = make_backend()
    generator = torch.Generator().manual_seed(seed)
    parameters = inject_lora(backend.transformer, **({"rank": 3} | numbers), generator=generator)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return backend, parameters


def test_starts_as_the_base_and_trains_only_adapters() -> None:
    transformer = make_backend().transformer
    before = hidden(transformer)
    parameters = inject_lora(transformer, rank=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hidden(transformer), before)
    assert {name for name, p in transformer.named_parameters() if p.requires_grad} == set(parameters)
    assert len(parameters) == 2 * 3 * 2  # A and B of q, k, v in two layers
    assert sum(p.numel() for p in parameters.values()) == 2 * 3 * 2 * 32 * 4


def test_every_n_layers() -> None:
    _, parameters = adapted(every_n_layers=2)
    assert {name.split(".")[2] for name in parameters} == {"0"}


def test_seeded_and_global_state_untouched() -> None:
    before = torch.random.get_rng_state()
    first, second, other = adapted(1)[1], adapted(1)[1], adapted(2)[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_merge_keeps_outputs_and_names() -> None:
    plain = make_backend().transformer
    backend, _ = adapted()
    expected = hidden(backend.transformer)
    assert not torch.allclose(expected, hidden(plain), atol=1e-2)
    merge_lora(backend.transformer)
    torch.testing.assert_close(hidden(backend.transformer), expected, atol=1e-4, rtol=1e-4)
    assert set(backend.transformer.state_dict()) == set(plain.state_dict())
    assert not has_lora(backend.transformer)


def test_remove_restores_the_base() -> None:
    backend, _ = adapted()
    remove_lora(backend.transformer)
    assert torch.equal(hidden(backend.transformer), hidden(make_backend().transformer))


def test_files_round_trip() -> None:
    backend, parameters = adapted()
    files = lora_files(backend.transformer)
    assert files == lora_files(backend.transformer)
    fresh = make_backend()
    loaded = load_lora(fresh.transformer, files)
    assert all(torch.equal(parameters[name], loaded[name]) for name in parameters)
    assert torch.equal(hidden(fresh.transformer), hidden(backend.transformer))


def test_half_precision_base_has_float32_adapters() -> None:
    transformer = make_backend().transformer.bfloat16()
    parameters = inject_lora(transformer, rank=2, generator=torch.Generator().manual_seed(0))
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert hidden(transformer).dtype == torch.bfloat16


def test_injection_errors() -> None:
    generator = torch.Generator()
    transformer = make_backend().transformer
    with pytest.raises(ValueError, match="must be at least 1"):
        inject_lora(transformer, rank=0, generator=generator)
    with pytest.raises(ValueError, match=r"lora targets=\['x_proj'\] are unknown"):
        inject_lora(transformer, rank=1, targets=["x_proj"], generator=generator)
    with pytest.raises(ValueError, match="no adapter to save"):
        lora_files(transformer)
    inject_lora(transformer, rank=1, generator=generator)
    with pytest.raises(ValueError, match="already has an adapter"):
        inject_lora(transformer, rank=1, generator=generator)


def test_loading_errors() -> None:
    files = lora_files(adapted()[0].transformer)
    transformer = make_backend().transformer
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    with pytest.raises(ValueError, match=rf"does not contain {config}"):
        load_lora(transformer, {weights: files[weights]})
    with pytest.raises(ValueError, match="the adapter is damaged"):
        load_lora(transformer, files | {weights: files[weights][:50]})
    with pytest.raises(ValueError, match="not plain LoRA"):
        load_lora(
            transformer, files | {config: json.dumps(json.loads(files[config]) | {"use_dora": True}).encode()}
        )
    for key, value in {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"k_proj": 3}}.items():
        other = json.dumps(json.loads(files[config]) | {key: value}).encode()
        with pytest.raises(ValueError, match=rf"the adapter sets {key}, which cannot be loaded; expected"):
            load_lora(transformer, files | {config: other})
    tensors = load(files[weights])
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="another architecture; mismatches: extra"):
        load_lora(transformer, files | {weights: save(tensors)})
    assert not has_lora(transformer)
    narrow = make_backend(num_hidden_layers=1).transformer
    with pytest.raises(ValueError, match="mismatches"):
        load_lora(narrow, files)
