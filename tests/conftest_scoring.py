"""Tiny random CLIP and ViT folders in the real Hugging Face formats. Imported by conftest.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

SCORER_PX = 32
WORDS = [
    "a",
    "cat",
    "dog",
    "in",
    "the",
    "snow",
    "on",
    "beach",
    "wearing",
    "red",
    "blue",
    "hat",
    "scarf",
    "photo",
    "of",
]


def _preprocessor(folder: Path) -> None:
    config = {
        "do_resize": True,
        "size": {"shortest_edge": SCORER_PX},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SCORER_PX, "width": SCORER_PX},
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def _tokenizer(folder: Path) -> None:
    """A word-level tokenizer in the `tokenizer.json` format; texts end with <end>, where CLIP pools."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<start>", "<end>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "pad_token": "<end>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a random `CLIPModel` with tokenizer and preprocessor to `folder`."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**tower, "image_size": SCORER_PX, "patch_size": 8}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    _preprocessor(folder)
    _tokenizer(folder)
    return folder


def make_tiny_dino(folder: Path, seed: int = 0) -> Path:
    """Write a random `ViTModel` with preprocessor to `folder`, without the pooler, like DINO's."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SCORER_PX,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    _preprocessor(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_scorer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip/` and `dino/`, random and tiny."""
    folder = tmp_path_factory.mktemp("tiny_scorers")
    make_tiny_clip(folder / "clip")
    make_tiny_dino(folder / "dino")
    return folder
