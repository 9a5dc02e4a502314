"""The hand-over folder: what goes in comes out, and what is damaged or foreign is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend

from personalar.concepts.concept import Concept
from personalar.core.files import base_fingerprint
from personalar.core.own_files import RECORD_FILE, ROWS_FILE, WEIGHTS_FILE

NAME = "model.layers.0.self_attn.q_proj.weight"


def make(width: int = 32, **changes) -> Concept:
    values = {
        "base": {"name": "nano", "fingerprint": "abc"},
        "subject": {"name": "cat", "noun": "cat", "fingerprint": "f"},
        "stage": "transformer",
        "tokens": {"[V]": 80, "[S1]": 81},
        "rows": torch.randn(2, width),
        "weights": {NAME: torch.randn(width, width)},
        "config": {"seed": 0},
    }
    return Concept(**(values | changes))


def test_round_trip_and_same_bytes_twice(tmp_path: Path) -> None:
    concept = make()
    concept.save(tmp_path / "a")
    loaded = Concept.load(tmp_path / "a")
    assert torch.equal(loaded.rows, concept.rows) and torch.equal(loaded.weights[NAME], concept.weights[NAME])
    assert (loaded.tokens, loaded.base, loaded.config) == (concept.tokens, concept.base, concept.config)
    loaded.save(tmp_path / "b")
    for name in (RECORD_FILE, ROWS_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_prompts_written_otherwise_are_refused() -> None:
    layout = {"prompt_template": "Draw: {prompt}", "grid_px": 16, "negative_prompt": "", "gone": 1}
    concept = make(config={"model": {"layout": layout}})
    concept.check_layout(layout | {"negative_prompt": "ugly", "resolution": 512})  # a choice of sampling
    with pytest.raises(ValueError, match=r"with model\.layout\.grid_px=16, but .* 32: give the same"):
        concept.check_layout(layout | {"grid_px": 32})


def test_saving_again_leaves_no_stale_weights(tmp_path: Path) -> None:
    make().save(tmp_path)
    make(weights={}).save(tmp_path)
    assert not (tmp_path / WEIGHTS_FILE).exists() and not Concept.load(tmp_path).weights


def test_rows_of_a_sharded_stage_are_trained_in_float32(tiny_model_dir: Path) -> None:
    concept = make(rows=torch.randn(2, 32).bfloat16(), weights={})  # as DeepSpeed has them
    rows = concept.apply(load_backend(tiny_model_dir)).rows
    assert rows.dtype == torch.float32 and torch.equal(rows, concept.rows.float())


def test_apply_changes_the_named_weights_only(tiny_model_dir: Path) -> None:
    backend = load_backend(tiny_model_dir)
    before = {name: value.clone() for name, value in backend.state_dict().items()}
    concept = make()
    identifier = concept.apply(backend)
    assert identifier.tokens == concept.tokens and torch.equal(identifier.rows, concept.rows)
    changed = [name for name, value in backend.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"transformer.{NAME}"]


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (
            make(weights={NAME: torch.ones(32, 32), "model.nothing": torch.zeros(1)}),
            "this base has no model.nothing of the shape",
        ),
        (make(weights={NAME: torch.zeros(3, 3)}), f"this base has no {NAME} of the shape"),
        (make(width=8, weights={}), "this base has no embeddings of the shape"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(
    tiny_model_dir: Path, concept: Concept, message: str
) -> None:
    backend = load_backend(tiny_model_dir)
    before = {name: value.clone() for name, value in backend.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        concept.apply(backend)
    assert all(torch.equal(value, before[name]) for name, value in backend.state_dict().items())


def test_another_base_is_refused() -> None:
    make().check_base(name="nano", fingerprint="abc")
    with pytest.raises(ValueError, match=r"learned on base 'nano'.*but 'other' is loaded"):
        make().check_base(name="other", fingerprint="xyz")


def test_no_concept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"concept.json is missing \(a finished run has it"):
        Concept.load(tmp_path)


def damage(folder: Path, what: str) -> None:
    record = json.loads((folder / RECORD_FILE).read_text())
    if what == "gone":
        (folder / WEIGHTS_FILE).unlink()
    elif what == "json":
        (folder / RECORD_FILE).write_text("{")
    elif what == "version":
        (folder / RECORD_FILE).write_text(json.dumps(record | {"format_version": 99}))
    elif what == "names":
        (folder / RECORD_FILE).write_text(json.dumps(record | {"identifier": {"[V]": 80}}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", "is missing: copy the complete concept folder"),
        ("json", "is damaged"),
        ("version", "has format_version 99, this version of personalar reads 2"),
        ("names", "but concept.json names"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, what: str, message: str) -> None:
    make().save(tmp_path)
    damage(tmp_path, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Concept.load(tmp_path)


def test_fingerprint_sees_every_weight_file(tmp_path: Path) -> None:
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    file.write_bytes(b"1" * (3 << 20))
    other.write_bytes(b"1")
    first = base_fingerprint([file])
    assert base_fingerprint([file, other]) != first == base_fingerprint([file])
    for place in (0, 3 << 19, (3 << 20) - 1):  # a base that differs in one row differs in the midst
        changed = bytearray(b"1" * (3 << 20))
        changed[place] = 2
        file.write_bytes(changed)
        assert base_fingerprint([file]) != first


def test_a_hubs_file_has_the_fingerprint_of_its_copy(tmp_path: Path) -> None:
    """Its cache keeps a file under its sha256, which spares reading 14 GB."""
    copy, content = tmp_path / "copy" / "model.safetensors", b"weights"
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    link = tmp_path / "snapshots" / "model.safetensors"
    for path in (copy, blob, link):
        path.parent.mkdir()
    copy.write_bytes(content)
    blob.write_bytes(content)
    link.symlink_to(blob)
    assert base_fingerprint([link]) == base_fingerprint([copy])
    blob.write_bytes(b"what the name says is believed")
    assert base_fingerprint([link]) == base_fingerprint([copy])
