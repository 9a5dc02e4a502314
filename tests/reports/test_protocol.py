"""The protocol of a table: what was drawn, which scorers, what the means are over."""

from __future__ import annotations

from pathlib import Path

from synthetic_run import make_run

from personalar.reports.comparison_page import compare_folders
from personalar.reports.protocol import protocol
from personalar.reports.run_page import write_report
from personalar.reports.summary import result_lines

SCORERS = {
    "clip": "openai/clip@3d#0123", "clip_preprocessing": "shorter side 224", "clip_text": "class",
    "dino": "facebook/dino#4567", "dino_preprocessing": "centre crop 224x224",
}  # fmt: skip


def line(template: str, seed: int, kind: str = "subject") -> dict:
    return {"kind": kind, "template": template, "prompt": template, "seed": seed, "scorer": "dino"}


def test_everything_that_a_reviewer_asks_for_is_in_it() -> None:
    lines = [line("a {}", 0), line("a {}", 1), line("a {} in the snow", 0), line("x", 7, kind="prior")]
    assert protocol([{"scorers": SCORERS}], lines) == (
        "Protocol: 2 prompts, 1 to 2 pictures for each and stage (seeds 0, 1); CLIP openai/clip@3d#0123; "
        "CLIP preprocessing shorter side 224; CLIP-T reads the prompt with the class for [V]; DINO "
        "facebook/dino#4567; DINO preprocessing centre crop 224x224; scored: the whole picture; means over "
        "references, then pictures, then subjects"
    )
    more = {"scorers": {**SCORERS, "clip_text": "prompt", "subject_crop": "{}", "vlm": "{}"}}
    found = protocol([{"scorers": SCORERS}, more], lines)
    assert "CLIP-T reads the prompt with the class for [V] or the prompt as it is" in found
    assert "other scorers: subject_crop, vlm" in found and "the subject's box where a column says so" in found
    assert protocol([{"scorers": SCORERS}], []) == ""  # nothing was scored


def test_it_is_under_every_table(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", seeds=(0, 3))
    said = "6 prompts, 2 pictures for each and stage (seeds 0, 3); CLIP package://nano/clip#0123456789ab"
    assert said in write_report(run_dir).read_text(encoding="utf-8")
    assert any(said in text for text in result_lines(run_dir))
    compare_folders([run_dir], tmp_path / "out")
    assert said in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert said.replace("#", "\\#") in markdown
    silent = make_run(tmp_path / "silent", scored=False)
    compare_folders([silent], tmp_path / "silent out")
    pages = [write_report(silent), *(tmp_path / "silent out").glob("comparison.*d")]
    assert len(pages) == 2 and not any("scored:" in page.read_text(encoding="utf-8") for page in pages)
    assert not any("scored:" in text for text in result_lines(silent))
