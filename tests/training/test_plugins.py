"""User-defined parts from outside of the package, selected by configuration alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest_run import compose_config
from PIL import Image
from test_recipes import RECIPES

from personalar.concepts.concept import Concept
from personalar.core.errors import user_errors
from personalar.core.types import image_fingerprint
from personalar.data.subject import load_subject

LOOK = ("scorer=none", "samples.kinds=[subject]", "samples.grid_every_steps=0")
DoRun = Callable[..., bool]
PLUGINS = Path(__file__).parents[1] / "plugins"
SEARCH = f"hydra.searchpath=[file://{PLUGINS / 'conf'}]"


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))


def test_lightnings_own_callbacks(do_run: DoRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stop = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train/loss, "
    stop += "stopping_threshold: 1000, check_on_train_epoch_end: false}"
    do_run(tmp_path, "stage=embedding", "scorer=none", "samples.grid_every_steps=1", stop)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["stages"]["embedding"]["steps"] == 1
    assert "note: a callback ended stage embedding after 1 of 4 steps; it counts" in capsys.readouterr().out


def test_lightnings_checkpoint_keeps_the_best_step_beside_ours(do_run: DoRun, tmp_path: Path) -> None:
    best = "+callbacks.best={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/harmonic, "
    best += 'mode: max, dirpath: "{folder}/best", every_n_train_steps: 1}'
    do_run(tmp_path, "stage=embedding", "samples.grid_every_steps=1", "samples.time_share=1", best)
    (kept,) = (tmp_path / "best").glob("*.ckpt")
    state = torch.load(kept, weights_only=True)["state_dict"]
    assert set(state) == {"identifier.rows"}  # the frozen base is in none
    assert (tmp_path / "report.html").is_file()


def test_a_logger_that_fails_after_learning_costs_nothing(
    do_run: DoRun, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, in_pass: Callable
) -> None:
    mine = '+logger.mine={_target_: toys.Forgetful, file: "{folder}/list.txt", name: "{stage}"}'
    in_pass(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        do_run(tmp_path / "run", "stage=embedding", *LOOK, mine)
    do_run(tmp_path / "run", "stage=embedding", *LOOK, mine)
    said = "note: after training in stage embedding: the server is gone"
    assert capsys.readouterr().out.count(said) == 2
    rows = [Concept.load(run / "stages/embedding/concept").rows for run in (tmp_path / "run", finished_run)]
    assert torch.equal(*rows) and "finished" in json.loads((tmp_path / "run" / "run.json").read_text())


def test_torchs_own_optimizer_and_scheduler(do_run: DoRun, tmp_path: Path) -> None:
    do_run(tmp_path, "stage=embedding", *LOOK, "optimizer=sgd", "optimizer.momentum=0.5", "scheduler=cosine")
    curves = next((tmp_path / "logs" / "embedding").rglob("metrics.csv")).read_text()
    assert "lr-SGD/identifier" in curves and "0.12803" in curves  # 0.15 (1 + cos(pi / 4)) / 2


def test_an_adapter_is_trained_kept_and_drawn_with(
    do_run: DoRun, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import personalar

    (tmp_path / "my_adapter.py").write_text(RECIPES["something to learn"][0])
    monkeypatch.syspath_prepend(str(tmp_path))
    do_run(tmp_path, "stage=both", *LOOK, SEARCH, "method=shift")
    concept = Concept.load(tmp_path / "concept")
    assert concept.stage == "shift" and float(concept.adapters["shift"]["shift"].abs().max()) > 0
    assert not Concept.load(tmp_path / "stages" / "embedding" / "concept").adapters
    where = [str(tmp_path), f"model.path={tiny_model_dir}", "decoder.cfg_scale=1"]
    with pytest.raises(ValueError, match=r"adapter 'shift'.*\+adapters\.shift\._target_="):
        personalar.load(*where).images(["a [V] cat"], seeds=[0])
    drawn = personalar.load(*where, "+adapters.shift._target_=my_adapter.Mine").images(["a [V] cat"], [0])
    assert drawn[0].size == (32, 32)


def test_context_vectors_are_trained_on_a_frozen_base_and_drawn_with(
    do_run: DoRun, tmp_path: Path, tiny_model_dir: Path
) -> None:
    import personalar

    few = ["prior.images=2", "samples.kinds=[subject,prior]", "samples.prompts=['a {}']", "samples.seeds=[0]"]
    do_run(tmp_path, *LOOK[::2], "method=dcoar", *few)
    concept = Concept.load(tmp_path / "concept")
    vectors = concept.adapters["context"]
    assert {name: tuple(values.shape) for name, values in vectors.items()} == {
        "text": (2, 32),
        "image": (2, 32),
    }
    assert not concept.weights and not concept.lora and "[I]" in concept.tokens
    start = Concept.load(tmp_path / "cache" / "start")
    assert torch.equal(concept.rows, start.rows) and vectors["text"].any()
    # The pictures of prompts without [V] are the base's, and a new process draws those with it.
    base, learned = (list((tmp_path / "images" / stage).glob("prior*")) for stage in ("base", "context"))
    assert base and [path.read_bytes()[-2000:] for path in base] == [p.read_bytes()[-2000:] for p in learned]
    # As many threads as in the run, because sums are rounded differently with another number.
    pipe = personalar.load(str(tmp_path), f"model.path={tiny_model_dir}", "trainer.threads=1")
    drawn = pipe.images(["a [V] cat"], [0])
    (before,) = (tmp_path / "images" / "context").glob("subject*")
    assert drawn[0].tobytes() == Image.open(before).convert("RGB").tobytes()


def test_the_base_is_distilled_into_every_weight(
    do_run: DoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of the base are kept until all stages are finished; more steps compute them again."""
    logits, few = "cache/class_logits.safetensors", ["stage=both", "prior=distill", "method=full"]
    few.append("model.recipe.stages.full.schedule=constant")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("personalar.runs.personalize.finish", Mock(side_effect=KeyboardInterrupt))
        do_run(tmp_path / "a", *LOOK, *few)
    assert (tmp_path / "a" / logits).is_file()
    do_run(tmp_path / "a", *LOOK, *few)
    assert not (tmp_path / "a" / logits).exists()
    for name in ("a", "b"):
        do_run(tmp_path / name, *LOOK, *few, "model.recipe.stages.full.steps=6")
    a, b = (Concept.load(tmp_path / name / "concept") for name in ("a", "b"))
    assert a.weights and all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())


def test_a_method_of_three_stages_by_names_of_ones_own(do_run: DoRun, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    do_run(one, "stage=both", *LOOK, SEARCH, "method=three")
    words, attention, mlp = (
        Concept.load(one / "stages" / name / "concept") for name in ("word", "attention", "mlp")
    )
    assert {name.split(".")[-2] for name in attention.weights} == {"q_proj"}
    assert {name.split(".")[-2] for name in mlp.weights} == {"up_proj"}  # it started from the word
    assert torch.equal(words.rows, mlp.rows) and Concept.load(one / "concept").stage == "mlp"
    report = (one / "report.html").read_text()
    assert "After stage 3" in report and "weights trained" in report
    do_run(two, "stage.run=[mlp]", *LOOK, SEARCH, "method=three", f"reuse={one}")  # a stage of any name
    assert torch.equal(Concept.load(two / "stages" / "word" / "concept").rows, words.rows)
    assert Concept.load(two / "concept").stage == "mlp"


def test_a_subject(do_run: DoRun, tmp_path: Path) -> None:
    words = ["+subject=folder", "subject.noun=pattern", "subject.name=stripes"]
    words += ["+subject.source={_target_: toys.stripes, colour: [200, 0, 0]}"]
    subject = load_subject(compose_config(*words).subject)
    assert len(subject.images) == 3 and subject.images[0].getpixel((0, 0)) == (200, 0, 0)
    assert subject.fingerprint == image_fingerprint(subject.images)
    masked = [load_subject(compose_config(*words, f"+subject.source.mask={k}").subject) for k in (150, 255)]
    assert len({made.fingerprint for made in (subject, *masked)}) == 3


def test_a_run_without_a_logger(do_run: DoRun, tmp_path: Path) -> None:
    do_run(tmp_path, "stage=embedding", *LOOK, "~logger.csv")
    assert not (tmp_path / "logs").exists() and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [("EarlyStopping", "conditioned on metric `no/such`"), ("ModelCheckpoint", "monitor='no/such'")],
)
def test_lightnings_own_messages_are_told(do_run: DoRun, tmp_path: Path, name: str, message: str) -> None:
    chosen = f"+callbacks.mine={{_target_: lightning.pytorch.callbacks.{name}, monitor: no/such}}"
    with pytest.raises(SystemExit, match=message), user_errors("personalar.run"):
        do_run(tmp_path, "stage=embedding", "scorer=none", "samples.grid_every_steps=1", chosen)


def test_arguments_of_the_trainer_keep_their_names(do_run: DoRun, finished_run: Path, tmp_path: Path) -> None:
    import inspect

    import lightning

    from personalar.config.fields import SET_ELSEWHERE
    from personalar.config.trainer_config import LightningArguments

    ours = set(LightningArguments.__dataclass_fields__) | {"accelerator", "devices", "num_nodes", "strategy"}
    elsewhere = {key.removeprefix("trainer.") for key in SET_ELSEWHERE}
    fixed = {"use_distributed_sampler", "limit_test_batches", "limit_predict_batches"}
    # Without an effect here: no batch norm, one endless epoch, and no validation outside of `fit`.
    fixed |= {"sync_batchnorm", "reload_dataloaders_every_n_epochs", "inference_mode"}
    assert sorted([*ours, *elsewhere, *fixed]) == sorted(inspect.signature(lightning.Trainer).parameters)
    do_run(tmp_path, "stage=embedding", *LOOK, "trainer.precision=bf16-mixed", "trainer.profiler=simple")
    rows = [Concept.load(run / "stages/embedding/concept").rows for run in (tmp_path, finished_run)]
    assert not torch.equal(*rows) and torch.allclose(*rows, atol=0.05)
