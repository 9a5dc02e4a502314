"""Published files may hold more than is needed: strict in what is needed, tolerant in the rest.

What this program writes itself stays strict: `test_backend.py::test_wrong_tensors_are_all_named`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend
from conftest_upstream import ANOLE, LUMINA, lumina_backend, replace_tensors, save_anole, tensors_of

from personalar.models.chameleon.model_files import open_folder
from personalar.models.chameleon.vq_checkpoint import load_vq
from personalar.models.tensor_files import SHOWN

BUFFERS = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(SHOWN + 2)]


def with_buffers(lumina_dir: Path, folder: Path) -> Path:
    """A Lumina-mGPT checkpoint that another program wrote its buffers into."""
    shutil.copytree(lumina_dir, folder)
    replace_tensors(folder, tensors_of(lumina_dir) | {name: torch.ones(8) for name in BUFFERS[:2]})
    return folder


def test_other_tensors_in_published_files_are_ignored_and_named(
    lumina_dir: Path, vqgan_dir: Path, tmp_path: Path
) -> None:
    """What a trainer or another program left: the model is the same, and a note names it."""
    vq = Path(shutil.copytree(vqgan_dir, tmp_path / "vq"))
    base = with_buffers(lumina_dir, tmp_path / "base")
    held = torch.load(vq / "vqgan.ckpt", weights_only=True)
    held["state_dict"] |= {"custom_layer.0.weight": torch.zeros(2, 3), "epoch": 3}
    torch.save(held, vq / "vqgan.ckpt")
    with pytest.warns(UserWarning) as caught:
        backend = load_backend(open_folder(base, vq=vq, layout=LUMINA))
    told = [str(one.message) for one in caught]
    assert told == [
        f"{vq / 'vqgan.ckpt'} contains unknown tensors, which are ignored: custom_layer.0.weight",
        f"{base} contains unknown tensors, which are ignored: {', '.join(BUFFERS[:2])}",
    ]
    ours = lumina_backend().state_dict()
    assert ours.keys() == backend.state_dict().keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in backend.state_dict().items())


def test_other_tensors_beside_anoles_image_tokenizer_are_ignored(tmp_path: Path) -> None:
    folder = save_anole(tmp_path)
    replace_tensors(folder, tensors_of(folder) | {"model.vqmodel.custom_layer.weight": torch.zeros(1)})
    with pytest.warns(UserWarning, match=r"which are ignored: custom_layer\.weight"):
        load_backend(open_folder(folder, layout=ANOLE))


@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_what_is_needed_of_vqgan_is_all_there(
    vqgan_dir: Path, lumina_dir: Path, tmp_path: Path, damage: str
) -> None:
    """Each tensor, one by one, whatever else the file holds."""
    folder = Path(shutil.copytree(vqgan_dir, tmp_path / "vq"))
    state = torch.load(vqgan_dir / "vqgan.ckpt", weights_only=True)["state_dict"]
    needed = lumina_backend().vq.state_dict().keys()
    for name in ("decoder.conv_out.bias", "quantize.embedding.weight", "encoder.conv_in.weight"):
        assert name in needed
        other = {"missing": {}, "of another shape": {name: torch.zeros(7)}}[damage]
        kept = {n: t for n, t in state.items() if n != name} | other | {"custom_layer.weight": torch.zeros(1)}
        torch.save({"state_dict": kept}, folder / "vqgan.ckpt")
        with pytest.raises(ValueError, match=f"1 {damage}: {name}"):
            load_vq(folder, device=torch.device("cpu"))


def test_a_long_list_is_cut(lumina_dir: Path, vqgan_dir: Path, tmp_path: Path) -> None:
    folder = with_buffers(lumina_dir, tmp_path / "base")
    replace_tensors(folder, tensors_of(lumina_dir) | {name: torch.ones(8) for name in BUFFERS})
    with pytest.warns(UserWarning, match=r"which are ignored: model\..* and 2 more$"):
        load_backend(open_folder(folder, vq=vqgan_dir, layout=LUMINA))
