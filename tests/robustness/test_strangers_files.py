"""Files from others: bounded size, depth and time; no reference is resolved; errors of one line."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_artefacts import one_sentence

from personalar.config.model_config import ProtocolConfig
from personalar.core.files import LARGEST_JSON
from personalar.core.png import read_png
from personalar.core.run_folder import RunFolder
from personalar.models.chameleon.model_files import open_folder, read_layout
from personalar.models.chameleon.vq_checkpoint import load_vq
from personalar.reports.comparison_page import compare_folders
from personalar.reports.comparison_table import as_markdown
from personalar.reports.run_page import write_report
from personalar.runs.personalize import is_finished
from personalar.scoring.image_processor import ImagePreprocessor
from personalar.scoring.score_file import read_scores

JUNK = [None, 1e300, "x", [1], {"x": {"y": []}}]
QUICK = 5.0  # of processor time, which neighbours do not take
"""Seconds within which a file must be read or rejected; a hostile one took 40."""


def tells(work: Callable[[], Any], say: str = "") -> bool:
    """Run the block: it must succeed or raise an error of one line, in time; return True if it succeeds."""
    started, done = time.process_time(), True
    try:
        work()
    except (ValueError, FileNotFoundError) as error:
        one_sentence(error)
        assert say in str(error)
        done = False
    assert time.process_time() - started < QUICK
    return done


def changed(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of nested values with one of them replaced."""
    if not path:
        return value
    items = dict(record) if isinstance(record, dict) else dict(enumerate(record))
    items[path[0]] = changed(items[path[0]], path[1:], value)
    return items if isinstance(record, dict) else list(items.values())


def places(record: Any, depth: int = 3) -> list[tuple[Any, ...]]:
    """Yield the paths of all values in nested ones."""
    found: list[tuple[Any, ...]] = [()]
    if depth and isinstance(record, dict):
        found += [(key, *rest) for key, value in record.items() for rest in places(value, depth - 1)]
    return found


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_any_value_anywhere_in_run_json(
    junk: object, finished_run: Path, copied, tmp_path: Path, record_property
) -> None:
    from conftest_run import compose_config

    run_dir, config = copied(finished_run), compose_config("+subject=cat")
    for path in (run_dir / "images").rglob("*.png"):  # a page of pictures takes long
        path.unlink()
    record = json.loads((run_dir / "run.json").read_text())
    at = [
        place for place in places(record) if place[:1] not in (("settings",), ("versions",)) or len(place) < 3
    ]
    record_property("inputs", len(at))
    for place in at:
        (run_dir / "run.json").write_text(json.dumps(changed(record, place, junk)))
        tells(lambda: is_finished(config, RunFolder(run_dir)))
        tells(lambda: compare_folders([run_dir], tmp_path / "out"))
        tells(lambda: write_report(run_dir))


def test_any_value_anywhere_in_a_line_of_scores(
    finished_run: Path, copied, tmp_path: Path, record_property
) -> None:
    run_dir = copied(finished_run)
    shutil.rmtree(run_dir / "images")
    lines = (run_dir / "scores.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    record_property("inputs", len(JUNK) * len(places(record)))
    for junk in JUNK:
        for place in places(record):
            text = json.dumps(changed(record, place, junk))
            (run_dir / "scores.jsonl").write_text("\n".join([text, *lines[1:]]))
            tells(lambda: compare_folders([run_dir], tmp_path / "out"))
    for text in ("[" * 99_000, "[" * 200_000, "\0", "é" * 9):
        (run_dir / "scores.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="line 1: not a score"):
            read_scores(run_dir / "scores.jsonl")


@pytest.mark.parametrize("file", ["base/config.json", "vq/config.json", "protocol.json"])
def test_any_value_anywhere_in_a_model_folder(
    file: str, tiny_model_dir: Path, tmp_path: Path, record_property
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    record = json.loads((folder / file).read_text())
    at = [place for place in places(record, 2) if place[:1] != ("vocabulary_map",) or len(place) < 2]
    record_property("inputs", 6 * len(at))
    for junk in [None, -1, 1e300, 2**70, "9" * 99, [1]]:
        for place in at:
            (folder / file).write_text(json.dumps(changed(record, place, junk)))
            readable = tells(lambda: open_folder(folder).shape(images=1))
            if readable or not place:  # the same numbers are refused in the same way
                tells(lambda: open_folder(folder).load(dtype=torch.float32, device="cpu"))


ODD = {
    "deep": "[" * 10**6,
    "deep objects": '{"a":' * 10**5,
    "a long number": "9" * 10**6,
    "another": '{"a": 1' + "0" * 10**5 + "}",
    "zero": "\0",
    "empty": "",
    "a mark": "\ufeff{}",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_deep_and_odd_json(
    text: str, tiny_model_dir: Path, finished_run: Path, copied, tmp_path: Path
) -> None:
    folder, run_dir = Path(shutil.copytree(tiny_model_dir, tmp_path / "model")), copied(finished_run)
    for path in (folder / "base" / "config.json", folder / "protocol.json", run_dir / "run.json"):
        path.write_text(text)
    tells(lambda: open_folder(folder))
    tells(lambda: open_folder(folder, layout=ProtocolConfig()).shape(images=1))
    tells(lambda: RunFolder(run_dir))
    tells(lambda: compare_folders([run_dir], tmp_path / "out"))
    (tmp_path / "preprocessor_config.json").write_text(text)
    tells(lambda: ImagePreprocessor.from_folder(tmp_path))


def test_json_that_is_too_large(finished_run: Path, copied, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder, run_dir = Path(shutil.copytree(tiny_model_dir, tmp_path / "model")), copied(finished_run)
    for path in (folder / "protocol.json", run_dir / "run.json"):
        with path.open("r+b") as stream:
            stream.truncate(LARGEST_JSON + 1)
    for work in (lambda: open_folder(folder), lambda: RunFolder(run_dir)):
        with pytest.raises(ValueError, match="17 MB, allowed: 16"):
            work()


LARGE = {"num_hidden_layers": 10**9, "vocab_size": 10**12, "hidden_size": 32 * 10**6}


@pytest.mark.parametrize("name", LARGE)
def test_numbers_that_no_model_has(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """10^9 layers took 40 s."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: LARGE[name]}))
    with pytest.raises(ValueError, match=f"config.json: {name}={LARGE[name]} is out of range; allowed: 1 to"):
        open_folder(folder).shape(images=1)
    path = folder / "vq" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_multiplier": [1] * 10**5}))
    with pytest.raises(ValueError, match="100000 values of channel_multiplier; allowed: 16"):
        from personalar.models.chameleon.vq_checkpoint import vq_config

        vq_config(folder / "vq")


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("base", {"rope_theta": "abc"}),
        ("base", {"rope_scaling": "x"}),
        ("vq", {"channel_multiplier": []}),
        ("vq", {"channel_multiplier": ["a"]}),
    ],
)
def test_an_error_in_a_config_names_the_file(
    file: str, value: dict, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    path = folder / file / "config.json"
    config = {name: old for name, old in json.loads(path.read_text()).items() if not name.startswith("rope")}
    path.write_text(json.dumps(config | value))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}") as stopped:
        open_folder(folder).shape(images=1)
    assert str(stopped.value).count("config.json") == 1


def test_nothing_in_a_layout_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file from others must not read environment variables."""
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    path = tmp_path / "protocol.json"
    for secret in ("${oc.env:SECRET_KEY}", "${oc.env:SECRET_KEY}{prompt}", "${ids}"):
        for name in ("prompt_template", "buckets", "resolution"):
            path.write_text(json.dumps({name: secret}))
            with pytest.raises(ValueError) as stopped:
                read_layout(path)
            assert "hunter2" not in str(stopped.value)
    path.write_text(json.dumps({"known_words": ["${oc.env:SECRET_KEY}"]}))
    assert read_layout(path).known_words == ["${oc.env:SECRET_KEY}"]
    path.write_text(json.dumps({"resolution": 65536, "grid_px": 1}))
    tells(lambda: read_layout(path), "allowed: up to 256 times layout.grid_px")


@pytest.mark.parametrize("data", [b"", b"\0" * 99, b"PK\3\4" + bytes(99), b"\x80\2}q\0.", b"\x80\2K\1."])
def test_an_image_tokenizer_that_is_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vqgan.ckpt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"vqgan\.ckpt (cannot be read|contains no)") as stopped:
        load_vq(tmp_path, device=torch.device("cpu"))
    one_sentence(stopped.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("packed", [True, False])
def test_a_picture_full_of_text(packed: bool, finished_run: Path, copied, tmp_path: Path) -> None:
    """70 MB instead of a prompt, in a run folder that is compared."""
    run_dir = copied(finished_run)
    path = min((run_dir / "images" / "transformer").glob("subject_*.png"))
    text, whole = bytes(70 << 20), path.read_bytes()
    bomb = (
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(text)) if packed else chunk(b"tEXt", b"prompt\0" + text)
    )
    path.write_bytes(whole[:33] + bomb + whole[33:])
    with pytest.raises(ValueError, match="is a damaged picture") as stopped:
        read_png(path)
    one_sentence(stopped.value)
    tells(lambda: compare_folders([run_dir], tmp_path / "out"), "is a damaged picture")


def test_names_in_a_comparison_are_text(finished_run: Path, tmp_path: Path) -> None:
    names = ["a|b<script>", "[x](http://y)", "`c` *d*\n# e", "\x1b[31mred"]
    for name in names:
        shutil.copytree(finished_run, tmp_path / "runs" / name.replace("/", "_"))
    compare_folders([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(names)
    assert {line.replace("\\|", "").count("|") for line in table[2:]} == {table[0].count("|")}
    assert "<script>" not in text.replace("\\<script\\>", "") and "\x1b" not in text
    assert as_markdown("two_stage, LoRA (1)") == "two_stage, LoRA (1)"  # ordinary names stay as they are
