"""Blocks prepared for training: compiled, in 4 bits, with an 8-bit optimizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest_backend import make_backend
from conftest_run import compose_config, curve

from personalar.config.fingerprint import learning_settings, stage_settings
from personalar.models.chameleon.serialization import save_backend
from personalar.training.model_prep import prepare_blocks, quantize_base
from personalar.training.module import make_optimizer

NO_COMPILER = shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes' CPU code wants multiples of 64
QUANTIZED = 'bitsandbytes is not installed: pip install "personalar[quantized]"'


def train_a_little(*, compiled: bool, recompute: bool = False) -> tuple[list[float], list[torch.Tensor]]:
    """Return the losses and last gradients of three steps on the q, k and v projections."""
    transformer = make_backend().transformer
    prepare_blocks(transformer.blocks, recompute=recompute, compiled=compiled)
    chosen = [p for name, p in transformer.named_parameters() if "q_proj" in name]
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, fused=True)
    embeds = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = transformer(embeds).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, [parameter.grad for parameter in chosen]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.skipif(NO_COMPILER, reason="torch.compile needs a C++ compiler on a CPU; none is in PATH")
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_learn_the_same(recompute: bool) -> None:
    plain, gradients = train_a_little(compiled=False)
    fused, others = train_a_little(compiled=True, recompute=recompute)
    assert fused == pytest.approx(plain, rel=1e-5) and len(set(plain)) == 3
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.skipif(NO_COMPILER, reason="torch.compile needs a C++ compiler on a CPU; none is in PATH")
@pytest.mark.slow  # a minute of compiling; the test above holds the same program against eager
def test_a_run_with_compiled_blocks(do_run, finished_run: Path, tmp_path: Path) -> None:
    """The losses of both stages equal those of the run without it; sampling is not compiled."""
    do_run(tmp_path, "stage=both", "scorer=none", "trainer.compile_blocks=true")
    for stage in ("embedding", "transformer"):
        assert curve(tmp_path, "train/loss", stage) == pytest.approx(
            curve(finished_run, "train/loss", stage), rel=1e-4
        )


def test_states_in_8_bits_follow_those_in_32() -> None:
    """bitsandbytes keeps tensors with fewer than 4096 numbers in 32 bits."""
    pytest.importorskip("bitsandbytes", reason=QUANTIZED)
    goal = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("adamw", "adamw8bit"):
        parameter = torch.nn.Parameter(torch.zeros(64, 128))
        groups = [{"params": [parameter], "lr": 1e-2}]
        optimizer = make_optimizer(compose_config("+subject=cat", f"optimizer={name}").optimizer, groups)
        for _ in range(30):
            optimizer.zero_grad()
            (parameter - goal).square().sum().backward()
            optimizer.step()
        found[name] = parameter.detach()
    state = optimizer.state[parameter]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    error = (found["adamw8bit"] - found["adamw"]).abs()
    assert error.mean() < 0.1 * found["adamw"].abs().mean()


def test_states_in_8_bits_make_another_run() -> None:
    plain, small = (compose_config("+subject=cat", *more) for more in ([], ["optimizer=adamw8bit"]))
    assert learning_settings(plain) != learning_settings(small)
    first = [stage_settings(learning_settings(config), "embedding") for config in (plain, small)]
    assert first[0] != first[1]  # so `reuse` does not take one for the other


def test_four_bits_hold_the_matrices_nearly() -> None:
    library = pytest.importorskip("bitsandbytes", reason=QUANTIZED)
    transformer = make_backend(**WIDE).transformer
    linear = transformer.model.layers[0].self_attn.q_proj
    before = linear.weight.detach().clone()
    names = {name for name, _ in transformer.named_modules()}
    quantize_base(transformer.blocks)
    assert {name for name, _ in transformer.named_modules()} == names
    small = transformer.model.layers[0].self_attn.q_proj
    assert small.weight.dtype == torch.uint8 and small.weight.numel() == before.numel() // 2
    after = library.functional.dequantize_4bit(small.weight, small.weight.quant_state).float()
    assert (after - before).abs().mean() < 0.12 * before.abs().mean()
    embeds = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for _ in range(2):  # also after sampling, where bitsandbytes would pack the matrices for a CPU
        inside = embeds.clone().requires_grad_()
        transformer(inside).square().mean().backward()
        gradients.append(inside.grad)
        with torch.no_grad():
            transformer.eval()(embeds)
    assert torch.equal(*gradients)


@pytest.mark.slow
def test_a_run_in_four_bits_with_an_8_bit_optimizer(do_run, tmp_path: Path) -> None:
    """method=qlora and optimizer=adamw8bit, both stages, on a CPU: it learns and writes an adapter."""
    pytest.importorskip("bitsandbytes", reason=QUANTIZED)
    base = save_backend(make_backend(**WIDE), tmp_path / "model", dtype=torch.float32)
    overrides = ["method=qlora", "optimizer=adamw8bit", "stage=both", f"model.path={base}"]
    overrides += ["model.recipe.stages.lora.steps=4", "model.recipe.stages.lora.batch=2"]
    run_dir = tmp_path / "run"
    do_run(run_dir, *overrides)
    assert len(set(curve(run_dir, "train/loss", "transformer").values())) == 4
    assert (run_dir / "concept" / "lora" / "adapter_model.safetensors").is_file()
