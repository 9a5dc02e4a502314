"""The benchmarks compare equal work, measure every contender, and say what is allowed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import decode, train
from benchmarks.baseline import BASELINES, Baseline
from benchmarks.hf_trainer import Ours, Theirs
from benchmarks.machine import copy_bandwidth, step_bytes
from test_module import QKV, backend, batch, identifier, module
from test_sampling import GRID, TEXTS, prompts

from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.training.stage import select_parameters

__all__ = ["backend", "batch", "identifier"]
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md")]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
COMMANDS = sorted(
    set(re.findall(r"^(?:\S+=\S+ |taskset -c 1 )*python (experiments/benchmarks .*)$", TEXT, re.M))
)


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_are_understood(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    assert {"decode": decode, "train": train}[name].read_settings(arguments)


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 3.0, "top_p": 0.9}, {"temperature": 0.0}])
def test_the_static_baseline_draws_the_same_images(
    tiny_backend: ChameleonBackend, settings: dict[str, float]
) -> None:
    """transformers' cache, padding and guidance with our noise give our images: it is the same work."""
    ids = prompts(tiny_backend, TEXTS[0], TEXTS[0])
    static = Baseline(tiny_backend, Sampling(**settings), static=True)
    plain = PlainDecoder(**settings)(tiny_backend, ids, GRID, [1, 2])
    assert torch.equal(static(tiny_backend, ids, GRID, [1, 2]), plain)


def test_bytes_of_a_step_are_counted_by_hand(tiny_backend: ChameleonBackend) -> None:
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32 + 4 * 32  # projections, MLP, norms, q and k norms
    weights = 2 * layer + 32 + 64 * 32  # two layers, the last norm, the head's image rows
    token = 2 * 2 * 32  # keys and values of two layers
    plain = step_bytes(tiny_backend, batch=3, prompt=10, answer=20, guided=False)
    guided = step_bytes(tiny_backend, batch=3, prompt=10, answer=20, guided=True)
    assert plain == 4 * (weights + 3 * 20 * token)
    assert guided == 4 * (weights + 3 * 30 * token)
    assert copy_bandwidth(torch.device("cpu")) > 1e7


def test_decode_measures_every_contender(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [f"model.path={tiny_model_dir}", "decoder=plain,jacobi", "batch=1,2", "runs=2", f"out={tmp_path}"]
    with pytest.warns(UserWarning, match="decoder=jacobi got a batch of 2 images"):
        command.main(["decode", *words, "trainer.threads=1", "decoder.window=5"])
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [(row["decoder"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in ("plain", "jacobi", *BASELINES.values())
    ]
    plain, jacobi, generate, static = (row["steps"] for row in rows[:4])
    assert (plain, static) == (16, 19) and jacobi <= 16  # newlines are steps of their own in transformers
    assert generate == 2 * 19  # and guidance is a second forward
    assert rows[5]["steps"] == 16  # two images: jacobi decodes plainly
    assert rows[2]["x transformers generate, batch 1"] == 1.0
    assert rows[7]["x transformers static, batched CFG, batch 2"] == 1.0
    assert (tmp_path / "decode.md").read_text().count("\n") == 2 + len(rows)
    assert "plain, batch 2: an image takes 1/" in capsys.readouterr().out


def test_a_contender_that_fails_is_a_row_and_not_the_end(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Baseline, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory") if self.static else ValueError("no such cache")

    monkeypatch.setattr(Baseline, "__call__", fails)
    words = [f"model.path={tiny_model_dir}", "batch=2", "runs=1", "trainer.threads=1"]
    rows = decode.run(*decode.read_settings(words))["rows"]
    failed = [row.get("failed") for row in rows]
    assert failed == [None, "failed: ValueError: no such cache", "out of memory"]
    assert "| transformers static, batched CFG | 2 | out of memory |" in decode.table(rows)
    alone = decode.run(*decode.read_settings([*words, "baselines=none"]))["rows"]
    assert [row["decoder"] for row in alone] == ["plain"] and "| - | - |" in decode.table(alone)


def test_transformers_own_class_computes_the_same_loss_and_gradients(backend, identifier, batch) -> None:
    """What `train` compares with is the same step, but for the words that are not image codes."""
    made = module(backend, identifier, *QKV)
    made.context.config.model.recipe.loss = "answer"  # transformers' loss is over all of the vocabulary
    ours = Ours(made)(**batch)["loss"]
    wanted = torch.autograd.grad(ours, [identifier.rows, *made.network.weights.values()])
    theirs = Theirs(made, made.stage)
    assert set(made.network.weights) == set(select_parameters(backend.transformer, QKV))
    loss = theirs(**batch)["loss"]
    assert torch.allclose(loss, ours, atol=1e-5)
    got = torch.autograd.grad(loss, [identifier.rows, *made.network.weights.values()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, wanted, strict=True))
    made.context.config.model.recipe.dropout = 0.1
    assert Ours(made)(**batch)["loss"] != ours
    with pytest.raises(ValueError, match=r"has no dropout; set model\.recipe\.dropout=0"):
        Theirs(made, made.stage)
    stage = made.stage.trains
    stage.lora.rank = 4
    with pytest.raises(ValueError, match="choose a method without LoRA"):
        Theirs(made, made.stage)


def test_train_compares_in_one_run(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "deep" / "train.json"
    quick = [
        "experiment=quick",
        "trainer.threads=1",
        f"model.path={tiny_model_dir}",
        "rounds=1",
        f"out={out}",
    ]
    command.main(["train", "steps=5", *quick])
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == list(train.CONTENDERS) and rows["personalar"]["ours_over_s_per_step"] == 1.0
    assert all(row["s_per_step"] > 0 and row["peak_gb"] > 0 for row in rows.values())
    assert "| by hand |" in capsys.readouterr().out and result["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "unknown command ''; allowed: decode, train"),
        (["decode", "batch=0"], "batch or runs=0 must be a whole number from 1"),
        (["decode", "weights=tiny"], "invalid value weights=tiny; allowed: model, random_7b, random_235m"),
        (["decode", "baselines=static,vllm"], "invalid value baselines=vllm; allowed: generate, static"),
        (["decode", "modle=nano"], "unknown setting modle"),
        (["decode", "decoder=plane"], "decoder='plane'"),
        (["train", "steps=3"], "must be more than the 3 steps of warm-up"),
        (["train", "steps=x"], "steps=x must be a whole number from 1"),
        (["train", "subject=cta"], "subject='cta'; did you mean cat?"),
        (["train", "bench_stage=x", "rounds=1", "experiment=quick"], "allowed: embedding, transformer"),
    ],
)
def test_mistakes_name_what_is_allowed(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        command.main(words)
