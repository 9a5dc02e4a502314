"""Janus checkpoints on disk: each published set of names, what is refused, and back again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_janus import (
    LAYOUT,
    janus_model,
    janus_tokenizer_json,
    original_state,
    save_hf,
    save_original,
)
from conftest_run import compose_config
from conftest_upstream import LUMINA
from safetensors.torch import load_file

from personalar.models import chameleon
from personalar.models.janus import janus_weights, open_folder
from personalar.models.janus.janus_files import JanusFiles
from personalar.models.janus.vocabulary import BEGIN_OF_IMAGE, BOS, PAD, JanusVocabulary
from personalar.models.loading import offline_model
from personalar.models.network.vq import VQModel


def load(files: JanusFiles, dtype: torch.dtype = torch.float32) -> Any:
    return files.load(dtype=dtype, device="cpu")


def test_every_published_set_of_names_loads_to_the_same_base(
    janus_backend: Any, janus_dir: Path, tmp_path: Path, tiny_vq_16: Callable[[], None]
) -> None:
    state = janus_backend.state_dict()
    tied = save_hf(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    folders = [save_original(tmp_path / f"original{n}", janus_dir, shards=n) for n in (1, 3)]
    single = tmp_path / "original1"
    (single / "pytorch_model-00001-of-00001.bin").rename(single / "pytorch_model.bin")
    (single / "pytorch_model.bin.index.json").unlink()
    for folder in folders:
        other = load(open_folder(folder, layout=LAYOUT)).state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    model = janus_model(tied=True)
    first = model.model.language_model.embed_tokens.weight
    assert torch.equal(load(open_folder(tied, layout=LAYOUT)).word_table, first)


class Foreign:
    """An object that a checkpoint must not contain."""


def without_head(state: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith("gen_head.")]:
        del state[name]


def original(tmp_path: Path, janus_dir: Path, change: Callable[[dict], object]) -> JanusFiles:
    folder, state = save_original(tmp_path / "original", janus_dir, shards=1), original_state(janus_dir)
    change(state)
    torch.save(state, folder / "pytorch_model-00001-of-00001.bin")
    return open_folder(folder, layout=LAYOUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(extra=Foreign()), "cannot be read with weights_only=True"),
        (lambda state: state.pop("language_model.model.norm.weight"), r"1 missing: model\.norm\.weight"),
        (lambda state: state.pop("gen_aligner.layers.0.bias"), r"1 missing: generation_aligner\.fc1\.bias"),
        (lambda state: state.update({"gen_aligner.layers.4.bias": torch.zeros(1)}), "1 unexpected"),
        (without_head, "contains no image head"),
        (lambda state: state.update({"gen_head.vision_head.bias": torch.zeros(3)}), "instead of"),
        (lambda state: state.pop("gen_vision_model.decoder.mid.1.q.bias"), r"decoder\.mid\.attn_1\.q\.bias"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused(
    change: Callable[[dict], object], message: str, janus_dir: Path, tmp_path: Path, tiny_vq_16: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        load(original(tmp_path, janus_dir, change))


def copied(janus_dir: Path, tmp_path: Path, **changes: Any) -> JanusFiles:
    folder = Path(shutil.copytree(janus_dir, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return open_folder(folder, layout=LAYOUT)


def test_a_folder_of_another_family_size_or_without_a_name_is_refused(
    janus_dir: Path, lumina_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model_type='chameleon', which is not a Janus"):
        load(open_folder(lumina_dir, layout=LAYOUT))
    files = copied(janus_dir, tmp_path, text_config={"hidden_size": 32, "num_attention_heads": 4})
    with pytest.raises(ValueError, match=r"generation_aligner\.fc1\.weight \[64, 8\] instead of \[32, 8\]"):
        load(files)
    bigger = replace(LAYOUT, ids={PAD: 302, BEGIN_OF_IMAGE: 303})
    with pytest.raises(ValueError, match=r"not the one that the model was trained with: .* is 289, not 302"):
        load(open_folder(janus_dir, layout=bigger))
    for name in (BOS, PAD, BEGIN_OF_IMAGE, "<|User|>"):
        text = janus_tokenizer_json().replace(json.dumps(name, ensure_ascii=False), '"gone"')
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="not the vocabulary of a Janus model"):
            load(open_folder(janus_dir, layout=LAYOUT, tokenizer=tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no row is left for"):
        JanusVocabulary.from_file(janus_dir / "tokenizer.json").unnamed_ids(290)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vq": Path("x")}, "model.vq_path=x cannot be used"),
        ({"layout": None}, "do not contain its layout: choose model=janus_pro_1b"),
        (
            {"layout": replace(LAYOUT, resize="halving")},
            "invalid value layout.resize='halving'; allowed: cover",
        ),
    ],
)
def test_a_layout_that_janus_does_not_have_is_refused(arguments: dict, message: str, janus_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(janus_dir, **{"layout": LAYOUT, **arguments})


def test_a_loss_that_janus_does_not_have_is_refused(janus_dir: Path) -> None:
    words = ("+subject=cat", "model=janus_pro_1b", f"model.path={janus_dir}", "model.recipe.loss=answer")
    with pytest.raises(ValueError, match="predicts only image codes; allowed: image_tokens"):
        offline_model(compose_config(*words).model)


def test_numbers_that_a_published_config_leaves_out(tmp_path: Path) -> None:
    """The 7B's config.json names three numbers of its language model; the rest are LlamaConfig's."""
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "multi_modality",
        "language_config": {"max_position_embeddings": 16384, "num_hidden_layers": 30, "vocab_size": 102400},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_head_config": {"params": {"image_token_embed": 4096, "n_embed": 4096}},
    }))  # fmt: skip
    network, vq = janus_weights.read_numbers(tmp_path / "config.json", resolution=384)
    assert (network.hidden_size, network.intermediate_size, network.num_attention_heads) == (4096, 11008, 32)
    assert (network.rms_norm_eps, network.rope_theta, network.vocab_size) == (1e-6, 1e4, 102400)
    assert (network.head_size, network.num_codes, vq.downsample) == (4096, 16384, 16)
    assert vq.attn_resolutions == (24,)
    with torch.device("meta"):
        assert round(sum(p.numel() for p in VQModel(vq).parameters()) / 1e6, 2) == 71.88


def test_a_checkpoint_goes_back_under_the_names_of_the_base(
    janus_backend: Any, janus_dir: Path, tmp_path: Path, tiny_vq_16: Any
) -> None:
    for name, folder in (("hf", janus_dir), ("original", save_original(tmp_path / "original", janus_dir))):
        files = open_folder(folder, layout=LAYOUT)
        changed = load(files)
        with torch.no_grad():
            changed.word_table[639] = 7.0
            changed.blocks[0].self_attn.q_proj.weight.add_(1.0)
        written = files.write_checkpoint(changed, tmp_path / name / "out", dtype=torch.float32)
        again = load(open_folder(written, layout=LAYOUT)).state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in changed.state_dict().items())
    stored, before = (
        load_file(next((tmp_path / "hf" / "out").glob("*.safetensors"))),
        load_file(janus_dir / "model.safetensors"),
    )
    differ = [key for key in before if not torch.equal(stored[key], before[key])]
    assert stored.keys() == before.keys() and len(differ) == 2
    janus_model().__class__(janus_model().config).load_state_dict(stored, strict=True)


def test_a_janus_folder_is_not_a_chameleon(janus_dir: Path) -> None:
    with pytest.raises(ValueError, match="model_type='janus', which is not a Chameleon: choose the model="):
        chameleon.open_folder(janus_dir, layout=LUMINA).shape(images=1)
