"""What a first session on a GPU will measure: every variant of the compiled step draws plain's codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tape import Tape
from test_sampling import GRID, TEXTS, prompts

from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend

FOLDER = Path(__file__).parents[2] / "experiments" / "decode_h200"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this copy of the source has no experiments/")
if FOLDER.is_dir():
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    import changes
    import turns
    import variants
    from changes import CHANGES, Changed

SAMPLING = {"cfg_scale": 3.0, "top_k": 20}
NAMES = ["product", "cudnn", "flex", "bmm", "sums", "reduce", "keep", "mask", "kth", "bucket64", "tuned"]


def taped(self: Changed, run: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
    """Capture as a GPU does: changes are in force while a step is captured, and not when it is repeated."""
    with self.in_force():
        run()
        rewind()
        with Tape() as tape:
            run()
    rewind()
    return tape.replay


@pytest.mark.parametrize("names", [*(name for name in NAMES if name != "flex"), "reduce+keep+mask"])
def test_a_captured_variant_draws_plains_codes(
    tiny_backend: ChameleonBackend, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without flex, which PyTorch computes by an operator of another kind; the next test has it as Python."""
    monkeypatch.setattr(Changed, "capture", taped)
    ids, seeds = prompts(tiny_backend, *TEXTS[:2]), [3, 5]
    plain = PlainDecoder(**SAMPLING)(tiny_backend, ids, GRID, seeds)
    assert torch.equal(Changed(names, as_python=True, **SAMPLING)(tiny_backend, ids, GRID, seeds), plain)


def test_every_variant_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the page, at tiny size: the codes are plain's, of pictures and of single steps."""
    monkeypatch.setattr(turns, "DRAWS", 24)
    arguments = ["--config", "tiny", "--device", "cpu", "--batch", "1,3", "--rounds", "1", "--repeats", "1"]
    names = ["product", "reduce", "flex+reduce+keep"]
    record = variants.main([*arguments, "--variants", ",".join(names), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "variants.json").read_text()) == json.loads(json.dumps(record))
    rows = {(row["variant"], row["batch"]): row for row in record["rows"]}
    assert len(rows) == 2 * (1 + len(names))
    for (name, batch), row in rows.items():
        if batch == 3 and "reduce" in name:
            assert row["failed"] == "changes nothing for 6 rows"
        else:
            assert row["equal_draws"] == 1.0 and row["draws"] in (18, 24)
            assert 0 < row["ms_p10"] <= row["ms_per_step"] <= row["ms_p90"]
            assert len(row["ms_at_places"]) == 3 and row["roofline_fraction"] > 0
    assert set(record["equal_codes"].values()) == {1.0}
    table = (tmp_path / "variants.md").read_text()
    assert table.count("\n") == 2 + len(rows) and "| reduce | 3 | changes nothing for 6 rows |" in table


def test_each_change_is_in_force_and_gone_afterwards(tiny_backend: ChameleonBackend) -> None:
    """Equal codes would say nothing of a change that never acted."""
    owners = [(changes.network, "attend"), (changes.nn.Linear, "forward"), (changes.plain.Step, "keep")]
    owners += [
        (changes.sampling, "keep_top_k"),
        (changes.plain, "gumbel_noise"),
        (changes.network.MLP, "forward"),
    ]
    acts = {"flex": {0}, "bmm": {0}, "sums": {0}, "mask": {0}, "reduce": {1, 5}, "keep": {2, 4}, "kth": {3}}
    before = [getattr(owner, name) for owner, name in owners]
    for name in NAMES:
        with Changed(name, as_python=True).in_force():
            changed = {i for i, (owner, n) in enumerate(owners) if getattr(owner, n) is not before[i]}
        assert changed == acts.get(name, set()), name
    assert [getattr(owner, name) for owner, name in owners] == before
    assert Changed("bucket64", as_python=True).bucket == 64 and set(NAMES) == set(CHANGES)


def test_what_fails_or_comes_too_late_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    arguments = ["--config", "tiny", "--device", "cpu", "--batch", "1", "--rounds", "1", "--repeats", "1"]
    with monkeypatch.context() as patch:
        patch.setitem(CHANGES, "bmm", changes.Change(what="", apply=changes.swap("attend", fails)))
        record = variants.main([*arguments, "--variants", "bmm,kth"])
    assert [row.get("failed") for row in record["rows"]] == [None, "out of memory", None]
    assert record["equal_codes"] == {"bmm": "out of memory", "kth": 1.0}
    late = variants.main([*arguments, "--variants", "kth", "--seconds", "0"])
    assert {row["failed"] for row in late["rows"]} == {"no time left"}
    assert late["equal_codes"] == {"kth": "no time left"}
    monkeypatch.setattr(turns.Place, "__init__", fails)
    without = variants.main([*arguments, "--variants", "kth"])
    assert [row["failed"] for row in without["rows"]] == ["out of memory"] * 2
    with pytest.raises(ValueError, match=r"variant flex\+keap has keap; allowed: product, cudnn"):
        Changed("flex+keap", as_python=True)
