"""Scorers: real formats, closed-form values, and the errors a user can meet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest_run import compose_config
from conftest_scoring import SCORER_PX, make_tiny_clip, make_tiny_dinov2, make_tiny_siglip
from PIL import Image

from personalar.core.types import PromptSpec, Sample, Subject
from personalar.data.prompts import sample_prompt
from personalar.scoring.base import similarity_between
from personalar.scoring.checkpoints import resolve_folder
from personalar.scoring.features import ClipScorer, DinoScorer
from personalar.scoring.image_processor import ImagePreprocessor
from personalar.scoring.judges import Judges, class_text
from personalar.scoring.score_file import merge_scores, read_scores
from personalar.scoring.subject_scorer import StyleScores, SubjectScorer


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


class TableClip:
    """Features looked up by colour and text, so that every score is known in advance."""

    name = "table"
    preprocessing = "none"
    texts: ClassVar = {"a cat in the snow": (1, 0, 0), "a cat on the beach": (0, 1, 0), "a cat": (0, 0, 1)}

    def image_features(self, images):
        pixels = torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float32)
        return torch.nn.functional.normalize(pixels, dim=-1)

    def text_features(self, texts):
        return torch.tensor([self.texts.get(text, (0.6, 0.8, 0)) for text in texts], dtype=torch.float32)


class TableDino(TableClip):
    def features(self, images):
        return self.image_features(images)


def plain(*rgb: int) -> Image.Image:
    return Image.new("RGB", (4, 4), rgb)


SNOW = PromptSpec(text="a {} in the snow", category="recontext", context="snow")
BEACH = PromptSpec(text="a {} on the beach", category="recontext", context="beach")
RED_HAT = PromptSpec(text="a {} wearing a red hat", category="accessory", accessory="hat", colour="red")
BARE = PromptSpec(text="a {}", category="plain")
PENCIL = PromptSpec(text="a pencil drawing of a {}", category="property", style="pencil drawing")


def subject(**changes) -> Subject:
    fields = {"name": "cat", "noun": "cat", "live": True, "fingerprint": "0" * 64}
    return Subject(**{**fields, "images": (plain(1, 0, 0), plain(0, 1, 0)), **changes})


def sample(spec: PromptSpec, image: Image.Image, *, seed: int = 0, stage: str = "embedding") -> Sample:
    prompt = spec.text.replace("{}", "[V] cat")
    return Sample(stage=stage, prompt=prompt, kind="subject", seed=seed, spec=spec, image=image)


def judges(owner: Subject | None = None, **options) -> Judges:
    owner = owner or subject()
    return Judges(owner, SubjectScorer(TableClip(), TableDino(), owner, **options), {}, {})


def test_features_are_normalised_and_independent_of_the_batch(tiny_scorer_dir):
    clip = ClipScorer(tiny_scorer_dir / "clip", batch_size=2)
    dino = DinoScorer(tiny_scorer_dir / "dino", batch_size=2)
    images = [picture(seed) for seed in range(5)]
    for features in (clip.image_features, dino.features):
        together = features(images)
        assert together.dtype == torch.float32 and together.shape[0] == 5
        torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(together, torch.cat([features([image]) for image in images]))
        torch.testing.assert_close(features(images[::-1]).flip(0), together)
    assert clip.name.startswith(str(tiny_scorer_dir / "clip") + "#")


def test_text_features_ignore_padding_and_cut_long_texts(tiny_scorer_dir):
    clip = ClipScorer(tiny_scorer_dir / "clip")
    texts = ["a cat", "a cat on the beach wearing a red hat", "a " * 100]
    together = clip.text_features(texts)
    torch.testing.assert_close(together, torch.cat([clip.text_features([text]) for text in texts]))
    assert len(clip.text_features([])) == 0


def test_clip_features_are_those_of_transformers(tiny_scorer_dir):
    from transformers import CLIPImageProcessorPil, CLIPModel

    images = [picture(1), picture(2, (33, 70))]
    processor = CLIPImageProcessorPil.from_pretrained(tiny_scorer_dir / "clip")
    model = CLIPModel.from_pretrained(tiny_scorer_dir / "clip").eval()
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    ours = ClipScorer(tiny_scorer_dir / "clip").image_features(images)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 30}, "resample": 3},
            "shorter side 40, bicubic, centre crop 32x30",
        ),
        ({"size": 40, "crop_size": 40, "resample": 2}, "shorter side 40, bilinear, centre crop 40x40"),
        ({"size": {"height": 36, "width": 28}, "resample": 2}, "resize 36x28, bilinear"),
        ({"size": 24, "do_rescale": True, "crop_size": None}, "resize 24x24, bicubic"),
    ],
)
def test_preprocessing_is_described_by_its_steps(config: dict, steps: str, tmp_path: Path) -> None:
    """Scores with another description are not compared; a size of one number is a square without a crop."""
    config |= {"do_center_crop": bool(config.get("crop_size")), "do_resize": True, "do_normalize": True}
    config |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "feature_extractor_type": "x"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = ImagePreprocessor.from_folder(tmp_path)
    assert found.describe() == f"{steps}, times 0.00392157, mean 0.5 0.4 0.3, std 0.2 0.3 0.25"
    white = found([Image.new("L", (48, 40), 255)])[0]
    torch.testing.assert_close(white[:, 9, 9], torch.tensor([0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.25]))


def test_dino_reads_the_class_token(tiny_scorer_dir):
    dino = DinoScorer(tiny_scorer_dir / "dino")
    pixels = dino.preprocess([picture(0)])
    assert pixels.shape == (1, 3, SCORER_PX, SCORER_PX)
    with torch.no_grad():
        token = dino.model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(dino.features([picture(0)]), token / token.norm())
    assert not any(parameter.requires_grad for parameter in dino.model.parameters())


def test_siglip_features_are_those_of_transformers(tmp_path):
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

    folder = make_tiny_siglip(tmp_path)
    images, texts = [picture(1), picture(2, (33, 70))], ["a cat on the beach", "a dog", "a " * 40]
    model = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        read = model.get_text_features(input_ids=words["input_ids"]).pooler_output
        both = model(input_ids=words["input_ids"], pixel_values=pixels)
    ours = ClipScorer(folder)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(ours.preprocess(images), pixels, **close)
    torch.testing.assert_close(
        ours.image_features(images), torch.nn.functional.normalize(seen, dim=-1), **close
    )
    torch.testing.assert_close(
        ours.text_features(texts), torch.nn.functional.normalize(read, dim=-1), **close
    )
    cosines = (both.logits_per_image - model.logit_bias) / model.logit_scale.exp()
    found = ours.image_features(images) @ ours.text_features([text.upper() for text in texts]).T
    torch.testing.assert_close(found, cosines.detach(), **close)


def test_dinov2_features_are_those_of_transformers(tmp_path):
    from transformers import BitImageProcessorPil, Dinov2Model

    folder = make_tiny_dinov2(tmp_path)
    images = [picture(1), picture(2, (33, 70))]
    with torch.no_grad():
        pixels = BitImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
        token = Dinov2Model.from_pretrained(folder).eval()(pixel_values=pixels).pooler_output
    ours = DinoScorer(folder)
    torch.testing.assert_close(ours.preprocess(images), pixels, atol=1e-5, rtol=0)
    expected = torch.nn.functional.normalize(token, dim=-1)
    torch.testing.assert_close(ours.features(images), expected, atol=1e-5, rtol=0)


def test_the_modern_judges_are_pinned_and_say_what_to_do_offline(monkeypatch):
    config = compose_config("+subject=cat", "scorer=modern").scorer
    assert config.warning(photographs=True) is None
    for where in (config.clip, config.dino):
        assert re.fullmatch(r"[\w-]+/[\w.-]+@[0-9a-f]{40}", where)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"^google/siglip2-base.* cannot be reached.* give a folder"):
        ClipScorer(config.clip)


def unreachable(*_, **__):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("no network")


def test_score_lines_hold_the_closed_form_values():
    scorer = judges(prompts=(SNOW, BEACH, BARE))
    lines = scorer.score([sample(SNOW, plain(1, 0, 0)), sample(BEACH, plain(3, 0, 4))])
    values = [(line["scorer"], line["value"]) for line in lines]
    assert values == [
        ("dino", 0.5),
        ("clip_i", 0.5),
        ("clip_t", 1.0),
        ("dino", 0.3),
        ("clip_i", 0.3),
        ("clip_t", 0.0),
    ]
    assert lines[2]["clip_text"] == "a cat in the snow" and lines[2]["context_top1"] is True
    assert lines[5]["context_top1"] is False and "accessory_top1" not in lines[5]
    assert lines[0]["template"] == "a {} in the snow" and json.loads(json.dumps(lines)) == lines
    assert scorer.score([]) == []


def test_a_picture_without_the_accessory_is_not_obedient_by_chance():
    scorer = judges(prompts=(RED_HAT,))
    bare, hat = scorer.score([sample(RED_HAT, plain(0, 0, 5)), sample(RED_HAT, plain(3, 4, 0))])[2::3]
    assert bare["accessory_top1"] is False and hat["accessory_top1"] is True


def test_a_photo_is_not_taken_for_a_drawing():
    scorer = judges(prompts=(PENCIL, BARE))
    photo, drawing = scorer.score([sample(PENCIL, plain(0, 0, 5)), sample(PENCIL, plain(3, 4, 0))])[2::3]
    assert photo["style_top1"] is False and drawing["style_top1"] is True
    assert "style_top1" not in scorer.score([sample(BARE, plain(3, 4, 0))])[2]


def test_bounds_come_from_other_things_and_unseen_views():
    scorer = judges(subject(others=(plain(0, 0, 1),), holdout=(plain(1, 0, 0),)))
    assert scorer.bounds() == {
        "floor": {"dino": 0.0, "clip_i": 0.0, "images": 1},
        "ceiling": {"dino": 0.5, "clip_i": 0.5, "images": 1},
        "photos": {"dino": 0.0, "clip_i": 0.0, "dino_max": 0.0, "images": 2},
    }
    one = judges(subject(images=(plain(1, 0, 0),))).bounds()
    assert one == {"floor": None, "ceiling": None, "photos": None}


def test_scoring_the_references_themselves(tiny_scorer_dir):
    one = picture(1)
    owner = subject(images=(one,))
    main = SubjectScorer(ClipScorer(tiny_scorer_dir / "clip"), DinoScorer(tiny_scorer_dir / "dino"), owner)
    lines = Judges(owner, main, {}, {}).score([sample(SNOW, one)])
    assert lines[0]["value"] == pytest.approx(1, abs=1e-5) and lines[1]["value"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a [V] cat in the snow", "a cat in the snow"),
        ("a photo of [V] cat [S3]", "a photo of cat"),
        ("[V] cat", "cat"),
        ("a cat [Vx]", "a cat [Vx]"),
        ("a [V] in the snow", "a cat in the snow"),  # trained without the class name
    ],
)
def test_clip_reads_the_class_for_the_identifier(prompt, text):
    assert class_text(prompt, "cat") == text


@pytest.mark.parametrize("class_name", [True, False])
def test_clip_reads_the_same_on_the_base_and_after_a_stage(class_name):
    words = {"kind": "subject", "noun": "elephant", "description": None, "class_name": class_name}
    base, learned = (sample_prompt(SNOW, learned=learned, **words) for learned in (False, True))
    assert class_text(base, "elephant") == class_text(learned, "elephant") == "an elephant in the snow"


def test_a_style_is_scored_by_likeness_and_text_together_and_by_what_leaks():
    owner = subject(noun="style")
    main = SubjectScorer(TableClip(), TableDino(), owner)
    scorer = Judges(owner, main, {"style": StyleScores(main)}, {})
    spec = PromptSpec(text="a cat in the snow in the style of {}", category="style")

    def draw(kind, image, stage="embedding") -> Sample:
        named = kind == "subject" and stage != "base"
        prompt = spec.text.replace("{}", "[V]") if named else "a cat in the snow"
        return Sample(stage=stage, prompt=prompt, kind=kind, seed=0, spec=spec, image=image)

    def values(*samples) -> dict:
        found = {}
        for line in scorer.score(samples):
            found.setdefault(line["scorer"], []).append(line["value"])
        return found

    base = values(draw("subject", plain(0, 0, 1), "base"))
    assert base["style_text"] == [0] and "style_drift" not in base
    after = values(draw("subject", plain(1, 0, 0)), draw("class", plain(1, 0, 1)))
    # DINO .5 is the mean of 1 and 0; CLIP-T is 1, because it reads "a cat in the snow".
    assert after["clip_t"][0] == 1 and after["dino"][0] == 0.5
    assert after["style_text"][0] == pytest.approx(2 / 3, abs=1e-6)
    assert after["style_drift"] == [pytest.approx(0.5**1.5, abs=1e-6)]


def test_clip_reads_the_very_prompt_when_told_so():
    scorer = judges(prompts=(SNOW, BARE), text="prompt")
    assert scorer.score([sample(SNOW, plain(1, 0, 0))])[2]["clip_text"] == "a [V] cat in the snow"
    assert scorer.names["clip_text"] == "prompt"


def test_the_nearest_training_photo_is_named():
    scorer = judges()
    line = scorer.score([sample(BARE, plain(0, 4, 3))])[0]
    assert (line["nearest"], line["nearest_reference"]) == (0.8, 1)


def test_diversity_and_drift_have_their_closed_form():
    scorer = judges()

    def other(kind: str, seed: int, *rgb: int, stage: str = "embedding") -> Sample:
        return Sample(stage=stage, prompt="a cat", kind=kind, seed=seed, spec=BARE, image=plain(*rgb))

    def side_effects(*samples: Sample) -> list[tuple[str, float]]:
        lines = [line for line in scorer.score(samples) if line["scorer"] in ("diversity", "drift")]
        return [(line["scorer"], line["value"]) for line in lines]

    priors = [other("prior", 0, 1, 0, 0), other("prior", 1, 1, 0, 0), other("prior", 2, 0, 1, 0)]
    moved = other("unrelated", 0, 3, 4, 0)
    assert side_effects(moved) == []  # nothing to compare with yet
    assert side_effects(other("unrelated", 0, 1, 0, 0, stage="base")) == []
    found = side_effects(moved, *priors)
    assert found == [("diversity", 0.5), ("diversity", 0.5), ("diversity", 1.0), ("drift", 0.4)]
    assert side_effects(priors[0]) == []
    with pytest.raises(ValueError, match="needs at least 2; got 1"):
        similarity_between(torch.ones(1, 3))


def test_the_evaluation_transform_of_dinos_authors_is_named(tiny_scorer_dir):
    dino = DinoScorer(tiny_scorer_dir / "dino")
    assert dino.preprocessing.startswith("shorter side 32, bicubic, centre crop 32x32")
    fixed = ImagePreprocessor.resize_256_crop_224()
    assert fixed([picture(0, (300, 200))]).shape == (1, 3, 224, 224)
    assert fixed.describe().startswith("shorter side 256, bicubic, centre crop 224x224, times 0.00392157")


def test_scores_of_the_same_image_replace_each_other(tmp_path):
    path = tmp_path / "scores.jsonl"
    line = {"stage": "base", "kind": "subject", "prompt": "a cät", "seed": 0, "scorer": "dino", "value": 0.1}
    assert merge_scores(path, [line, {**line, "seed": 1}]) == 2
    assert merge_scores(path, [{**line, "value": 0.2}]) == 2
    assert [found["value"] for found in read_scores(path)] == [0.2, 0.1]
    odd = {**line, "prompt": "a cat\u2028in \x85 the \x0b snow"}  # `splitlines` would split all of these
    assert merge_scores(path, [odd]) == 3 and read_scores(path)[-1] == odd
    path.write_text("")
    assert read_scores(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["scores.jsonl"]


NAN = '{"stage": "base", "kind": "subject", "prompt": "a", "seed": 0, "scorer": "dino", "value": NaN}'


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"stage": "base"}', '{"stage": "base", "value": "x"}', NAN, "3"]
)
def test_a_damaged_score_file_names_the_line(text, tmp_path):
    (tmp_path / "scores.jsonl").write_text(text + "\n")
    with pytest.raises(
        ValueError, match=r"line 1: not a score.*delete the file and run the same command again"
    ):
        read_scores(tmp_path / "scores.jsonl")


def test_errors_of_folders_say_what_to_do(tiny_scorer_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder /nowhere/clip; give a folder, a hub id"):
        resolve_folder("/nowhere/clip")
    with pytest.raises(FileNotFoundError, match="no folder package://nano/nothing; give"):
        resolve_folder("package://nano/nothing")
    with pytest.raises(FileNotFoundError, match=r"contains neither model\.safetensors"):
        ClipScorer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json does not exist"):
        (tmp_path / "model.safetensors").write_bytes(
            (tiny_scorer_dir / "clip" / "model.safetensors").read_bytes()
        )
        ClipScorer(tmp_path)


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"^owner/name@abc .* cannot be reached.* give a folder"):
        resolve_folder("owner/name@abc")


def test_a_licence_to_accept_is_named(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    refused = Mock(side_effect=GatedRepoError("403", response=Mock()))
    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(
        FileNotFoundError,
        match=r"\(https://huggingface\.co/owner/name\) asks .* there, then log in",
    ):
        resolve_folder("owner/name@abc")


def test_missing_tensors_are_an_error_not_noise(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_tiny_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing .*visual_projection\.weight"):
        ClipScorer(folder)
