"""Inputs of a stage: class prompts, photo codes, and the start of [V]."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from conftest_backend import make_backend
from PIL import Image
from rich.console import Console

from personalar.concepts.adapters.identifier import Identifier, word_norms
from personalar.config.recipe import DataNumbers, IdentifierNumbers, PriorConfig
from personalar.config.run_config import Stage
from personalar.core.console import Reporter
from personalar.data.class_images import class_prompts
from personalar.data.codes import encode_photos
from personalar.data.prompts import training_prompt
from personalar.data.stream import collate
from personalar.models.base import Backend
from personalar.training import inputs as preparation
from personalar.training import train as training
from personalar.training.context import RunContext
from personalar.training.inputs import nearest_row, start_identifier
from personalar.training.loss import sequence_loss
from personalar.training.stage import resolve_stages


def test_class_prompts_take_turns_and_animals_have_more() -> None:
    prior = PriorConfig(images=5, prompts=["a {}", "a red {}"], prompts_live=["a {} wearing a hat"])
    assert class_prompts(prior, noun="cat", live=True) == [
        "a cat", "a red cat", "a cat wearing a hat", "a cat", "a red cat",
    ]  # fmt: skip
    assert class_prompts(prior, noun="car", live=False) == [
        "a car",
        "a red car",
        "a car",
        "a red car",
        "a car",
    ]
    assert class_prompts(PriorConfig(images=3, prompts=[], prompts_live=[]), noun="car", live=False) == []


@pytest.mark.parametrize(
    ("class_name", "prompt"), [(True, "a rendering of [V] cat"), (False, "a rendering of [V]")]
)
def test_the_search_for_a_start_asks_what_training_asks(
    session: RunContext, monkeypatch: pytest.MonkeyPatch, class_name: bool, prompt: str
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(preparation, "start_identifier", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(preparation, "photo_codes", lambda *_: [])
    monkeypatch.setattr(preparation, "masked_codes", lambda *_: None)
    data = DataNumbers(templates=["a rendering of {}", "a {}"], class_name=class_name)
    session.config.model.recipe.data = data
    preparation.new_identifier(session, lambda: None)
    assert asked["prompt"] == prompt == training_prompt(data.templates[0], "cat", class_name=class_name)


def test_codes_are_kept_for_the_pictures_that_they_are_of(
    session: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes change with the crop of the photos and the size of the pictures."""
    encoded: list[str] = []

    def encode(backend: None, photos: Any, data: DataNumbers, **_: Any) -> list[torch.Tensor]:
        encoded.append(data.crop)
        return [torch.zeros(1, 4, 4)]

    monkeypatch.setattr(preparation, "encode_photos", encode)
    monkeypatch.setattr(preparation, "save_redrawn", lambda *_: None)
    files = session.model_files
    larger = replace(session, model_files=replace(files, layout=replace(files.layout, resolution=64)))
    for crop, each, count in (("center", session, 1), ("random", session, 2), ("random", larger, 3)):
        session.config.model.recipe.data.crop = crop
        for _ in range(2):
            preparation.photo_codes(each, lambda: None)
        assert len(encoded) == count


def test_the_codes_of_proxies_are_cached_and_not_cropped(session: RunContext) -> None:
    backend, pictures = make_backend(buckets="aspect"), [Image.linear_gradient("L").convert("RGB")] * 2
    pictures.append(pictures[0].resize((300, 100)))
    with_proxies = replace(session, subject=replace(session.subject, proxies=tuple(pictures)))
    expected = encode_photos(backend, pictures, DataNumbers(), seed=0)
    load = Mock(return_value=backend)
    for _ in range(2):
        found = preparation.proxy_codes(with_proxies, load)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert load.call_count == 1 and expected[2].shape != expected[0].shape
    assert preparation.proxy_codes(session, load) == []


def test_logits_of_class_images_are_those_of_the_base_and_kept(session: RunContext) -> None:
    base, asked = session.load("base")[0], []
    prompts, codes = ["a cat", "a red cat"], [torch.full((4, 4), 3), torch.full((4, 4), 5)]

    def load() -> Backend:
        asked.append(1)
        return base

    for key in (["codes"], ["codes"], ["others"]):
        found = preparation.frozen_logits(session, prompts, codes, key, load)
        assert [tuple(logits.shape) for logits in found] == [(16, 64)] * 4 and found[0].dtype == torch.float16
    assert len(asked) == 2
    for index, sequence in enumerate((
        base.unconditional_sequence("a cat", codes[0], loss="image_tokens"),
        base.training_sequence("a red cat", codes[1], loss="image_tokens"),
    ), 1):  # fmt: skip
        hidden = base.forward(base.embed(torch.tensor([sequence.ids])))[0, :-1]
        expected = base.image_logits(hidden[torch.tensor(sequence.loss_mask[1:])])
        torch.testing.assert_close(found[index].float(), expected, rtol=1e-3, atol=1e-3)


def test_learned_tokens_are_checked_before_anything_is_generated(session: RunContext) -> None:
    session.check_tokens()
    session.config.prior.append = "[I]"
    with pytest.raises(
        ValueError, match=r"prior\.append='\[I\]' is not a learned token of method=paper.*\[V\]"
    ):
        session.check_tokens()
    session.config.model.recipe.identifier.rows = 100
    with pytest.raises(ValueError, match="need as many reserved ids"):
        session.check_tokens()


def test_how_often_photos_are_seen_counts_the_class_images_of_animals(
    session: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(training, "fit", lambda *_: None)
    config = session.config
    stage, seen = resolve_stages(config.method, config.model.recipe)[1], []
    for always, live in ((["a {}"], []), ([], ["a {} with a hat"]), ([], [])):
        config.prior.prompts, config.prior.prompts_live = always, live
        training.train_stage(session, stage, grid=[], base_samples=[])
        seen += re.findall(r"is seen (.+)", capsys.readouterr().out)
    assert seen == ["less than once", "less than once", "about 1.6 times"]


def test_the_inputs_are_made_once_for_each_stage(
    do_run: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    prepare = preparation.prepare

    def counted(session: RunContext, stage: Stage) -> preparation.StageInputs:
        asked.append(stage.name)
        return prepare(session, stage)

    monkeypatch.setattr(preparation, "prepare", counted)
    do_run(tmp_path, "stage=both", "scorer=none", "samples.kinds=[subject]", "samples.grid_every_steps=0")
    assert asked == ["embedding", "transformer"]


def test_a_start_of_other_settings_is_made_again(
    session: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def new(session: RunContext, load: Any) -> Identifier:
        made.append(session.config.seed)
        return Identifier(tokens={"[V]": 70}, rows=torch.full((1, 32), float(len(made))))

    monkeypatch.setattr(preparation, "new_identifier", new)

    def start_of_v() -> float:
        return preparation.first_concept(session, lambda: None).rows[0, 0].item()

    assert start_of_v() == start_of_v() == 1
    session.config.model.recipe.stages["embedding"].steps += 5  # a stage that is trained longer starts there
    assert start_of_v() == 1
    session.config.model.recipe.identifier.init = "random"
    assert start_of_v() == start_of_v() == 2
    session.config.seed = 7
    assert start_of_v() == start_of_v() == 3


def test_a_start_is_sought_in_the_last_view_that_shows_the_subject(
    session: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    codes, masks = torch.arange(3).repeat_interleave(4).view(3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.int64)
    masks[:2, 0, 0] = 1
    monkeypatch.setattr(preparation, "start_identifier", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(preparation, "photo_codes", lambda *_: [codes])
    for found, view in (([masks], 1), (None, 2)):
        monkeypatch.setattr(preparation, "masked_codes", lambda *_, found=found: found)
        preparation.new_identifier(session, lambda: None)
        ((shown, kept),) = asked["photos"]
        assert torch.equal(shown, codes[view])
        assert torch.equal(kept, torch.ones_like(shown) if found is None else masks[1])


SILENT = Reporter(enabled=False)


def photos() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 16, (4, 4), generator=generator) for _ in range(2)]


def unmasked() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(codes, torch.ones_like(codes)) for codes in photos()]


def start(backend, **numbers) -> Identifier:
    generator = torch.Generator().manual_seed(0)
    return start_identifier(
        backend, IdentifierNumbers(**numbers), prompt="a [V] cat", photos=unmasked(), generator=generator,
        reporter=SILENT,
    )  # fmt: skip


@pytest.mark.parametrize("prompt", ["a photo of a [V] cat", "a [V]"])
def test_the_nearest_row_has_the_least_loss_of_the_eighth_that_suits_the_first_photo(
    tiny_backend, prompt: str
) -> None:
    rows = torch.randn(
        40, tiny_backend.transformer.config.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    tokens = {"[V]": tiny_backend.tokenizer.concept_ids[0]}
    sequences = [tiny_backend.training_sequence(prompt, p, tokens, loss="image_tokens") for p in photos()]

    def losses(photos: list) -> list[float]:
        batch = collate(photos, pad=tiny_backend.tokenizer.pad)
        known = [Identifier(tokens=tokens, rows=row[None]) for row in rows]
        options = {"loss": "image_tokens", "z_loss": 0.0}
        return [sequence_loss(tiny_backend, row, batch, **options).item() for row in known]

    on_first, on_all = losses(sequences[:1]), losses(sequences)
    best = min(sorted(range(40), key=on_first.__getitem__)[:5], key=on_all.__getitem__)
    assert best != on_first.index(min(on_first))  # the other photo matters
    said = io.StringIO()
    reporter = Reporter(console=Console(file=said, soft_wrap=True))
    found = nearest_row(tiny_backend, rows, prompt=prompt, photos=unmasked(), reporter=reporter)
    assert torch.equal(found, rows[best][None])
    assert said.getvalue().startswith("start of [V]: 40 names tried in ")
    assert said.getvalue().endswith(f"lowest loss {on_all[best]:.3f}\n")


def test_nearest_starts_at_a_reserved_row_and_leaves_the_photos_tokens_random(tiny_backend) -> None:
    table = tiny_backend.transformer.model.embed_tokens.weight
    nearest, random = start(tiny_backend, init="nearest"), start(tiny_backend)
    assert list(nearest.tokens) == ["[V]", "[S1]", "[S2]"]
    assert any(torch.equal(nearest.rows[0], table[index]) for index in tiny_backend.tokenizer.concept_ids)
    assert torch.equal(nearest.rows[1:], random.rows[1:])


@pytest.mark.parametrize("init", ["random", "nearest"])
def test_a_start_is_a_function_of_its_seed(tiny_backend, init: str) -> None:
    assert torch.equal(start(tiny_backend, init=init).rows, start(tiny_backend, init=init).rows)


def test_rows_that_keep_their_norm_start_with_that_of_words(tiny_backend) -> None:
    mean = word_norms(tiny_backend).mean()
    words = start(tiny_backend, init="words", words=["cat", "dog"], optimizer="direction").rows
    assert torch.allclose(words.norm(dim=1), mean.expand(3))
    plain = start(tiny_backend, init="words", words=["cat", "dog"]).rows
    assert torch.allclose(F.cosine_similarity(words, plain), torch.ones(3))
    nearest = start(tiny_backend, init="nearest", optimizer="direction").rows
    assert torch.equal(nearest[0], start(tiny_backend, init="nearest").rows[0])
    assert torch.allclose(nearest[1:].norm(dim=1), mean.expand(2))


@pytest.mark.parametrize("further", ["random", "kmeans"])
def test_further_rows_leave_the_first_as_it_is(tiny_backend, further: str) -> None:
    three = start(tiny_backend, init="nearest", rows=3, further=further)
    assert list(three.tokens) == ["[V]", "[V:2]", "[V:3]", "[S1]", "[S2]"]
    assert torch.equal(three.rows[0], start(tiny_backend, init="nearest").rows[0])
    assert len(three.rows.unique(dim=0)) == 5
    mean = word_norms(tiny_backend).mean()
    assert torch.allclose(three.rows[1:3].norm(dim=1), mean.expand(2)) == (further == "kmeans")
