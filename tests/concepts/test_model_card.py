"""The card beside a concept: a head that the hub reads, hashes that are right, nobody's markup."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest_run import compose_config
from PIL import Image
from test_concept import make
from test_exchange import adapter, export

from personalar.concepts.concept import Concept
from personalar.concepts.model_card import concept_files, model_card, write_card
from personalar.config.fingerprint import concept_settings
from personalar.core.own_files import CARD_FILE, PICTURES
from personalar.core.png import read_png_metadata, save_png
from personalar.export import export as export_command


def parts(card: str) -> tuple[dict, str]:
    """Return the head's values and the body."""
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def check_hashes(folder: Path, body: str) -> list[str]:
    told = dict(re.findall(r"- `(.+)` sha256 `([0-9a-f]{64})`", body))
    for name, digest in told.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    return sorted(told)


def test_a_run_leaves_a_card_and_a_concept_that_loads(finished_run: Path) -> None:
    folder = finished_run / "concept"
    head, body = parts((folder / CARD_FILE).read_text())
    assert head["license"] in ("apache-2.0", "other") and head["pipeline_tag"] == "text-to-image"
    assert head["library_name"] == "personalar" and "base_model" not in head  # from a folder: no repository
    for title in ("Intended use", "Out of scope", "Provenance", "Files"):
        assert f"## {title}\n" in body
    concept = Concept.load(folder)
    photos = sum(name.startswith("[S") for name in concept.tokens)
    assert concept.base["fingerprint"] in body and f"from {photos} photos of one cat" in body
    names = check_hashes(folder, body)
    pictures = [f"{PICTURES}/{path.name}" for path in sorted((folder / PICTURES).iterdir())]
    assert names == ["concept.json", "learned_embeds.safetensors", *pictures, "weights.safetensors"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "from photos of one cat"),
        ({"[V:2]": 81, "[I]": 82, "[S1]": 83}, "from 1 photo of one cat"),
        ({"[S1]": 81, "[S2]": 82}, "from 2 photos of one cat"),
    ],
)
def test_a_card_counts_photos_and_no_other_tokens(tmp_path: Path, more: dict[str, int], said: str) -> None:
    tokens = {"[V]": 80, **more}
    concept = make(tokens=tokens, rows=torch.randn(len(tokens), 32))
    assert f"learned {said}." in " ".join(model_card(concept, tmp_path).split())


def test_a_card_lists_no_file_of_the_user(tmp_path: Path) -> None:
    concept = make()
    concept.save(tmp_path / "concept")
    for folder in ("concept", "out"):
        (tmp_path / folder / ".git").mkdir(parents=True)
        (tmp_path / folder / ".git" / "config").write_text("mine")
        (tmp_path / folder / "diary.txt").write_text("mine")
    write_card(concept, tmp_path / "concept", files=concept_files(tmp_path / "concept"))
    export(tmp_path / "concept", tmp_path / "out")
    written = ["concept.json", "learned_embeds.safetensors", "weights.safetensors"]
    for folder, names in (("concept", written), ("out", ["learned_embeds.safetensors"])):
        _, body = parts((tmp_path / folder / CARD_FILE).read_text())
        assert check_hashes(tmp_path / folder, body) == names


def test_the_head_tells_the_prompt_and_shows_pictures_of_the_run(finished_run: Path) -> None:
    folder = finished_run / "concept"
    head, _ = parts((folder / CARD_FILE).read_text())
    assert head["instance_prompt"] == "a photo of a [V] cat"  # nano's first template
    shown = {item["text"]: folder / item["output"]["url"] for item in head["widget"]}
    assert set(shown) == {"a photo of a [V] cat", "a [V] cat on the beach"}  # of experiment=quick
    for prompt, path in shown.items():
        assert read_png_metadata(path)["prompt"] == prompt
        assert path.read_bytes() == (finished_run / "images" / "transformer" / path.name).read_bytes()


def test_the_cards_of_a_run_and_of_its_export_show_its_scores_and_memorisation(
    finished_run: Path, tmp_path: Path
) -> None:
    values = json.loads((finished_run / "summary.json").read_text())["stages"]["transformer"]
    titles = {"fidelity": "fidelity", "CLIP-T": "clip_t", "memorised": "memorised"}
    export_command(compose_config(f"concept={finished_run}", f"out={tmp_path / 'out'}", name="export"))
    for folder in (finished_run / "concept", tmp_path / "out"):
        table = re.search(r"\| (.*fidelity.*) \|\n\|[-|]+\n\| (.*) \|", (folder / CARD_FILE).read_text())
        assert table is not None
        shown = dict(zip(*(line.split(" | ") for line in table.groups()), strict=True))
        assert {title: shown[title] for title in titles} == {
            title: f"{values[name]:.3f}" for title, name in titles.items()
        }
    assert "## Scores" not in model_card(make(), tmp_path)


def test_without_pictures_the_head_has_a_prompt(tmp_path: Path) -> None:
    head, _ = parts(model_card(make(), tmp_path))
    assert head["instance_prompt"] == "a photo of [V] cat" and "widget" not in head
    data = {"class_name": False, "templates": ["a rendering of {}"]}
    alone = make(config={"model": {"recipe": {"data": data}}})
    head, body = parts(model_card(alone, tmp_path))
    assert head["instance_prompt"] == "a rendering of [V]" and "a photo of [V] in the snow" in body


def test_a_style_without_a_recipe_has_prompts_of_a_style(tmp_path: Path) -> None:
    style = make(subject={"name": "ink", "noun": "style", "fingerprint": "f"})
    head, _ = parts(model_card(style, tmp_path))
    assert head["instance_prompt"] == "a painting in the style of [V]"


def test_an_export_shows_the_pictures_that_lie_beside_it(tmp_path: Path) -> None:
    make().save(tmp_path / "concept")
    grey = Image.new("RGB", (8, 8))
    for name, prompt in (("a.png", "[V] cat <b>, asleep"), ("a b.png", "x"), ("strange.png", None)):
        save_png(grey, tmp_path / "out" / PICTURES / name, {"prompt": prompt} if prompt else {})
    *_, card = export(tmp_path / "concept", tmp_path / "out")
    head, _ = parts(card.read_text())
    assert head["widget"] == [{"text": "[V] cat  b , asleep", "output": {"url": "pictures/a.png"}}]


def test_a_concept_holds_no_photo_and_not_the_way_to_them(
    do_run: Callable[..., bool], tmp_path: Path
) -> None:
    """What `hf upload` sends: rows, weights, facts, and pictures that the model drew."""
    photos, run = tmp_path / "at home" / "my photos", tmp_path / "run"
    photos.mkdir(parents=True)
    for index, colour in enumerate(("red", "green")):
        Image.new("RGB", (64, 64), colour).save(photos / f"holiday{index}.png")
    own = ("subject.noun=cat", "subject.name=tom", "scorer=none", "stage=embedding")
    do_run(run, f"subject.path='{photos}'", *own, subject="+subject=folder")
    files = {path.relative_to(run / "concept").as_posix(): path.read_bytes()
             for path in (run / "concept").rglob("*") if path.is_file()}  # fmt: skip
    names = {name for name in files if not name.startswith(f"{PICTURES}/")}
    assert names == {"README.md", "concept.json", "learned_embeds.safetensors"}
    shown = (*photos.iterdir(), *(run / "references").rglob("*.png"))
    theirs = {path.read_bytes() for path in shown}
    pixels = {Image.open(path).convert("RGB").resize((8, 8)).tobytes() for path in photos.iterdir()}
    for name, data in files.items():
        assert data not in theirs and b"holiday" not in data and b"my photos" not in data
        if name.endswith(".png"):
            drawn = Image.open(run / "concept" / name).convert("RGB").resize((8, 8)).tobytes()
            assert drawn not in pixels and read_png_metadata(run / "concept" / name)["stage"] == "embedding"


def test_a_base_of_the_hub_is_named_with_its_licence(tmp_path: Path) -> None:
    config = concept_settings(compose_config("+subject=cat", "model=lumina_mgpt_7b_512"))
    head, body = parts(model_card(make(config=config), tmp_path))
    assert head["base_model"] == "Alpha-VLLM/Lumina-mGPT-7B-512" and head["license"] == "other"
    assert head["license_link"] == "https://huggingface.co/Alpha-VLLM/Lumina-mGPT-7B-512"
    assert "non-commercial research" in body and "- method: paper" in body
    head, _ = parts(model_card(make(config=concept_settings(compose_config("+subject=cat"))), tmp_path))
    assert head["license"] == "apache-2.0"


def test_every_export_has_one(tmp_path: Path) -> None:
    make(weights={}, lora=adapter()).save(tmp_path / "concept")
    *_, card = export(tmp_path / "concept", tmp_path / "out")
    head, body = parts(card.read_text())
    assert card == tmp_path / "out" / CARD_FILE and "lora" in head["tags"]
    assert check_hashes(tmp_path / "out", body) == [
        "learned_embeds.safetensors", "lora/adapter_config.json", "lora/adapter_model.safetensors"
    ]  # fmt: skip


def test_the_card_of_an_export_tells_what_lies_there_and_how_it_comes_back(tmp_path: Path) -> None:
    make().save(tmp_path / "concept")
    *_, card = export(tmp_path / "concept", tmp_path / "out")
    _, body = parts(card.read_text())
    assert "changed tensors: 1, not included" in body and "learned tokens: `[V]`\n" in body
    assert "and changed weights" not in body and "- not included: 1 tensors of the transformer" in body
    assert "read_export('DIR', noun='cat', name='cat').save(Path('adopted'))\n" in body
    assert "sample concept=adopted 'prompts=[" in body and "concept=DIR" not in body


def test_the_card_of_a_checkpoint_takes_it_as_the_base(tmp_path: Path) -> None:
    config = {"model": {"path": "/somewhere"}}
    concept = make(base={"name": "lumina_mgpt_7b_512", "fingerprint": "abc"}, config=config)
    card = model_card(concept, tmp_path, exported=True, checkpoint="norms (1, 128)")
    assert "changed tensors: 1, in checkpoint/\n" in card and "tokens: `[V], [S1]`" in card
    assert "`[V]` is token 80; norms (1, 128)" in card
    assert "read_export('DIR', 'model=lumina_mgpt_7b_512', 'model.path=DIR/checkpoint', noun=" in card
    assert "in the snow\"]' model=lumina_mgpt_7b_512 model.path=DIR/checkpoint\n" in card
    with_adapter = make(weights={}, lora=adapter(), config=config)
    card = model_card(with_adapter, tmp_path, exported=True, checkpoint="norms (1, 128)")
    assert "in the snow\"]' model.path=BASE\n" in card  # an adapter goes on the base itself


def test_a_card_names_the_base_that_its_command_needs(tmp_path: Path) -> None:
    concept = make(base={"name": "anole_7b", "fingerprint": "abc"})
    assert "in the snow\"]' model=anole_7b\n" in model_card(concept, tmp_path)
    assert "in the snow\"]'\n" in model_card(make(), tmp_path)


@pytest.mark.parametrize(
    "evil",
    ["<script>alert(1)</script>", "[x](javascript:alert)", "a\n---\nlicense: mit\n", "` `", "{base}", "\x00"],
)  # fmt: skip
def test_a_strangers_facts_are_words(evil: str, tmp_path: Path) -> None:
    concept = make(
        base={"name": evil, "fingerprint": evil},
        subject={"name": evil, "noun": evil, "fingerprint": evil},
        stage=evil,
        config={
            "model": {
                "hub": {"repo": "a/b\nlicense: mit", "licence": evil},
                "recipe": {"data": {"templates": [evil]}},
            },
            "seed": evil,
            "method": {"name": evil},
        },
    )
    head, body = parts(model_card(concept, tmp_path))
    assert head["license"] == "other" and "base_model" not in head
    assert "<" not in head["instance_prompt"] and "\n" not in head["instance_prompt"]
    exported = model_card(concept, tmp_path, exported=True)
    for sign in ("<script", "](", "\n---", "{base}", "\x00", "` `"):
        assert sign not in body and sign not in exported.split("---\n", 2)[2]
    concept.save(tmp_path)
    write_card(concept, tmp_path)
    Concept.load(tmp_path)
