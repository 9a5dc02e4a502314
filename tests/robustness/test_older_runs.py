"""Files of earlier versions still load: `fixtures/older_run` is from 29 November 2026, commit 55cebbe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest_run import compose_config

from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.core.files import base_fingerprint
from personalar.core.run_folder import RunFolder
from personalar.models.loading import obtain_model

STAGE_2 = "model.recipe.stages.transformer"
EARLIER = (
    "+subject=cat", "prior=replay", "model.recipe.data.replay_weight=null",
    f"{STAGE_2}.steps=60", f"{STAGE_2}.batch=12", f"{STAGE_2}.accumulate=1",
)  # fmt: skip
"""The defaults of that time, where they have changed."""
OLDER = Path(__file__).parents[1] / "fixtures" / "older_run"


def test_a_concept_of_the_earlier_nano_is_read_and_refused_with_what_to_do() -> None:
    files = obtain_model(compose_config("+subject=cat").model, say=pytest.fail)
    concept = Concept.load(OLDER / "concept")
    assert concept.rows.shape == (len(concept.tokens), 256)
    with pytest.raises(
        ValueError, match=r"other weights of base 'nano' .*: train it again, or set model.path"
    ):
        concept.check_base(name="nano", fingerprint=base_fingerprint(files.weights()))


def test_the_same_command_goes_on_in_its_folder(tmp_path: Path) -> None:
    """Decoders have moved to other modules, and removed settings had the same value in every run."""
    run_dir = Path(shutil.copytree(OLDER, tmp_path / "run"))
    shutil.copytree(OLDER / "concept", run_dir / "stages" / "embedding" / "concept")
    folder = RunFolder(run_dir)
    photos = folder.record["photos"]
    settings = learning_settings(compose_config(*EARLIER))
    folder.claim(settings, photos=photos, base="b", overwrite=False)
    with pytest.raises(ValueError, match=r"other settings \(seed 0 -> 1\)"):
        folder.claim(
            learning_settings(compose_config(*EARLIER, "seed=1")),
            photos=photos,
            base="b",
            overwrite=False,
        )
    with pytest.raises(ValueError, match=r"other settings \(prior.kind 'replay' -> 'distill'\)"):
        other = learning_settings(compose_config(*EARLIER, "prior.kind=distill"))
        folder.claim(other, photos=photos, base="b", overwrite=False)
