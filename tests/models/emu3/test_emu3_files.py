"""Emu3 checkpoints on disk: each published set of names, what is refused, and back again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_emu3 import (
    LAYOUT,
    emu3_model,
    emu3_tokenizer_json,
    save_as_in_memory,
    save_original,
)
from conftest_run import compose_config
from PIL import Image
from safetensors.torch import load_file, save_file

from personalar.core.image_sizes import fit
from personalar.data.references import save_references
from personalar.models.emu3 import open_folder
from personalar.models.emu3.emu3_files import RANKS, VISION_TOKENS, Emu3Files
from personalar.models.emu3.emu3_vocabulary import PAD, Emu3Vocabulary, code_name, extra
from personalar.models.emu3.emu3_weights import Emu3Config
from personalar.models.emu3.one_frame_vq import OneFrameVQConfig
from personalar.models.loading import offline_model


def load(files: Emu3Files, dtype: torch.dtype = torch.float32) -> Any:
    return files.load(dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BAAI's format; do not write into it."""
    return save_original(tmp_path_factory.mktemp("emu3_original") / "model")


def test_every_published_set_of_names_loads_to_the_same_base(
    emu3_backend: Any, emu3_dir: Path, original: Path, tmp_path: Path
) -> None:
    state = emu3_backend.state_dict()
    vq = Path(shutil.copytree(original / "vq", tmp_path / "apart"))
    for files in (
        open_folder(save_as_in_memory(tmp_path / "memory", emu3_dir), layout=LAYOUT),
        open_folder(original, layout=LAYOUT),
        open_folder(original, vq=vq, layout=LAYOUT),
    ):
        other = load(files)
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())
        assert not files.missing() and len(files.weights()) == len({files.base, files.vq})
        for text in ("a close-up cat, DON'T", "cafe\N{COMBINING ACUTE ACCENT} don't"):
            assert other.encode_text(text) == emu3_backend.encode_text(text)


def test_float32_files_become_bfloat16_and_the_image_tokenizer_does_not(original: Path) -> None:
    base = load(open_folder(original, layout=LAYOUT), torch.bfloat16)
    assert {tensor.dtype for tensor in base.transformer.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in base.vq.parameters()} == {torch.float32}
    stored = load_file(original / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(base.blocks[0].mlp.up_proj.weight, stored.bfloat16())


def test_numbers_of_the_published_model() -> None:
    numbers = Emu3Config.from_hf({"model_type": "Emu3"})
    assert (numbers.vocab_size, numbers.num_key_value_heads, numbers.intermediate_size) == (184622, 8, 14336)
    assert (numbers.rms_norm_eps, numbers.rope_theta, numbers.max_position_embeddings) == (1e-5, 1e6, 9216)
    with torch.device("meta"):
        network, vq = numbers.build(), OneFrameVQConfig().build()

    def millions(part: torch.nn.Module) -> float:
        return round(sum(parameter.numel() for parameter in part.parameters()) / 1e6, 2)

    assert millions(network) == 8492.01
    assert (millions(vq), millions(vq.encoder), millions(vq.decoder)) == (270.74, 109.49, 161.12)
    assert len(vq.state_dict()) == 495


def changed(folder: Path, tmp_path: Path, change: Callable[[dict], object], part: str = "") -> Emu3Files:
    """Return a copy of BAAI's format with other tensors."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / part / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    return open_folder(copy, layout=LAYOUT)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", lambda state: state.pop("lm_head.weight"), r"1 missing: lm_head\.weight"),
        ("vq", lambda state: state.pop("decoder.norm_out.conv_y.bias"), r"decoder\.norm_out\.conv_y\.bias"),
        ("vq", lambda state: state.pop("encoder.time_res_stack.0.norm1.running_mean"), "running_mean"),
        ("vq", lambda state: state.update({"quantize.embedding.weight": torch.zeros(3, 4)}), "instead of"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    part: str, change: Callable[[dict], object], message: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load(changed(original, tmp_path, change, part))


def test_a_folder_of_another_family_or_without_a_part_is_refused(
    janus_dir: Path, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model_type='janus', which is not an Emu3"):
        load(open_folder(janus_dir, layout=LAYOUT))
    with pytest.raises(ValueError, match="tie_word_embeddings=true; Emu3 needs it false"):
        Emu3Config.from_hf({"model_type": "emu3", "tie_word_embeddings": True})
    alone = Path(shutil.copytree(original, tmp_path / "alone", ignore=shutil.ignore_patterns("vq")))
    with pytest.raises(ValueError, match=r"contains no image tokenizer .* copy of BAAI/Emu3-VisionTokenizer"):
        load(open_folder(alone, layout=LAYOUT))
    (alone / VISION_TOKENS).unlink()
    assert open_folder(alone, layout=LAYOUT).missing() == [str(alone / VISION_TOKENS)]
    other = replace(LAYOUT, ids={extra(203): 151849})
    with pytest.raises(ValueError, match=r"not the one that the model was trained with: .*, not 151849"):
        load(open_folder(original, layout=other))


def test_numbers_of_no_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="embed_dim=8 and latent_channels=4 must be equal"):
        OneFrameVQConfig(embed_dim=8)
    with pytest.raises(ValueError, match="temporal_downsample_factor=3 must be a power of 2"):
        OneFrameVQConfig(temporal_downsample_factor=3)


@pytest.mark.parametrize("name", [PAD, extra(200), extra(203), "<|image start|>", code_name(0)])
def test_a_vocabulary_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(emu3_tokenizer_json().replace(json.dumps(name), '"<|gone|>"'))
    with pytest.raises(ValueError, match="not the vocabulary of a BAAI Emu3 model"):
        Emu3Vocabulary.from_file(file)


def test_codes_must_be_one_block(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(emu3_tokenizer_json().replace(code_name(5), code_name(500)))
    with pytest.raises(
        ValueError, match=r"image code 5 .* has id None, expected .*: codes must be one block"
    ):
        Emu3Vocabulary.from_file(file)


def test_a_damaged_list_of_ranks_is_refused(original: Path, tmp_path: Path) -> None:
    (tmp_path / RANKS).write_text("no base64!\n" + (original / RANKS).read_text())
    shutil.copyfile(original / VISION_TOKENS, tmp_path / VISION_TOKENS)
    with pytest.raises(ValueError, match="is not a tiktoken file"):
        Emu3Vocabulary.from_file(tmp_path / RANKS)


def test_a_missing_file_of_words_is_named(original: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no tokenizer at .*; a model folder needs {RANKS}"):
        Emu3Vocabulary.from_file(tmp_path / RANKS)
    shutil.copyfile(original / RANKS, tmp_path / RANKS)
    with pytest.raises(FileNotFoundError, match=f"{VISION_TOKENS} is missing; {RANKS} needs it"):
        Emu3Vocabulary.from_file(tmp_path / RANKS)


def test_a_vocabulary_of_another_model_is_refused(emu3_dir: Path, original: Path, tmp_path: Path) -> None:
    fewer = {"lm_head.weight": torch.zeros(400, 64), "model.embed_tokens.weight": torch.zeros(400, 64)}
    files = changed(original, tmp_path, lambda state: state.update(fewer))
    config = json.loads((files.base / "config.json").read_text())
    (files.base / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    with pytest.raises(ValueError, match="the tokenizer has 580 ids, the model embeds only 400"):
        load(files)
    text = emu3_tokenizer_json().replace(code_name(63), "<|another|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="names 63 image codes, the image tokenizer has 64"):
        load(open_folder(emu3_dir, layout=LAYOUT, tokenizer=tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (None, "do not contain its layout: choose model=emu3_gen"),
        (replace(LAYOUT, resize="cover"), "layout.resize='cover'; allowed: area"),
        (replace(LAYOUT, buckets="aspect"), "layout.buckets='aspect'; allowed: area"),
        (replace(LAYOUT, unconditional="pad"), "layout.unconditional='pad'; allowed: negative"),
        (replace(LAYOUT, structure="flat"), "layout.structure='flat'; allowed: rows"),
        (replace(LAYOUT, negative_prompt=""), "needs layout.negative_prompt; or choose bos"),
    ],
)
def test_a_layout_that_emu3_does_not_have_is_refused(layout: Any, message: str, emu3_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(emu3_dir, layout=layout)


def test_a_folder_that_is_not_there_is_named_with_its_setting(emu3_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*gone; set model.path"):
        open_folder(tmp_path / "gone", layout=LAYOUT)
    with pytest.raises(FileNotFoundError, match=r"no folder at .*gone; set model.vq_path"):
        open_folder(emu3_dir, vq=tmp_path / "gone", layout=LAYOUT)


def test_a_folder_without_words_names_the_file_that_baai_publishes(original: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(original, tmp_path / "alone"))
    (alone / RANKS).unlink()
    config = compose_config("+subject=cat", "model=emu3_gen", f"model.path={alone}").model
    with pytest.raises(FileNotFoundError, match=rf"hf download BAAI/Emu3-Gen {RANKS} "):
        offline_model(config)


def test_a_checkpoint_in_bfloat16_keeps_its_image_tokenizer(emu3_dir: Path, tmp_path: Path) -> None:
    files = open_folder(emu3_dir, layout=LAYOUT)
    out = files.write_checkpoint(load(files), tmp_path / "out", dtype=torch.bfloat16)
    stored, before = (load_file(next(folder.glob("*.safetensors"))) for folder in (out, emu3_dir))
    for name, tensor in before.items():
        expected = tensor if files.network_name(name) is None else tensor.bfloat16()
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name], expected)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_photo_is_resized_to_its_area_without_a_crop(emu3_dir: Path, tmp_path: Path) -> None:
    """To the size that is also said and shown before the training."""
    layout = replace(LAYOUT, resolution=160)
    base = load(open_folder(emu3_dir, layout=layout))
    photo = Image.effect_noise((403, 301), 60).convert("RGB")
    assert base.best_size(photo) == (184, 136) == fit(photo.size, layout.sizes).size
    expected = torch.tensor(list(photo.resize((184, 136), Image.Resampling.BICUBIC).tobytes()))
    pixels = (base.preprocess(photo) * 255).round().long()
    assert torch.equal(pixels.permute(1, 2, 0).flatten(), expected)
    assert base.preprocess(photo, size=(160, 160)).shape == (3, 160, 160)  # cropped, as the shape is another
    save_references(tmp_path, [photo], layout)
    assert not (tmp_path / "cropped").exists()


@pytest.mark.parametrize("form", ["hf", "original"])
def test_a_checkpoint_goes_back_under_the_names_of_the_base(
    form: str, emu3_dir: Path, original: Path, tmp_path: Path
) -> None:
    source = emu3_dir if form == "hf" else original
    files = open_folder(source, layout=LAYOUT)
    learned = load(files)
    with torch.no_grad():
        learned.word_table[learned.reserved_ids[0]] = 7.0
        learned.blocks[0].self_attn.q_proj.weight.add_(1.0)
    out = files.write_checkpoint(learned, tmp_path / "out", dtype=torch.float32)
    again = load(open_folder(out, vq=None if form == "hf" else original / "vq", layout=LAYOUT)).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in learned.state_dict().items())
    stored, before = (load_file(next(folder.glob("*.safetensors"))) for folder in (out, source))
    differ = [key for key in before if not torch.equal(stored[key], before[key])]
    assert stored.keys() == before.keys() and len(differ) == 2
    assert {tensor.dtype for tensor in stored.values()} == {tensor.dtype for tensor in before.values()}
    if form == "hf":
        type(emu3_model()).from_pretrained(out)
