"""LoRA: nothing changes at first, and merging gives the weights that PEFT gives."""

from __future__ import annotations

import json

import pytest
import torch
from conftest_backend import make_backend
from safetensors.torch import load, save

from personalar.concepts.adapters.lora import inject_lora, lora_files, merge_lora
from personalar.core.own_files import LORA_CONFIG, LORA_WEIGHTS
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


def test_seeded_and_global_state_untouched() -> None:
    before = torch.random.get_rng_state()
    first, second, other = adapted(1)[1], adapted(1)[1], adapted(2)[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("strength", "rslora"), [(1.0, False), (0.7, False), (1.0, True)])
def test_merged_weights_equal_those_of_peft(dtype: torch.dtype, strength: float, rslora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    files = lora_files(adapted()[0].transformer)
    settings = json.loads(files[LORA_CONFIG]) | {"lora_alpha": 5, "use_rslora": rslora}
    ours, theirs = make_backend().transformer.to(dtype), make_backend().transformer.to(dtype)
    merge_lora(ours, files | {LORA_CONFIG: json.dumps(settings).encode()}, strength=strength)
    kept = {key: settings[key] for key in ("r", "target_modules", "layers_to_transform", "use_rslora")}
    inject_adapter_in_model(LoraConfig(**kept, lora_alpha=strength * 5, layers_pattern="layers"), theirs)
    saved = load(files[LORA_WEIGHTS])
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            parameter.data = saved[f"base_model.model.{name.replace('.default.', '.')}"]
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    expected = {name.replace(".base_layer.", "."): tensor for name, tensor in theirs.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


def test_half_precision_base_has_float32_adapters() -> None:
    transformer = make_backend().transformer.bfloat16()
    parameters = inject_lora(transformer, rank=2, generator=torch.Generator().manual_seed(0))
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert hidden(transformer).dtype == torch.bfloat16


def refused(files: dict[str, bytes], message: str, **shape: int) -> None:
    transformer = make_backend(**shape).transformer
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        merge_lora(transformer, files)
    after = transformer.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_that_does_not_fit_changes_nothing() -> None:
    files = lora_files(adapted()[0].transformer)
    settings = json.loads(files[LORA_CONFIG])
    refused({LORA_WEIGHTS: files[LORA_WEIGHTS]}, f"the adapter lacks {LORA_CONFIG}: copy")
    refused(files | {LORA_WEIGHTS: files[LORA_WEIGHTS][:50]}, "is not a safetensors file")
    refused(files | {LORA_CONFIG: b"{"}, "the adapter is damaged")
    for key, value, message in (
        ("use_dora", True, "not plain LoRA"),
        ("alpha_pattern", {"q_proj": 32}, "the adapter sets alpha_pattern, which cannot be loaded; expected"),
        ("rank_pattern", {"k_proj": 3}, "the adapter sets rank_pattern, which cannot be loaded; expected"),
        ("r", 4, "another architecture; mismatches: model.layers.0.self_attn.q_proj.weight"),
    ):
        refused(files | {LORA_CONFIG: json.dumps(settings | {key: value}).encode()}, message)
    tensors = load(files[LORA_WEIGHTS])
    norm = "base_model.model.model.norm"
    pair = {f"{norm}.lora_A.weight": torch.zeros(3, 32), f"{norm}.lora_B.weight": torch.zeros(32, 3)}
    for extra, name in (({"extra": torch.zeros(1)}, "extra"), (pair, "model.norm.weight")):
        refused(files | {LORA_WEIGHTS: save(tensors | extra)}, f"another architecture; mismatches: {name}")
    del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    refused(files | {LORA_WEIGHTS: save(tensors)}, "mismatches: model.layers.1.self_attn.v_proj.weight")
    refused(files | {LORA_WEIGHTS: save({})}, "mismatches: it is empty")
    refused(files, "mismatches", num_hidden_layers=1)
