"""The quickstart notebook runs on a tiny model and is stored with its output; Colab's is tested likewise."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest_run import QUICK, compose_config
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_with_what_a_reader_on_github_is_to_see():
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}  # no error
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    steps = compose_config("+subject=cat").model.recipe.stages["transformer"].steps
    assert f"stage transformer: {steps} steps in " in said
    assert "report: outputs/quickstart/report.html" in said
    assert "\x1b" not in said and "\r" not in said  # bars move on terminals only
    assert not re.search(r"(?<![\w.:/])/\w+/", said)  # no place on the machine that made it
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert NOTEBOOK.stat().st_size < 1_500_000


def run_cells(path: Path, parameters: dict) -> dict:
    """Run a notebook but for its lines for the shell; `parameters` replace those of the tagged cell."""
    values: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith(("%", "!")):
            exec(compile(cell.source, str(path), "exec"), values)
            values |= parameters if cell.metadata.get("tags") == ["parameters"] else {}
    return values


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    """What a notebook displays; Jupyter need not be installed."""
    pictures: list = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=pictures.append))
    return pictures


def test_it_runs(finished_run, tiny_model_dir, tiny_scorer_dir, tmp_path, monkeypatch, shown):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))  # also when not installed
    place = tmp_path / "repository" / "notebooks"  # opened there: results go to the folder above
    (place.parent / "personalar").mkdir(parents=True)
    (place.parent / "personalar" / "run.py").touch()
    place.mkdir()
    monkeypatch.chdir(place)
    model = [f"model.path={tiny_model_dir}", "trainer.threads=1"]
    scorer = [f"scorer.clip={tiny_scorer_dir / 'clip'}", f"scorer.dino={tiny_scorer_dir / 'dino'}"]
    words = [f"subject.path={finished_run / 'references'}", "subject.noun=cat", "experiment=quick"]
    given = {"SUBJECT": "folder", "OVERRIDES": [*words, *model, *scorer], "SAMPLE_OVERRIDES": model}
    run_cells(NOTEBOOK, given)
    run_dir = place.parent / "outputs" / "quickstart"
    assert (run_dir / "report.html").is_file() and (run_dir / "summary.json").is_file()
    assert len(list((run_dir / "samples").glob("*.png"))) == 3
    assert len(shown) == 3 and all(isinstance(picture, Image.Image) for picture in shown)


COLAB = NOTEBOOK.with_name("janus_pro_1b_colab.ipynb")


def test_the_colab_notebook_is_stored_without_output_and_says_that_it_was_not_run():
    notebook = nbformat.read(COLAB, as_version=4)
    nbformat.validate(notebook)
    assert "has not been run on a GPU" in notebook.cells[0].source
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")


def test_the_colab_notebooks_settings_compose():
    (cell,) = [cell for cell in nbformat.read(COLAB, as_version=4).cells if cell.metadata.get("tags")]
    values: dict = {}
    exec(cell.source, values)
    words = ["+subject=folder", "subject.path=.", f"subject.noun={values['NOUN']}", *values["SETTINGS"]]
    config = compose_config(*words)
    assert config.model.name == "janus_pro_1b" and config.trainer.name == "gpu"
    compose_config("concept=x", "prompts=[a]", *values["SAMPLE_SETTINGS"], name="sample")


def test_the_colab_notebook_runs_on_a_tiny_base(tiny_model_dir, tmp_path, monkeypatch, shown):
    """Its own statements, without the installation and the command of the shell."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos" / "rex"
    photos.mkdir(parents=True)
    for number, colour in enumerate(("red", "green")):
        Image.new("RGB", (96, 96), colour).save(photos / f"{number}.png")
    tiny = [f"model.path={tiny_model_dir}", "trainer.threads=1"]
    settings = {"SETTINGS": [*tiny, *QUICK, "scorer=none"], "SAMPLE_SETTINGS": tiny}
    values = run_cells(COLAB, settings)
    assert (tmp_path / "rex.zip").is_file() and values["run"].is_dir()
    assert [picture.size for picture in values["learned"].images(values["prompts"], seeds=[1, 1])]
