"""Published formats through the one backend class: Lumina-mGPT, Anole, Chameleon, and how each is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend
from conftest_upstream import (
    ANOLE,
    LUMINA,
    is_norm,
    lumina_backend,
    lumina_tokenizer,
    replace_tensors,
    save_anole,
    tensors_of,
    transformers_model,
)

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.model_files import ChameleonFiles, open_folder
from personalar.models.chameleon.vq_checkpoint import vq_config
from personalar.models.network.vq import VQConfig

PROMPT = "a red cat in the snow"


@pytest.fixture(scope="module")
def lumina(lumina_files: ChameleonFiles) -> ChameleonBackend:
    return load_backend(lumina_files)


def test_a_lumina_checkpoint_loads_with_expanded_norms(lumina: ChameleonBackend, lumina_dir: Path) -> None:
    ours, stored = lumina_backend().state_dict(), tensors_of(lumina_dir)
    assert stored["model.layers.1.self_attn.q_norm.weight"].shape == (1, 16)
    norm = lumina.transformer.model.layers[1].self_attn.q_norm
    assert norm.weight.shape == (4, 16) and not torch.equal(norm.weight, torch.ones(4, 16))
    assert norm.bias.abs().sum() > 0
    for name, tensor in lumina.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
    assert not any("vqmodel" in name for name in stored)


def transformers_twin(folder: Path, rows: list[int]):
    """Return transformers' own class with the weights of `folder`; head i has row `rows[i]` of the norms."""
    state = {name: tensor[rows] if is_norm(name) else tensor for name, tensor in tensors_of(folder).items()}
    return transformers_model(json.loads((folder / "config.json").read_text()), state)


def test_its_logits_are_those_of_transformers(lumina: ChameleonBackend, lumina_dir: Path) -> None:
    """The oracle: transformers' own modules with the norms repeated by hand."""
    theirs = transformers_twin(lumina_dir, [0, 0, 0, 0])
    codes = torch.arange(8).view(2, 4)
    ids = torch.tensor([lumina.training_sequence(PROMPT, codes, loss="answer").ids])
    with torch.no_grad():
        expected = theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)
        masked = theirs(input_ids=ids).logits
    got = lumina.transformer.logits(lumina(lumina.embed(ids)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    rows = lumina.tokenizer.image_rows
    assert got[..., rows].isfinite().all() and got[..., rows].min() > -1e3
    assert masked[..., rows].max() < -1e30  # why their class can neither draw nor learn images


@pytest.fixture
def two_rows_dir(lumina_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint that two model-parallel shards wrote: norms (2, 16) for four heads."""
    folder, generator = Path(shutil.copytree(lumina_dir, tmp_path / "two")), torch.Generator().manual_seed(1)
    tensors = tensors_of(lumina_dir)
    for name in filter(is_norm, tensors):
        tensors[name] = torch.cat((tensors[name], torch.randn(1, 16, generator=generator)))
    replace_tensors(folder, tensors)
    return folder


def test_heads_of_one_shard_share_its_row(two_rows_dir: Path, vqgan_dir: Path) -> None:
    """Upstream repeats each shard's row for all heads of that shard, which are neighbours."""
    ours = load_backend(open_folder(two_rows_dir, vq=vqgan_dir, layout=LUMINA))
    stored = tensors_of(two_rows_dir)
    for name, tensor in ours.transformer.state_dict().items():
        if is_norm(name):
            assert stored[name].shape == (2, 16) and not torch.equal(*stored[name])
            assert torch.equal(tensor, stored[name][[0, 0, 1, 1]]), name
    ids = torch.tensor([ours.training_sequence(PROMPT, torch.arange(8).view(2, 4), loss="answer").ids])
    got = ours(ours.embed(ids))
    with torch.no_grad():
        shards, turns = (
            transformers_twin(two_rows_dir, rows).model(input_ids=ids).last_hidden_state
            for rows in ([0, 0, 1, 1], [0, 1, 0, 1])
        )
    torch.testing.assert_close(got, shards, atol=1e-5, rtol=1e-5)
    assert (got - turns).abs().max() > 0.01  # the other way to repeat them is another model


def test_the_loss_on_image_labels_is_finite_where_theirs_is_not(
    lumina: ChameleonBackend, lumina_dir: Path
) -> None:
    from personalar.concepts.adapters.identifier import Identifier
    from personalar.data.stream import collate
    from personalar.training.module import sequence_loss

    identifier = Identifier(tokens={"[V]": lumina.tokenizer.concept_ids[0]}, rows=torch.zeros(1, 64))
    theirs = transformers_twin(lumina_dir, [0, 0, 0, 0])
    for loss in ("image_tokens", "answer"):
        sequence = lumina.training_sequence(PROMPT, torch.arange(16).view(4, 4), loss=loss)
        batch = collate([sequence], pad=lumina.tokenizer.pad)
        assert sequence_loss(lumina, identifier, batch, loss=loss, z_loss=1e-5).isfinite()
        labels = batch["ids"].masked_fill(~batch["loss_mask"], -100)
        with torch.no_grad():
            assert theirs(input_ids=batch["ids"], labels=labels).loss == float("inf")
            logits = theirs.lm_head(theirs.model(input_ids=batch["ids"]).last_hidden_state)
    # On all of the answer theirs is ours but for their mask of the image codes.
    unmasked = theirs.loss_function(logits, labels, vocab_size=logits.shape[-1])
    ours = sequence_loss(lumina, identifier, batch, loss="answer", z_loss=0.0)
    torch.testing.assert_close(ours, unmasked, atol=1e-5, rtol=1e-5)


def test_golden_ids_of_the_real_vocabulary() -> None:
    t = lumina_tokenizer()
    assert (t.bos, t.pad, t.boi, t.eoi, t.sep, t.newline) == (0, 1, 8197, 8196, 8710, 8803)
    assert (t.image_rows, t.size_id(1), t.size_id(16), t.size_id(64)) == (slice(4, 8196), 8805, 8820, 8868)
    assert t.concept_ids[0] == 9008
    assert min(t.encode_text(PROMPT)) >= len(t.concept_ids) + 9008


def test_every_part_is_found_wherever_upstream_keeps_it(
    lumina_dir: Path, vqgan_dir: Path, tmp_path: Path
) -> None:
    assert open_folder(lumina_dir, vq=vqgan_dir / "vqgan.ckpt", layout=LUMINA).vq == vqgan_dir
    assert open_folder(lumina_dir, vq=vqgan_dir.parent, layout=LUMINA).vq == vqgan_dir
    for place in ("original_tokenizers", "tokenizer", "."):
        folder = Path(shutil.copytree(lumina_dir, tmp_path / place.replace(".", "top")))
        (folder / place).mkdir(exist_ok=True)
        shutil.copyfile(vqgan_dir / "vqgan.ckpt", folder / place / "vqgan.ckpt")
        files = open_folder(folder, layout=LUMINA)
        assert files.vq == folder / place and not files.missing()
    assert [file.suffix for file in files.weights()] == [".safetensors"] * 3 + [".ckpt"]


def test_a_published_folder_needs_its_layout(lumina_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no model\.layout; for a published checkpoint choose"):
        open_folder(lumina_dir)
    with pytest.raises(FileNotFoundError, match=r"no image tokenizer at .*set model\.vq_path"):
        open_folder(lumina_dir, vq=tmp_path / "nowhere", layout=LUMINA)


def test_an_anole_checkpoint_brings_its_image_tokenizer(tmp_path: Path) -> None:
    anole = load_backend(open_folder(save_anole(tmp_path), layout=ANOLE))
    ours = lumina_backend().state_dict()
    for name, tensor in anole.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_chameleon_without_decoder_says_so(tmp_path: Path, vqgan_dir: Path) -> None:
    folder = save_anole(tmp_path, decoder=False)
    with pytest.raises(ValueError, match=r"has no decoder, .*facebook/chameleon-7b.*set model\.vq_path"):
        load_backend(open_folder(folder, layout=ANOLE))
    backend = load_backend(open_folder(folder, vq=vqgan_dir, layout=ANOLE))  # the way out that it names
    assert backend.decode_images(torch.zeros(1, 4, 4, dtype=torch.int64)).shape == (1, 3, 64, 64)


def test_a_lumina_checkpoint_alone_has_no_image_tokenizer(lumina_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lumina_dir, tmp_path / "base"))
    replace_tensors(folder, {"model.norm.weight": torch.zeros(1)})  # it is told before these are read
    with pytest.raises(ValueError, match=r"contains no image tokenizer .*like all .*Lumina-mGPT"):
        load_backend(open_folder(folder, layout=LUMINA))


def test_norms_of_another_number_are_refused_not_reinitialised(
    lumina_dir: Path, vqgan_dir: Path, tmp_path: Path
) -> None:
    folder, name = Path(shutil.copytree(lumina_dir, tmp_path / "m")), "model.layers.0.self_attn.k_norm.weight"
    replace_tensors(folder, tensors_of(lumina_dir) | {name: torch.ones(3, 16)})
    with pytest.raises(
        ValueError, match=r"1 of another shape: .*k_norm.weight \[3, 16\] instead of \[4, 16\]"
    ):
        load_backend(open_folder(folder, vq=vqgan_dir, layout=LUMINA))


def test_a_vqgan_checkpoint_alone_has_the_sizes_of_metas(vqgan_dir: Path, tmp_path: Path) -> None:
    assert vq_config(vqgan_dir) == lumina_backend().vq.config
    shutil.copyfile(vqgan_dir / "vqgan.ckpt", tmp_path / "vqgan.ckpt")
    assert vq_config(tmp_path) == VQConfig()


class Gadget:
    """What a pickle may hold besides tensors."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"decoder.x": Gadget()}}, "cannot be read with weights_only=True"),
        ({"state_dict": {"decoder.x": 3}}, "contains no state_dict of tensors"),
        ([1], "contains no state_dict of tensors"),
        ({"state_dict": {"encoder.conv_in.weight": torch.zeros(1)}}, "has no decoder"),
        ({"state_dict": {"decoder.x": torch.zeros(1)}}, r"missing: .*1 unexpected: decoder\.x"),
    ],
)
def test_a_wrong_vqgan_checkpoint(
    content: object, message: str, vqgan_dir: Path, lumina_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vqgan_dir, tmp_path / "vq"))
    torch.save(content, folder / "vqgan.ckpt")
    with pytest.raises(ValueError, match=message):
        load_backend(open_folder(lumina_dir, vq=folder, layout=LUMINA))


def test_codes_must_have_the_ids_that_the_checkpoint_says(
    lumina_dir: Path, vqgan_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lumina_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    assert config["vocabulary_map"]["IMGIMGIBJBZ"] == 8195
    config["vocabulary_map"]["IMGIMGFDZ"] = 58
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="IMGIMGFDZ is 57, not 58"):
        load_backend(open_folder(folder, vq=vqgan_dir, layout=LUMINA))
    other = ProtocolConfig(resolution=64, ids={"<eoss>": 8196, "<reserved08706>": 8711, "<nothing>": 1})
    with pytest.raises(
        ValueError, match=r"not the one .*: <reserved08706> is 8710, not 8711; <nothing> is None"
    ):
        load_backend(open_folder(lumina_dir, vq=vqgan_dir, layout=other))
