"""Write Janus-Pro-1B with random weights in the format of transformers, with the published shapes and names.

The tokenizer has the published special tokens and ids, but bytes instead of words, so a prompt is a few dozen
tokens longer than usual.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

WORDS = 100_000
"""Ids below the first special token."""
SPECIAL = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<begin_of_image>",
    "<|User|>",
    "<|Assistant|>",
)


def janus_1b() -> JanusConfig:
    """Return the published shape."""
    text = LlamaConfig(
        vocab_size=102_400,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=16384,
    )
    return JanusConfig(text_config=text, tie_word_embeddings=False, dtype="bfloat16")


def write_tokenizer(path: Path) -> None:
    """Write a byte-level tokenizer whose special tokens have the published ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = (f"unused{i}" for i in range(WORDS - len(letters)))
    vocabulary = {token: index for index, token in enumerate([*letters, *unused])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.save(str(path))


def write_random(folder: Path) -> Path:
    """Write the checkpoint (4.2 GB) to `folder`, unless it exists; return `folder`."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = janus_1b()
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        tensors[name] = noise.add_(1.0) if is_norm else noise
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder / "tokenizer.json")
    # Last, because a folder with config.json counts as complete.
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    return folder
