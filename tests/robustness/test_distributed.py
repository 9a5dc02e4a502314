"""Two processes equal one in losses, learned tensors and resuming; checkpoints contain nothing frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest_run import QUICK, curve
from processes import run_and_look, run_interrupted, run_together

from personalar.concepts.concept import Concept
from personalar.config.recipe import StageNumbers
from personalar.core.run_folder import RunFolder
from personalar.training.checkpoint import EXIT_TERMINATED

STRATEGIES = ["ddp", "zero2", "zero3", "zero3_offload"]


def assert_same_learning(one: Path, two: Path) -> None:
    for stage in ("embedding", "transformer"):
        first, second = (Concept.load(path / "stages" / stage / "concept") for path in (one, two))
        torch.testing.assert_close(second.rows, first.rows, atol=2e-4, rtol=1e-3)
        assert second.weights.keys() == first.weights.keys() and second.tokens == first.tokens
        for name, weight in first.weights.items():
            torch.testing.assert_close(second.weights[name], weight, atol=2e-4, rtol=1e-3)
        for name, tolerance in (("train/loss", 1e-3), ("watch/gradient_norm", 2e-2)):
            before, after = curve(one, name, stage), curve(two, name, stage)
            assert before.keys() == after.keys() and len(before) == 4
            assert after == pytest.approx(before, abs=tolerance, rel=1e-3)


@pytest.mark.parametrize("strategy", [s if s != "zero3_offload" else pytest.param(s, marks=pytest.mark.slow)
                                      for s in STRATEGIES])  # fmt: skip
def test_two_interrupted_processes_equal_one_whole_run(
    strategy: str, tiny_model_dir: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the second process gets SIGTERM, in stage 2; both save, end, and resume with the same command.

    Both processes sample the same number of pictures of a grid, whatever its size. A logger that fails
    after learning, on rank zero only, costs nothing.
    """
    overrides = ["+subject=cat", *QUICK, f"model.path={tiny_model_dir}", "scorer=none", f"trainer={strategy}"]
    overrides += ["trainer.accelerator=cpu", "trainer.checkpoint_every_steps=100"]
    overrides += ['samples.prompts=["a photo of a {}","a {} on the beach","a {} in the snow"]']
    run_dir = tmp_path / "run"
    run_together(
        run_dir, *overrides, work=run_interrupted, arguments=(7, 1), expected=(EXIT_TERMINATED, 0)
    )  # fmt: skip
    folder = RunFolder(run_dir)
    saved = folder.record["stages"]["transformer"]["checkpoint"]
    assert (saved["step"], saved["world"], saved["strategy"]) == (3, 2, strategy)
    assert_nothing_frozen(folder.checkpoints("transformer") / saved["file"], tiny_model_dir)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    mine = '+logger.mine={_target_: toys.Forgetful, file: "{folder}/list.txt", name: "{stage}"}'
    said = run_together(run_dir, *overrides, mine, work=run_and_look)
    assert "note: after training in stage transformer: the server is gone" in said
    assert_same_learning(finished_run, run_dir)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "zero2"])
def test_a_step_of_several_passes_has_the_mean_gradient(
    strategy: str, do_run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Gradients are divided by the number of passes exactly once: clipping uses the norm that is logged.

    Dropout masks depend on the sequence, not on its process or pass.
    """
    steps = "model.recipe.stages.embedding"
    passes = ["stage=embedding", f"{steps}.batch=1", f"{steps}.accumulate=4", f"{steps}.steps=2"]
    passes += ["scorer=none", "samples.grid_every_steps=0", "samples.kinds=[subject]"]
    passes += ["model.recipe.dropout=0.2"]
    do_run(tmp_path / "one", *passes)
    words = dict(word.split("=", 1) for word in [*QUICK, f"model.path={tiny_model_dir}", *passes])
    words |= {"trainer": strategy, "trainer.accelerator": "cpu"}
    run_together(tmp_path / "two", "+subject=cat", *(f"{name}={value}" for name, value in words.items()))
    norms = [curve(tmp_path / name, "watch/gradient_norm") for name in ("one", "two")]
    assert len(norms[0]) == 2 and norms[1] == pytest.approx(norms[0], rel=1e-2)


def assert_nothing_frozen(checkpoint: Path, base: Path) -> None:
    """A checkpoint contains only trained parameters, and is smaller than the base."""
    trained = {f"transformer.model.layers.{n}.self_attn.{p}_proj.weight" for n in range(2) for p in "qkv"}
    if checkpoint.is_file():
        assert set(torch.load(checkpoint, weights_only=True)["state_dict"]) == {"identifier.rows", *trained}
    else:
        files = list(checkpoint.rglob("*model_states.pt"))
        assert files
        for file in files:
            shapes = torch.load(file, weights_only=False)["param_shapes"]  # DeepSpeed's own objects
            assert {name for group in shapes for name in group} == {"identifier.rows", *trained}
    size = sum(file.stat().st_size for file in [checkpoint, *checkpoint.rglob("*")] if file.is_file())
    assert size < (base / "base" / "model.safetensors").stat().st_size


def test_processes_share_every_step() -> None:
    by_batch = StageNumbers(steps=1, batch=4, accumulate=3, lr=0)
    assert by_batch.share(2) == (2, 3)
    assert [by_batch.owner(n, 2) for n in range(6)] == [0, 1, 0, 1, 0, 1]
    by_turn = StageNumbers(steps=1, batch=1, accumulate=8, lr=0)
    assert by_turn.share(4) == (1, 2)
    assert [by_turn.owner(n, 4) for n in range(8)] == [0, 1, 2, 3] * 2
    with pytest.raises(ValueError, match=r"3 processes cannot divide batch=1 accumulate=8 evenly"):
        by_turn.share(3)
