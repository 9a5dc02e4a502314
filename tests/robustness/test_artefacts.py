"""Concepts, checkpoints and YAML from others: an error, never code, never a write elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from conftest_run import compose_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from test_concept import make
from test_exchange import adapter, export

from personalar.concepts.adapters.lora import merge_lora
from personalar.concepts.concept import Concept
from personalar.config.model_config import ProtocolConfig
from personalar.core.own_files import RECORD_FILE, ROWS_FILE, WEIGHTS_FILE
from personalar.core.run_folder import RunFolder
from personalar.generation.sample_files import write_samples
from personalar.models.chameleon.model_files import read_layout
from personalar.training.checkpoint import AtomicCheckpointIO, find_checkpoint

REFUSED = (ValueError, FileNotFoundError)
SLOW_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A concept folder with all kinds of files."""
    return make(lora=adapter()).save(tmp_path / "concept")


def rewrite(folder: Path, **changes: object) -> None:
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | changes))


def rehash(folder: Path) -> None:
    """Recompute the hashes of changed files, as an attacker would."""
    record = json.loads((folder / RECORD_FILE).read_text())
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in record["files"]}
    rewrite(folder, files=files)


def one_sentence(error: BaseException) -> None:
    assert isinstance(error, REFUSED), repr(error)
    assert 10 < len(str(error)) < 900 and str(error).count("\n") < 3, str(error)


def refused(folder: Path) -> str:
    with pytest.raises(REFUSED) as stopped:
        Concept.load(folder)
    one_sentence(stopped.value)
    return str(stopped.value)


@SLOW_FIXTURE
@given(name=st.sampled_from([RECORD_FILE, ROWS_FILE, WEIGHTS_FILE, "lora/adapter_model.safetensors"]), part=st.floats(0, 0.999))  # fmt: skip  # noqa: E501
def test_truncated_anywhere(whole: Path, name: str, part: float) -> None:
    data = (whole / name).read_bytes()
    try:
        (whole / name).write_bytes(data[: int(part * len(data))])
        refused(whole)
    finally:
        (whole / name).write_bytes(data)


@SLOW_FIXTURE
@given(name=st.sampled_from([ROWS_FILE, WEIGHTS_FILE, "lora/adapter_config.json"]), part=st.floats(0, 0.999), bit=st.integers(0, 7))  # fmt: skip  # noqa: E501
def test_a_flipped_bit_anywhere(whole: Path, name: str, part: float, bit: int) -> None:
    data = (whole / name).read_bytes()
    changed = bytearray(data)
    changed[int(part * len(data))] ^= 1 << bit
    try:
        (whole / name).write_bytes(changed)
        assert "truncated or was changed" in refused(whole)
    finally:
        (whole / name).write_bytes(data)


@SLOW_FIXTURE
@given(part=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_changed_byte_with_its_hash(whole: Path, part: float, byte: int) -> None:
    """Without the help of hashes: it either loads as numbers, or is an error."""
    kept = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    path = whole / ROWS_FILE
    changed = bytearray(kept[path])
    changed[int(part * len(changed))] = byte
    try:
        path.write_bytes(changed)
        rehash(whole)
        assert Concept.load(whole).rows.isfinite().all()
    except REFUSED as error:
        one_sentence(error)
    finally:
        for file, data in kept.items():
            file.write_bytes(data)


@SLOW_FIXTURE
@given(data=st.data())
def test_any_value_for_any_fact(whole: Path, data: st.DataObject) -> None:
    kept = (whole / RECORD_FILE).read_bytes()
    record = json.loads(kept)
    fact = data.draw(st.sampled_from(sorted(record)))
    if data.draw(st.booleans()) and isinstance(record[fact], dict) and record[fact]:
        record[fact][data.draw(st.sampled_from(sorted(record[fact])))] = data.draw(JSON)
    else:
        record[fact] = data.draw(JSON)
    try:
        (whole / RECORD_FILE).write_text(json.dumps(record))
        concept = Concept.load(whole)
        concept.check_base(name="nano", fingerprint="abc")
    except REFUSED as error:
        one_sentence(error)
    finally:
        (whole / RECORD_FILE).write_bytes(kept)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"format_version": 1}', "\xff\xfe", "{}" * 9]
)
def test_a_record_that_is_none(whole: Path, text: str) -> None:
    (whole / RECORD_FILE).write_text(text, encoding="latin-1")
    refused(whole)


@pytest.mark.parametrize(
    "config",
    [
        {"model": []}, {"model": {"path": 3}}, {"model": {"hub": {"repo": ["a/b"]}}}, {"method": "paper"},
        {"model": {"recipe": {"data": {"templates": "a {}"}}}}, {"model": {"recipe": {"data": None}}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_the_card_shows(whole: Path, config: dict[str, Any]) -> None:
    rewrite(whole, config=config)
    assert "config is missing, or is not as personalar writes it" in refused(whole)


FOREIGN = [
    "/etc/passwd",
    "../../x",
    "lora/../../x",
    "..",
    ".",
    "",
    "concept.json",
    "x.pt",
    "lora\\..\\x",
    "\0",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_names(whole: Path, name: str) -> None:
    record = json.loads((whole / RECORD_FILE).read_text())
    rewrite(whole, files={**record["files"], name: "0" * 64})
    assert "which is not a file of a concept" in refused(whole)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ({"[V]": 80, "a": 81}, r"identifier contains 'a'; allowed: \[V\]"),
        ({"[V]": 80, "": 81}, "identifier contains ''"),
        ({"[V]": 80, "[S1]": 80}, "two names to the same id"),
        ({"[V]": -1, "[S1]": 81}, "integers from 0"),
        ({"[V]": True, "[S1]": 81}, "identifier is missing, or is not as personalar writes it"),
        ({"[S1]": 81}, "identifier is missing"),
        ([], "identifier is missing"),
    ],
)
def test_names_that_would_change_prompts(whole: Path, identifier: object, message: str) -> None:
    rewrite(whole, identifier=identifier)
    with pytest.raises(ValueError, match=message):
        Concept.load(whole)


@pytest.mark.parametrize("index", [0, 3, 70, 10**9])
def test_ids_that_mean_something_already(tiny_backend, index: int) -> None:
    """An embedding for begin-of-image or for a word would change the structure of the sequence."""
    with pytest.raises(ValueError, match=r"uses the ids .*does not reserve for learned tokens"):
        make(weights={}, tokens={"[V]": index, "[S1]": 81}).apply(tiny_backend)


ROWS = {
    "not a number": (torch.full((1, 32), float("nan")), "contains NaN or infinity; the training diverged"),
    "whole numbers": (torch.ones(1, 32, dtype=torch.int64), ""),
    "three dimensions": (torch.ones(1, 32, 1), ""),
    "other widths": (torch.ones(1, 31), ""),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_of_another_kind(whole: Path, what: str) -> None:
    rows, message = ROWS[what]
    (whole / ROWS_FILE).write_bytes(save({"[V]": rows, "[S1]": torch.ones(1, 32)}))
    rehash(whole)
    assert message in refused(whole)


@pytest.mark.parametrize("name", [ROWS_FILE, WEIGHTS_FILE, "lora/adapter_model.safetensors"])
def test_a_pickle_in_the_place_of_tensors(
    tiny_backend, whole: Path, tmp_path: Path, name: str, record_property
) -> None:
    record_property("inputs", 2)
    bomb = tmp_path / "exploded"
    for data in (pickle.dumps(Bomb(bomb)), torch_pickle(Bomb(bomb), tmp_path)):
        (whole / name).write_bytes(data)
        rehash(whole)
        with pytest.raises(ValueError, match="not a safetensors file"):
            concept = Concept.load(whole)
            merge_lora(tiny_backend.transformer, concept.lora)
        assert not bomb.exists()


def torch_pickle(value: object, folder: Path) -> bytes:
    torch.save(value, folder / "pickled")
    return (folder / "pickled").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 10**12}, {"r": 0}, {"r": "2"}, {"r": None}, {"lora_alpha": "x"}, {"lora_alpha": float("inf")},
        {"r": True}, {"lora_alpha": 10**400}, {"r": 10**400, "use_rslora": True}, {"use_rslora": "yes"},
        {"peft_type": "LOHA"}, {"use_dora": True}, {"bias": "all"},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_an_adapter(tiny_backend, changes: dict[str, object]) -> None:
    files = adapter()
    config = json.loads(files["lora/adapter_config.json"])
    files["lora/adapter_config.json"] = json.dumps(config | changes).encode()
    with pytest.raises(ValueError, match="adapter") as stopped:
        merge_lora(tiny_backend.transformer, files)
    one_sentence(stopped.value)


def test_an_adapter_of_nan(tiny_backend) -> None:
    from safetensors.torch import load

    files = adapter()
    tensors = load(files["lora/adapter_model.safetensors"])
    tensors[min(tensors)].fill_(float("nan"))
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        merge_lora(tiny_backend.transformer, files | {"lora/adapter_model.safetensors": save(tensors)})


def test_links_are_read_but_never_written_through(whole: Path, tmp_path: Path) -> None:
    blobs = Path(shutil.copytree(whole, tmp_path / "blobs"))
    for path in [path for path in whole.rglob("*") if path.is_file()]:  # as the hub's cache has it
        path.unlink()
        path.symlink_to(blobs / path.relative_to(whole))
    concept = Concept.load(whole)
    before = {path: path.read_bytes() for path in blobs.rglob("*") if path.is_file()}
    make(rows=torch.zeros(2, 32)).save(whole)
    assert {path: path.read_bytes() for path in blobs.rglob("*") if path.is_file()} == before
    outside = tmp_path / "outside"
    outside.mkdir()
    for part in ("lora", "adapters"):
        (tmp_path / f"trap of {part}").mkdir()
        (tmp_path / f"trap of {part}" / part).symlink_to(outside)
        with pytest.raises(
            ValueError, match=rf"{part} is a symbolic link, .* inside its folder only: remove"
        ):
            replace(concept, adapters={"mine": {"a": torch.zeros(2)}}).save(tmp_path / f"trap of {part}")
    assert not list(outside.iterdir())
    (whole / RECORD_FILE).unlink()
    (whole / RECORD_FILE).symlink_to("/dev/zero")
    refused(whole)
    os.remove(whole / RECORD_FILE)
    os.mkfifo(whole / RECORD_FILE)  # reading it would wait for ever
    refused(whole)


@pytest.mark.parametrize("command", ["sample", "export"])
def test_a_target_of_a_stranger_is_a_plain_value(
    command: str, finished_run: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a concept, its run folder and its model folder, wherever these may contain additional keys."""
    bomb = {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'exploded'}"]}
    run, model = (
        shutil.copytree(finished_run, tmp_path / "run"),
        shutil.copytree(tiny_model_dir, tmp_path / "m"),
    )
    (run / ".hydra").mkdir(exist_ok=True)
    (run / ".hydra" / "config.yaml").write_text(f"decoder: {json.dumps(bomb)}\n")
    changed = {"decoder": bomb, "model": {"sampling": bomb, "recipe": bomb}, **bomb}
    rewrite(run / "concept", config=changed)
    for path in (run / "run.json", model / "base" / "config.json", model / "vq" / "config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": bomb, **bomb}))
    built: list[str] = []
    make_decoder = hydra.utils.instantiate
    monkeypatch.setattr(
        hydra.utils,
        "instantiate",
        lambda node, **k: built.append(node["_target_"]) or make_decoder(node, **k),
    )
    words = [f"concept={run}", f"model.path={model}", f"out={tmp_path / 'out'}"]
    if command == "sample":
        assert write_samples(compose_config(*words, "prompts=['a [V] cat']", name="sample"))
        # The decoder and the adapters of conf/sample.yaml.
        assert {name.rpartition(".")[2] for name in built} == {"PlainDecoder", "ContextVectors"}
    else:
        assert export(run / "concept", tmp_path / "out", f"model.path={model}") and not built
    assert Concept.load(run / "concept").config == changed and RunFolder(run).record["decoder"] == bomb
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "truncated", "text", "empty"])
def test_a_checkpoint_that_would_run_code(tmp_path: Path, kind: str) -> None:
    bomb, path = tmp_path / "exploded", tmp_path / "step_000002.ckpt"
    good = torch_pickle({"state_dict": {"x": torch.ones(3)}}, tmp_path)
    path.write_bytes({"pickle": pickle.dumps(Bomb(bomb)), "torch": torch_pickle(Bomb(bomb), tmp_path),
                      "truncated": good[:-40], "text": b"x" * 99, "empty": b""}[kind])  # fmt: skip
    for asked in ({}, {"weights_only": False}):
        with pytest.raises(ValueError, match="cannot be read ") as stopped:
            AtomicCheckpointIO().load_checkpoint(path, **asked)
        one_sentence(stopped.value)
    assert not bomb.exists()


@given(part=st.floats(0, 0.999), byte=st.integers(0, 255))
@SLOW_FIXTURE
def test_a_changed_byte_in_a_checkpoint(tmp_path: Path, part: float, byte: int) -> None:
    path = tmp_path / "step_000002.ckpt"
    changed = bytearray(torch_pickle({"state_dict": {"x": torch.ones(300)}, "step": 2}, tmp_path))
    changed[int(part * len(changed))] = byte
    path.write_bytes(changed)
    try:
        AtomicCheckpointIO().load_checkpoint(path)
    except REFUSED as error:
        one_sentence(error)


@pytest.mark.parametrize("file", ["../../../x.ckpt", "/etc/passwd", "step_1.ckpt", "", "step_000002.ckpt/.."])
def test_a_record_that_names_a_checkpoint_elsewhere(tmp_path: Path, file: str) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"x")
    facts = {"step": 2, "world": 1, "strategy": "single"}
    folder.update_stage("embedding", checkpoint={"file": file, **facts})
    with pytest.raises(ValueError, match=r"outside of the run folder: restore it"):
        find_checkpoint(folder, "embedding", world=1, strategy="single")


@pytest.mark.parametrize("entry", [3, [], "x", {"file": 3}, {"file": "step_000002.ckpt"}])
def test_a_record_of_checkpoints_that_is_none(tmp_path: Path, entry: object) -> None:
    RunFolder(tmp_path).update_stage("embedding", checkpoint=entry)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(invalid value of 'stages'\)"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"stages": 3}', "[" * 100_000, '"x"'])
def test_a_run_record_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged .*choose another folder"):
        RunFolder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"grid_px": "x"}, {"grid_px": None}, {"ids": 3}, {"ids": {"a": "b"}}, {"buckets": 3}, {"resolution": -1},
     {"prompt_template": "{prompt.__class__}"}, {"prompt_template": "{prompt}{0}"},
     {"prompt_template": "{prompt}{secret}"}, {"prompt_template": "{prompt"}, {"loss": "image_tokens"}],
    ids=str,
)  # fmt: skip
def test_a_layout_of_a_stranger(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "protocol.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError) as stopped:
        read_layout(tmp_path / "protocol.json")
    one_sentence(stopped.value)
    (tmp_path / "protocol.json").write_text("{}")
    assert read_layout(tmp_path / "protocol.json") == ProtocolConfig()
