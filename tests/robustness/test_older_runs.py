"""Files of earlier versions still load: `fixtures/older_run` is from 29 November 2026, commit 55cebbe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest_run import compose_config

from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.core.files import base_fingerprint
from personalar.core.run_folder import RunFolder
from personalar.models.loading import obtain_model

OLDER = Path(__file__).parents[1] / "fixtures" / "older_run"


def test_a_concept_still_belongs_to_its_base() -> None:
    config = compose_config("+subject=cat")
    files = obtain_model(config.model, say=pytest.fail)
    concept = Concept.load(OLDER / "concept")
    concept.check_base(name="nano", fingerprint=base_fingerprint(files.weights()))
    backend = files.load(dtype=torch.float32, device="cpu", attention="sdpa")
    identifier = concept.apply(backend)
    assert identifier.tokens == concept.tokens and torch.equal(identifier.rows, concept.rows)


def test_the_same_command_goes_on_in_its_folder(tmp_path: Path) -> None:
    """Decoders have moved to other modules, and removed settings had the same value in every run."""
    run_dir = Path(shutil.copytree(OLDER, tmp_path / "run"))
    shutil.copytree(OLDER / "concept", run_dir / "stages" / "embedding" / "concept")
    folder = RunFolder(run_dir)
    photos = folder.record["photos"]
    settings = learning_settings(compose_config("+subject=cat"))
    folder.claim(settings, photos=photos, base="b", overwrite=False)
    with pytest.raises(ValueError, match=r"other settings \(seed 0 -> 1\)"):
        folder.claim(
            learning_settings(compose_config("+subject=cat", "seed=1")),
            photos=photos,
            base="b",
            overwrite=False,
        )
    with pytest.raises(ValueError, match=r"other settings \(prior.kind 'replay' -> 'distill'\)"):
        other = learning_settings(compose_config("+subject=cat", "prior=distill"))
        folder.claim(other, photos=photos, base="b", overwrite=False)
