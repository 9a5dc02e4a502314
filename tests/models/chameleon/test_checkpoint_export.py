"""What others make of an exported checkpoint: Lumina-mGPT's own code, and transformers with a picture.

The authors' code is stood for by its rules: the defaults of its config class, what it multiplies by
`model_parallel_size`, and when it masks image codes. Everything else is transformers' own class.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from conftest_backend import load_backend, make_backend, sharpen
from conftest_upstream import (
    ANOLE,
    LUMINA,
    NUMBERS,
    VQ_NUMBERS,
    is_norm,
    lumina_backend,
    lumina_tokenizer,
    save_anole,
    tensors_of,
    transformers_model,
)
from PIL import Image
from test_exchange import concept_on, export
from torch import Tensor

from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.model_files import open_folder
from personalar.models.chameleon.serialization import init_backend, save_backend, vocabulary_map
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.chameleon.transformer import TransformerConfig

AUTHORS_DEFAULTS = {
    "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "attention_dropout": 0.0, "dropout": 0.0, "model_parallel_size": 1,
    "swin_norm": False, "mask_image_logits": True,
}  # fmt: skip
SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def authors_logits(folder: Path, ids: Tensor) -> Tensor:
    """Return the logits (B, T, V) that Lumina-mGPT's own code computes from an exported folder."""
    stored = json.loads((folder / "config.json").read_text())
    told = {name: stored[name] for name in SHAPE}
    told |= {name: stored.get(name, default) for name, default in AUTHORS_DEFAULTS.items()}
    shards, masked = told.pop("model_parallel_size"), told.pop("mask_image_logits")
    assert told.pop("rope_scaling") is None and told.pop("dropout") == 0.0
    rope = {"rope_type": "default", "rope_theta": told.pop("rope_theta")}
    state = {n: tensor for n, tensor in tensors_of(folder).items() if "vqmodel" not in n}
    for name in filter(is_norm, state):
        heads = told["num_attention_heads" if "q_norm" in name else "num_key_value_heads"]
        assert len(state[name]) == shards, "its class has another shape"
        state[name] = state[name].repeat_interleave(heads // shards, dim=0)
    theirs = transformers_model({**told, "rope_parameters": rope, "vocabulary_map": {}}, state)
    with torch.no_grad():
        logits = theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state).float()
    if masked:
        codes = [index for name, index in stored["vocabulary_map"].items() if name.startswith("IMGIMG")]
        logits[..., codes] = torch.finfo(logits.dtype).min
    return logits


def exported(backend: ChameleonBackend, folder: Path) -> Path:
    """Save `backend` as a base, and return the checkpoint that is exported from it."""
    files = open_folder(save_backend(backend, folder / "base", dtype=torch.float32))
    return files.write_checkpoint(backend, folder / "out", dtype=torch.float32)


@pytest.mark.parametrize("numbers", [{}, {"rope_theta": 500.0, "swin_norm": True, "rms_norm_eps": 0.1}])
def test_the_authors_code_computes_our_logits(numbers: dict[str, object], tmp_path: Path) -> None:
    tokenizer = lumina_tokenizer()
    shape = TransformerConfig(vocab_size=tokenizer.vocab_size, **(NUMBERS | numbers))
    backend = init_backend(transformer=shape, vq=VQ_NUMBERS, tokenizer=tokenizer, layout=LUMINA, seed=0)
    sharpen(backend, 0)  # every head gets norms of its own
    backend.requires_grad_(False)
    ids = torch.tensor(
        [backend.training_sequence("a red cat", torch.arange(16).view(4, 4), loss="answer").ids]
    )
    ours = backend.transformer.logits(backend(backend.embed(ids)))
    theirs = authors_logits(exported(backend, tmp_path), ids)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def renamed(folder: Path, name: str) -> Path:
    """Call id 8711 `name` in the tokenizer of `folder`, where Meta has a reserved name."""
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<reserved08707>", name))
    return folder


@pytest.mark.parametrize(
    ("model", "name"), [("anole_7b", "<image>"), ("anole_7b", "<reserved08707>"), ("chameleon_7b", "<image>")]
)
def test_transformers_takes_a_picture(model: str, name: str, vqgan_dir: Path, tmp_path: Path) -> None:
    """Its processor and class, on an export of 512 px: 1024 placeholders for 1024 codes."""
    from transformers import ChameleonForConditionalGeneration, ChameleonProcessor, PreTrainedTokenizerFast
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    base = renamed(save_anole(tmp_path / "base", decoder=model == "anole_7b"), name)
    files = open_folder(base, vq=vqgan_dir, layout=ANOLE)
    tokens = {"[V]": lumina_backend().tokenizer.concept_ids[0]}
    concept_on(files, 64, tokens=tokens, rows=torch.ones(1, 64)).save(tmp_path / "concept")
    where = [f"model={model}", "model.dtype=float32", f"model.path={base}", f"model.vq_path={vqgan_dir}"]
    *_, folder, _ = export(tmp_path / "concept", tmp_path / "out", *where, "checkpoint=true")

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), sep_token="</s>")
    processor = ChameleonProcessor(ChameleonImageProcessorPil(), tokenizer, image_token=name)
    noise = np.random.default_rng(0).integers(0, 255, (600, 700, 3), dtype=np.uint8)
    inputs = processor(images=Image.fromarray(noise), text=f"a cat {name}", return_tensors="pt")
    ids = inputs["input_ids"]
    assert (ids == 8711).sum() == 1024
    theirs, loading = ChameleonForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    with torch.no_grad():
        expected = theirs.eval().model(**inputs).last_hidden_state

    ours = load_backend(folder)
    codes = ours.vq.encode(inputs["pixel_values"])
    assert codes.shape == (1, 32, 32)
    ids = ids.masked_scatter(ids == 8711, codes.flatten() + ours.code_offset)
    torch.testing.assert_close(ours(ours.embed(ids)), expected, atol=1e-4, rtol=1e-4)


def test_a_reply_in_words_ends_where_either_family_ends_it(tmp_path: Path) -> None:
    folder = exported(lumina_backend(), tmp_path)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2, 8710]


def test_a_small_vocabulary_has_no_placeholder_and_none_is_invented(tmp_path: Path) -> None:
    """BOI stands in prompts and images: in its place transformers would put a picture's codes."""
    from transformers import ChameleonForConditionalGeneration

    backend = make_backend()
    assert backend.tokenizer.image is None
    names = vocabulary_map(backend.tokenizer)
    assert "<image>" not in names and names["IMGIMGGDZ"] == backend.code_offset + 63
    for folder in (exported(backend, tmp_path), tmp_path / "base" / "base"):
        assert json.loads((folder / "config.json").read_text())["vocabulary_map"] == names
        assert ChameleonForConditionalGeneration.from_pretrained(folder).config.image_token_id is None


def test_the_placeholder_is_looked_up_by_either_name() -> None:
    tokenizer = lumina_tokenizer()
    assert tokenizer.image == vocabulary_map(tokenizer)["<image>"] == 8711
    text = tokenizer.to_json().replace("<reserved08707>", "<image>")
    assert Tokenizer(tokenizers.Tokenizer.from_str(text)).image == 8711
