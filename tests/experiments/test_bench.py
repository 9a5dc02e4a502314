"""The measurement of sampling: what it compares is right, and what it prints is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest_backend import TINY_TRANSFORMER, TINY_VQ
from huggingface_hub import constants
from test_sampling import GRID, TEXTS, prompts

from personalar.bench.baseline import BASELINES, Baseline, hf_model
from personalar.bench.decode import read_settings, run
from personalar.bench.decode_table import table
from personalar.bench.random_weights import random_backend
from personalar.bench.roofline import copy_bandwidth, step_bytes
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.sequence_layout import ProtocolConfig
from personalar.models.chameleon.transformer import TransformerConfig


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 3.0, "top_p": 0.9}, {"temperature": 0.0}])
def test_the_static_baseline_draws_the_same_images(
    tiny_backend: ChameleonBackend, settings: dict[str, float]
) -> None:
    """transformers' cache, padding and guidance with our noise give our images: it is the same work."""
    ids = prompts(tiny_backend, TEXTS[0], TEXTS[0])
    static = Baseline(tiny_backend, Sampling(**settings), static=True)
    assert torch.equal(
        static(tiny_backend, ids, GRID, [1, 2]), PlainDecoder(**settings)(tiny_backend, ids, GRID, [1, 2])
    )


@pytest.mark.parametrize("settings", [{"cfg_scale": 3.0, "top_p": 0.9}, {"top_k": 20}])
def test_the_generate_baseline_draws_legal_images(
    tiny_backend: ChameleonBackend, settings: dict[str, float]
) -> None:
    ids = prompts(tiny_backend, TEXTS[0], TEXTS[0])
    codes = Baseline(tiny_backend, Sampling(**settings), static=False)(tiny_backend, ids, GRID, [1, 2])
    assert codes.shape == (2, *GRID) and codes.min() >= 0 and codes.max() < 64
    assert not torch.equal(codes[0], codes[1])


def test_the_baseline_shares_the_weights(tiny_backend: ChameleonBackend) -> None:
    theirs = hf_model(tiny_backend)
    assert theirs.lm_head.weight.data_ptr() == tiny_backend.transformer.lm_head.weight.data_ptr()
    assert not any(p.is_meta for p in [*theirs.parameters(), *theirs.buffers()])


def test_bytes_of_a_step_are_counted_by_hand(tiny_backend: ChameleonBackend) -> None:
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32 + 4 * 32  # projections, MLP, norms, q and k norms
    weights = 2 * layer + 32 + 64 * 32  # two layers, the last norm, the head's image rows
    token = 2 * 2 * 32  # keys and values of two layers
    plain = step_bytes(tiny_backend, batch=3, prompt=10, answer=20, guided=False)
    guided = step_bytes(tiny_backend, batch=3, prompt=10, answer=20, guided=True)
    assert plain == 4 * (weights + 3 * 20 * token)
    assert guided == 4 * (weights + 3 * 30 * token)
    assert copy_bandwidth(torch.device("cpu")) > 1e7


def test_one_run_measures_everything(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"model.path={tiny_model_dir}", "decoder=plain,jacobi", "batch=1,2", "runs=2"]
    record = run(read_settings([*arguments, "trainer.threads=1", "decoder.window=5"]))
    rows = record["rows"]
    assert [(row["decoder"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in ("plain", "jacobi", *BASELINES.values())
    ]
    plain, jacobi, generate, static = (row["steps"] for row in rows[:4])
    assert (plain, static) == (16, 19) and jacobi <= 16  # newlines are steps of their own in transformers
    assert generate == 2 * 19  # and guidance is a second forward
    assert rows[5]["steps"] == 16  # two images: jacobi decodes plainly
    assert all(row["decode_s_p10"] <= row["decode_s"] <= row["decode_s_p90"] for row in rows)
    assert rows[2]["x transformers generate, batch 1"] == 1.0
    assert rows[7]["x transformers static, batched CFG, batch 2"] == 1.0
    assert json.loads(json.dumps(record)) == record
    assert table(record).count("\n") == 1 + len(rows)


def test_a_published_base_is_measured(lumina_dir: Path, vqgan_dir: Path) -> None:
    """As the hubs' repositories lie there: no protocol.json, and the image tokenizer in another folder."""
    own = ["model=lumina_mgpt_7b_512", "batch=1", "runs=1", "baselines=none", "trainer=cpu"]
    where = [f"model.path={lumina_dir}", f"model.vq_path={vqgan_dir}"]
    numbers = ["model.layout.resolution=64", "model.dtype=float32", "trainer.threads=1"]
    record = run(read_settings([*own, *where, *numbers]))
    assert record["settings"]["model"] == "lumina_mgpt_7b_512" and record["rows"][0]["steps"] == 16


def test_a_base_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="model=lumina_mgpt_7b_512 needs files that are not on this"):
        run(read_settings(["model=lumina_mgpt_7b_512", "trainer=cpu"]))


def test_what_does_not_fit_is_a_row_and_not_the_end(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Baseline, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory") if self.static else ValueError("no such cache")

    monkeypatch.setattr(Baseline, "__call__", fails)
    record = run(read_settings([f"model.path={tiny_model_dir}", "batch=2", "runs=1", "trainer.threads=1"]))
    assert [row.get("failed") for row in record["rows"]] == [
        None, "failed: ValueError: no such cache", "out of memory",
    ]  # fmt: skip
    assert "| transformers static, batched CFG | 2 | out of memory |" in table(record)
    alone = run(read_settings([f"model.path={tiny_model_dir}", "batch=2", "runs=1", "baselines=none"]))
    assert [row["decoder"] for row in alone["rows"]] == ["plain"] and " | - | - | " in table(alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch=0"], "must be numbers from 1, such as batch=1,16"),
        (["runs=x"], "must be numbers from 1"),
        (["weights=tiny"], "weights='tiny' is not known; allowed: model, random_7b"),
        (["baselines=static,vllm"], "has vllm; allowed: generate, static or none"),
        (["modle=nano"], "modle is no setting"),
        (["decoder=plane"], "decoder='plane' is not known"),
        (
            ["decoder=plain,jacobi", "decoder.bucket=8"],
            "decoder.bucket=8 is a setting of none of plain, jacobi",
        ),
    ],
)
def test_mistakes_name_what_is_allowed(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(arguments)


def test_random_weights_make_a_whole_model() -> None:
    backend = random_backend(
        TransformerConfig(vocab_size=600, **TINY_TRANSFORMER),
        TINY_VQ,
        ProtocolConfig(grid_px=16, resolution=32, buckets="square"),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert backend.dtype == torch.bfloat16 and backend.vq.post_quant_conv.weight.dtype == torch.float32
    codes = PlainDecoder(cfg_scale=4.0, top_k=20)(backend, prompts(backend, TEXTS[0]), GRID, [1])
    assert len(codes.unique()) > 4
    assert backend.decode_images(codes).shape == (1, 3, 32, 32)
