"""Curves of scores during training: means over a validation, and RPO's harmonic mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from personalar.core.measures import MEASURES
from personalar.training.callbacks.subject_scores import SubjectScores, harmonic, reward


def test_means_are_named_for_curves() -> None:
    logged: dict[str, float] = {}
    values = [(0, "dino", 1.0), (1, "dino", 0.0), (0, "clip_t", 0.2), (1, "clip_t", 0.4)]
    lines = [{"prompt": "a cat", "seed": n, "scorer": name, "value": value} for n, name, value in values]
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda told: told))
    scorer = SimpleNamespace(score=lambda samples: lines, scores=True, measures=list(MEASURES.values()))
    context = SimpleNamespace(scorer=scorer, config=SimpleNamespace(scorer=scorer))
    module = SimpleNamespace(log_dict=lambda values, **_: logged.update(values), context=context)
    SubjectScores().on_validation_batch_end(trainer, module, [])
    assert {name: round(value, 6) for name, value in logged.items()} == {
        "val/dino": 0.5,
        "val/clip_t": 0.3,
        "val/harmonic": round((2 / (1 / 1 + 1 / 0.6) + 2 / (1 / 0.5 + 1 / 0.7)) / 2, 6),
    }


def test_the_harmonic_mean_is_rpos() -> None:
    """1 / (lambda / I + (1 - lambda) / T) of cosines mapped to [0, 1]; for equal values it is that value."""
    assert harmonic(0.6, 0.6, 0.3) == pytest.approx(0.8)
    assert harmonic(0.6, 0.2, 0.3) == pytest.approx(1 / (0.3 / 0.8 + 0.7 / 0.6))
    assert harmonic(0.6, 0.2, 1.0) == pytest.approx(0.8) and harmonic(0.6, 0.2, 0.0) == pytest.approx(0.6)
    assert 0 <= harmonic(-1.0, 1.0, 0.5) < 1e-6  # a picture that has only one of the two is worth nothing


def test_its_weight_is_a_setting_and_no_pictures_give_no_values() -> None:
    values = [("dino", 0.6), ("clip_t", 0.2)]
    lines = [{"prompt": "a cat", "seed": 0, "scorer": name, "value": value} for name, value in values]
    assert reward(lines, 0.3) == pytest.approx(harmonic(0.6, 0.2, 0.3))
    assert reward([], 0.5) is None and reward(lines[:1], 0.5) is None
