"""The full-size experiment at tiny size, and what loading a big checkpoint costs in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from personalar.models.chameleon.transformer import ChameleonTransformer

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "lumina_7b_smoke"
pytestmark = pytest.mark.skipif(not SMOKE.is_dir(), reason="this copy of the source has no experiments/")


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SMOKE))
    import smoke

    return smoke


def test_the_whole_way_at_tiny_size(smoke, tmp_path: Path) -> None:
    options = ["--size", "tiny", "--device", "cpu", "--steps", "2", "--decoders", "plain"]
    smoke.main([str(tmp_path / "work"), *options, "--override", "trainer.threads=1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "smoke_tiny_cpu.json").read_text())
    steps = {row["step"]: row for row in record["steps"]}
    assert list(steps) == [
        "write a random checkpoint", "load it", "encode five photos", "stage embedding, 2 steps, batch 1",
        "stage transformer, 2 steps, batch 1", "one picture, decoder=plain",
    ]  # fmt: skip
    assert steps["encode five photos"]["codes"] == [[4, 4], [4, 4], [4, 4], [2, 6], [4, 4]]
    assert all(row["seconds"] >= 0 and row["host_peak_gb"] > 0 for row in record["steps"])
    assert "refused" not in steps["one picture, decoder=plain"]
    assert (tmp_path / "work" / "plain.png").is_file()
    table = (tmp_path / "smoke_tiny_cpu.md").read_text()
    assert "random weights; CPU" in table and "| load it |" in table and "painted pictures" in table
    concepts = list((tmp_path / "work" / "run").rglob("concept.json"))
    assert len(concepts) >= 2


def test_the_full_size_has_the_published_numbers(smoke) -> None:
    from checkpoint import SIZES

    with torch.device("meta"):
        transformer = ChameleonTransformer(SIZES["7b"][0])
    counts = {name: parameter.numel() for name, parameter in transformer.named_parameters()}
    assert sum(counts.values()) == 7_013_666_816
    qkv = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    assert sum(n for name, n in counts.items() if name.endswith(qkv)) == 1_610_612_736


def test_loading_costs_the_model_and_one_shard(smoke, tmp_path: Path) -> None:
    """At 0.1 GB (experiments/lumina_7b_smoke: 2.2 GB). Loading it whole would cost twice the model."""
    import load_memory

    rows = load_memory.main(
        [str(tmp_path), "--width", "512", "--layers", "12", "--vocab", "17000", "--shard-mb", "20"]
    )
    assert [row["dtype"] for row in rows] == ["bfloat16", "float16"]
    for row in rows:
        assert row["model_gb"] > 0.1 and row["largest_shard_gb"] < 0.03
        assert 0 < row["peak_gb"] <= row["model_gb"] + row["largest_shard_gb"] + 0.03, row
    assert json.loads((tmp_path / "load_memory.json").read_text())["loads"] == rows
