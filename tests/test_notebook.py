"""The quickstart runs from its first cell to its last, on a tiny model, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters_index(notebook: nbformat.NotebookNode) -> int:
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return tagged[0]


def test_it_is_valid_and_stored_without_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.filterwarnings("ignore")  # jupyter's own, of sockets and event loops
def test_it_runs(tiny_model_dir, tiny_scorer_dir, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))  # also when not installed
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    model = [f"model.path={tiny_model_dir}", "trainer.threads=1"]
    scorer = [f"scorer.clip={tiny_scorer_dir / 'clip'}", f"scorer.dino={tiny_scorer_dir / 'dino'}"]
    notebook = read_notebook()
    changed = f"OVERRIDES = {['experiment=quick', *model, *scorer]!r}\nSAMPLE_OVERRIDES = {model!r}"
    notebook.cells.insert(parameters_index(notebook) + 1, nbformat.v4.new_code_cell(changed))
    client = NotebookClient(
        notebook,
        timeout=900,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    run_dir = tmp_path / "outputs" / "quickstart"
    assert (run_dir / "report.html").is_file() and (run_dir / "summary.json").is_file()
    assert len(list((run_dir / "samples").glob("*.png"))) == 3
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "display_data"
    ]
    assert len(shown) == 3
