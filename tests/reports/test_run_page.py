"""report.html: one file, everything in it, nothing fetched; written from whatever is left of a folder."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from synthetic_run import PROMPTS, make_run

from personalar.config import fields as arguments
from personalar.core.png import save_png
from personalar.reports.run_page import (
    next_commands,
    picture_uri,
    read_losses,
    read_samples,
    write_report,
)

VOID = {"meta", "img"}


class Balance(html.parser.HTMLParser):
    """Fails on a tag that is closed out of order; collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.sources += [found[name] for name in ("src", "href") if found.get(name)]
        if tag == "img" and "src" in found:
            self.images += 1
            assert found["loading"] == "lazy" and found["alt"]

    def handle_startendtag(self, tag, attrs):
        """Count nothing: `<line/>` opens and closes."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text: str) -> Balance:
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = make_run(tmp_path_factory.mktemp("reports") / "run")
    return run_dir, write_report(run_dir).read_text(encoding="utf-8")


def test_one_file_that_fetches_nothing(finished):
    run_dir, text = finished
    page = parse(text)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"url\(|@import|<link|https?://", text)
    # 5 references; base, embedding, transformer for each prompt; class prompts likewise; the text description
    assert page.images == 5 + 3 * len(PROMPTS) + 3 * len(PROMPTS) + len(PROMPTS)
    assert (run_dir / "summary.json").is_file()


def test_it_shows_what_was_asked_for(finished):
    _, text = finished
    for wanted in (
        "Base model",
        "After stage 1",
        "After stage 2",
        "Ceiling: unseen views",
        "Floor: others of the class",
        "Best text description",
        "a ⟨cat⟩ in the snow",
        "a [V] cat in the snow",
        "Training loss, after stage 1",
        "<h3>After stage 2 · weights trained</h3>",
        "python -m personalar.sample",
        "python -m personalar.run +subject=cat stage=both",
        "noun: cat",
        "2.13.0",
        "package://nano/clip#0123456789ab",
        "0:03:35",
        "1.3 GB",
    ):
        assert wanted in text, wanted


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("scores.jsonl", "Ceiling: unseen views"),
        ("logs", "<svg"),
        ("references", "photos that the model was trained on"),
        (".hydra", "Configuration"),
        ("concept", "concept.json</summary>"),
        ("images", "Before, between and after"),
    ],
)
def test_what_is_missing_is_left_out(missing, gone, finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    target = run_dir / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    text = write_report(run_dir).read_text(encoding="utf-8")
    parse(text)
    assert gone in finished[1] and gone not in text


def test_an_almost_empty_run_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"format_version": 1}')
    parse(write_report(tmp_path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("stages", [("base",), ("base", "embedding")])
def test_runs_that_stop_early(stages, tmp_path):
    text = write_report(make_run(tmp_path / "run", stages=stages)).read_text(encoding="utf-8")
    parse(text)
    following = {1: "Continue with stage 1", 2: "Continue with stage 2"}
    assert "After stage 2" not in text and following[len(stages)] in text


def test_the_next_stage_keeps_the_other_settings(tmp_path):
    command = "python -m personalar.run subject.path=stage=base/x stage=embedding overwrite=true seed=1"
    run = {"command": command, "settings": {"method": {"stages": {"embedding": {}, "transformer": {}}}}}
    found = {each["why"]: each["text"] for each in next_commands(tmp_path, run, ["base", "embedding"])}
    assert found["Continue with stage 2"] == (
        "python -m personalar.run subject.path=stage=base/x seed=1 'stage.run=[transformer]'"
    )
    run["command"] = "python 'without an end"
    assert len(next_commands(tmp_path, run, ["base"])) == 2


def test_without_a_class_name_the_command_has_none(tmp_path):
    run = {"noun": "cat", "settings": {"model": {"recipe": {"data": {"class_name": False}}}}}
    assert "a photo of [V] in the snow" in next_commands(tmp_path, run, [])[0]["text"]


def test_a_method_of_one_stage_is_not_told_to_go_on(tmp_path):
    run_dir = make_run(tmp_path / "run", stages=("base", "embedding"))
    run = json.loads((run_dir / "run.json").read_text())
    for method, told in (({"embedding": {}}, False), ({"embedding": {}, "transformer": {}}, True)):
        settings = {"method": {"stages": method}}
        (run_dir / "run.json").write_text(json.dumps({**run, "settings": settings}))
        assert ("Continue with stage 2" in write_report(run_dir).read_text(encoding="utf-8")) == told


def test_names_and_prompts_cannot_break_the_page(tmp_path):
    text = write_report(make_run(tmp_path / "run", noun="<script>alert(1)</script>")).read_text(
        encoding="utf-8"
    )
    parse(text)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


def test_several_seeds_are_told_apart(tmp_path):
    text = write_report(make_run(tmp_path / "run", seeds=(0, 3))).read_text(encoding="utf-8")
    assert "<small>seed 3</small>" in text


def test_foreign_and_broken_pictures_are_named_not_fatal(tmp_path):
    run_dir = make_run(tmp_path / "run")
    save_png(Image.new("RGB", (4, 4)), run_dir / "images" / "base" / "photo.png")
    broken = "subject_a-cat_0123ab_s7.png"
    (run_dir / "images" / "base" / broken).write_bytes(b"\x89PNG")
    samples, unreadable = read_samples(run_dir, json.loads((run_dir / "run.json").read_text()))
    assert unreadable == [f"images/base/{broken}"]  # the photo is the user's own
    assert len(samples) == 6 * len(PROMPTS)
    assert f"images/base/{broken}" in write_report(run_dir).read_text(encoding="utf-8")


def test_large_pictures_are_scaled_down(tmp_path):
    small = save_png(Image.new("RGB", (96, 96)), tmp_path / "small.png")
    large = save_png(Image.effect_noise((1024, 700), 50).convert("RGB"), tmp_path / "large.png")
    assert picture_uri(small).startswith("data:image/png;base64,")
    assert picture_uri(large).startswith("data:image/jpeg;base64,")
    assert len(picture_uri(large)) < large.stat().st_size / 4


def test_resumed_logs_are_one_curve(tmp_path):
    for part, rows in (("part_0", ["1,2.0", "2,1.9", "3,nan"]), ("part_1", ["2,1.8", "4,1.5"])):
        folder = tmp_path / "logs" / "embedding" / part
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss", *rows]))
    assert read_losses(tmp_path, "embedding") == [(1.0, 2.0), (2.0, 1.8), (4.0, 1.5)]
    assert read_losses(tmp_path, "transformer") == []


def test_the_command_of_a_job_of_a_sweep_can_be_typed(tmp_path: Path) -> None:
    """Its folder is named after what was overridden, with signs that Hydra must not read."""
    folder = tmp_path / "+subject=cat,seed=0"
    words = shlex.split(next_commands(folder, {"noun": "cat"}, [])[0]["text"])
    override = arguments.parse(words[3])
    assert override is not None and override.value() == str(folder / "concept")
