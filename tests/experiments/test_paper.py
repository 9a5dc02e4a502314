"""The paper's tables: published rows beside ours, from the command as its page gives it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RUN_ALL = Path(__file__).parents[2] / "experiments" / "paper" / "run_all.py"


def write_comparison(folder: Path, *rows: str) -> None:
    """What `personalar.evaluate` leaves, as far as the tables read it."""
    folder.mkdir(parents=True)
    records = [
        {"row": row, "images": 17, "fidelity": 0.5 + k / 10, "dino": 0.6, "clip_i": 0.7, "clip_t": 0.3}
        for k, row in enumerate(rows)
    ]
    (folder / "comparison.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_every_published_row_meets_ours(tmp_path: Path) -> None:
    write_comparison(
        tmp_path / "main", "textual inversion (stage 1)", "two stages", "two stages, no class name"
    )
    write_comparison(tmp_path / "table3" / "full", "two stages")
    write_comparison(tmp_path / "table3" / "lora_r4_n2", "two stages, LoRA")
    words = ["--only-tables", "--ranks", "4", "16", "64", "--lora-subjects", "cat", "--", "-m"]
    done = subprocess.run(
        [sys.executable, str(RUN_ALL), str(tmp_path), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tables.md").read_text().splitlines()
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line.startswith("| ")
    }
    assert rows["embeddings only"][:4] == ["0.601", "0.754", "0.320", "0.500"]
    assert rows["embeddings and transformer"][3] == "0.600" and rows["without class name"][3] == "0.700"
    assert rows["q, k and v in full"][3] == "0.500"  # on the subjects of table 3, not on all
    assert rows["LoRA rank 16, every 2nd layer"][3] == "0.500"  # 4 stands for the paper's 16
    assert rows["LoRA rank 64, every layer"][3] == "–"
