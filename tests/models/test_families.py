"""The contract of a base, held by every family on a tiny checkpoint in its published format."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest_emu3 import LAYOUT as EMU3
from conftest_janus import LAYOUT as JANUS
from conftest_upstream import ANOLE, LUMINA, save_anole
from naive import NaiveDecoder
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from personalar.concepts.adapters.context_vectors import ContextVectors
from personalar.concepts.adapters.identifier import Identifier, random_rows
from personalar.concepts.adapters.lora import (
    inject_lora,
    lora_files,
    merge_lora,
)
from personalar.concepts.adapters.peft_names import from_transformers, to_transformers
from personalar.config.recipe import QKV
from personalar.data.stream import collate
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models import chameleon, emu3, janus
from personalar.models.base import Backend
from personalar.models.checkpoint_folder import weight_files
from personalar.models.stored_base import ModelFiles
from personalar.training.loss import sequence_loss
from personalar.training.model_prep import train_in_float32
from personalar.training.stage import select_parameters

TEXTS = ("a photo of a [V] dog", "a [V] cat in the snow on the beach")


@dataclass(frozen=True)
class Case:
    """A base on disk, and a way to open a copy of it."""

    family: Any
    folder: Path
    open: Callable[[Path], ModelFiles]

    def load(self, folder: Path | None = None) -> Backend:
        return self.open(folder or self.folder).load(dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module", params=["lumina", "anole", "janus", "emu3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folders = {"lumina": "lumina_dir", "janus": "janus_dir", "emu3": "emu3_dir"}
    vq = request.getfixturevalue("vqgan_dir")
    if request.param == "anole":
        folder = save_anole(tmp_path_factory.mktemp("anole") / "model")
        return Case(chameleon, folder, lambda path: chameleon.open_folder(path, layout=ANOLE))
    folder = request.getfixturevalue(folders[request.param])
    if request.param == "lumina":
        return Case(chameleon, folder, lambda path: chameleon.open_folder(path, vq=vq, layout=LUMINA))
    if request.param == "emu3":  # without the negative prompt, which training does not have
        layout = replace(EMU3, unconditional="bos")
        return Case(emu3, folder, lambda path: emu3.open_folder(path, layout=layout))
    return Case(janus, folder, lambda path: janus.open_folder(path, layout=JANUS))


@pytest.fixture(scope="module")
def base(case: Case) -> Backend:
    """The base, loaded once; nothing may change it."""
    return case.load()


def tokens(base: Backend) -> dict[str, int]:
    return {"[V]": base.reserved_ids[0]}


def some_codes(base: Backend, seed: int = 0) -> Tensor:
    number = len(range(*base.choices("image_tokens").indices(2**31)))
    return torch.randint(number, base.code_shape(), generator=torch.Generator().manual_seed(seed))


def prompts(base: Backend) -> list[list[int]]:
    return [base.prompt_ids(text, tokens=tokens(base)) for text in TEXTS]


def identifier(base: Backend, seed: int = 0) -> Identifier:
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(base.word_table[base.trained_rows], 1, generator=generator)
    return Identifier(tokens=tokens(base), rows=rows)


def test_images_become_codes_and_back(base: Backend) -> None:
    photo = Image.radial_gradient("L").convert("RGB")
    pixels = base.preprocess(photo, size=base.square)
    assert pixels.shape == (3, *reversed(base.square)) and 0 <= pixels.min() <= pixels.max() <= 1
    codes = base.encode_images(pixels[None])
    assert codes.shape == (1, *base.code_shape()) and codes.dtype == torch.int64
    images = base.decode_images(codes)
    assert images.shape == (1, 3, *reversed(base.square)) and 0 <= images.min() <= images.max() <= 1
    assert base.best_size(photo) in base.sizes and base.decode_bytes(1, base.code_shape()) > 0


def test_a_prompt_has_the_identifier_and_its_context_does_not(base: Backend) -> None:
    (index,) = tokens(base).values()
    for ids in prompts(base):
        assert ids.count(index) == 1
        context = base.unconditional_prompt(ids)
        assert index not in context and len(context) <= len(ids)
    assert not set(base.reserved_ids) & set(base.encode_text(" ".join(TEXTS)))


def test_a_training_sequence_is_prompt_and_grammar(base: Backend) -> None:
    codes, (prompt, _) = some_codes(base), prompts(base)
    grammar = list(base.grammar(*base.code_shape()))
    drawn = iter((codes.flatten() + base.code_offset).tolist())
    image = [next(drawn) if forced is None else forced for forced in grammar]
    for made, before in (
        (base.training_sequence(TEXTS[0], codes, tokens(base), loss="image_tokens"), prompt),
        (
            base.unconditional_sequence(TEXTS[0], codes, tokens(base), loss="image_tokens"),
            base.unconditional_prompt(prompt),
        ),
    ):
        assert list(made.ids[: len(before) + len(image)]) == [*before, *image]
        free = [len(before) + place for place, forced in enumerate(grammar) if forced is None]
        assert [place for place, wanted in enumerate(made.loss_mask) if wanted] == free


@torch.no_grad()
def test_cached_steps_are_the_whole_pass(base: Backend) -> None:
    ids = torch.tensor([base.training_sequence("a dog", some_codes(base), loss="image_tokens").ids])
    embeds = base.embed(ids)
    whole = base.forward(embeds)
    cache = base.new_cache(torch.arange(ids.shape[1])[None])
    slots = torch.arange(ids.shape[1]).split([7, *[1] * (ids.shape[1] - 7)])
    parts = [base.forward(embeds[:, part], cache=cache.at(part, int(part[-1]) + 1)) for part in slots]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    logits = base.image_logits(whole)
    assert logits.dtype == torch.float32 and torch.equal(logits, base.head("image_tokens")(whole))


def test_decoders_draw_the_codes_of_the_naive_one(base: Backend) -> None:
    """Prompts of two lengths, with guidance and an identifier."""
    sampling, grid = {"cfg_scale": 3.0, "top_k": 20}, base.code_shape()
    arguments = (base, prompts(base), grid, [1, 2], identifier(base))
    assert len(set(map(len, prompts(base)))) == 2
    naive = NaiveDecoder(**sampling)(*arguments)
    assert torch.equal(PlainDecoder(**sampling)(*arguments), naive)
    for window in (2, 4, 16):
        assert torch.equal(JacobiDecoder(window=window, max_batch=2, **sampling)(*arguments), naive)


def test_a_negative_prompt_replaces_the_context_of_guidance(base: Backend) -> None:
    """The reference runs prompt and negative prompt in sequences of their own."""
    sampling, grid = {"cfg_scale": 3.0, "top_k": 20}, base.code_shape()
    contexts = [base.negative_prompt("a red hat", tokens=tokens(base))] * 2
    assert base.negative_prompt("a [V] dog", tokens=tokens(base)).count(base.reserved_ids[0]) == 1
    arguments = (base, prompts(base), grid, [1, 2], identifier(base))
    naive = NaiveDecoder(**sampling)(*arguments, contexts=contexts)
    assert torch.equal(PlainDecoder(**sampling)(*arguments, contexts=contexts), naive)
    assert torch.equal(JacobiDecoder(window=4, max_batch=2, **sampling)(*arguments, contexts=contexts), naive)
    assert not torch.equal(PlainDecoder(**sampling)(*arguments), naive)


@pytest.mark.parametrize("place", ["prompt", "both"])
def test_decoders_draw_the_codes_of_the_naive_one_with_context_vectors(case: Case, place: str) -> None:
    """Also for a prompt without [V], which gives the base's picture."""
    base, generator = case.load(), torch.Generator().manual_seed(0)
    rows = Identifier(
        tokens=dict(zip(("[V]", "[I]"), base.reserved_ids, strict=False)),
        rows=random_rows(base.word_table[base.trained_rows], 2, generator=generator),
    )
    other = [base.prompt_ids("a dog")]
    sampling, grid = {"cfg_scale": 3.0, "top_k": 20}, base.code_shape()
    plain = PlainDecoder(**sampling)(base, other, grid, [3], rows)
    before = PlainDecoder(**sampling)(base, prompts(base), grid, [1, 2], rows)
    vectors = ContextVectors(place=place).attach(base, identifier=rows, generator=generator)
    for parameter in vectors.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    assert base.negative_prompt("a [V] dog", tokens=rows.tokens)[-1] == rows.tokens["[I]"]
    ids = [*(base.prompt_ids(text, tokens=rows.tokens) for text in TEXTS), *other]
    arguments = (base, ids, grid, [1, 2, 3], rows)
    naive = NaiveDecoder(**sampling)(*arguments)
    assert torch.equal(PlainDecoder(**sampling)(*arguments), naive)
    assert torch.equal(JacobiDecoder(window=4, max_batch=3, **sampling)(*arguments), naive)
    assert torch.equal(naive[2:], plain) and not torch.equal(naive[:2], before)


def batch_of(base: Backend) -> dict[str, Tensor]:
    made = [base.training_sequence(t, some_codes(base), tokens(base), loss="image_tokens") for t in TEXTS]
    return collate(made, pad=base.pad_id)


def test_the_loss_is_the_cross_entropy_of_the_codes(base: Backend) -> None:
    rows, batch = identifier(base), batch_of(base)
    loss = sequence_loss(base, rows, batch, loss="image_tokens", z_loss=0.0)
    expected = []
    for ids, mask in zip(batch["ids"], batch["loss_mask"], strict=True):
        logits = base.image_logits(base.forward(rows(ids[None], base.embed(ids[None]))))[0]
        free = mask.nonzero()[:, 0]
        expected.append(F.cross_entropy(logits[free - 1], ids[free] - base.code_offset))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert rows.rows.grad is not None and rows.rows.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in base.transformer.parameters())


def test_stage_two_changes_queries_keys_and_values_alone(case: Case) -> None:
    base = case.load()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    weights = select_parameters(base.transformer, [QKV])
    assert len(weights) == 3 * len(base.blocks)
    train_in_float32(base.transformer, weights)
    for parameter in weights.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    sequence_loss(base, identifier(base), batch_of(base), loss="image_tokens", z_loss=0.0).backward()
    optimizer.step()
    after = base.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {f"transformer.{name}" for name in weights}


@torch.no_grad()
def test_an_adapter_goes_out_and_comes_back(case: Case, base: Backend) -> None:
    adapted, again = case.load(), case.load()
    embeds = base.embed(torch.tensor(prompts(base)[:1]))
    generator = torch.Generator().manual_seed(0)
    parameters = inject_lora(adapted.transformer, rank=2, every_n_layers=2, generator=generator)
    assert all(re.search(r"layers\.(\d+)\.", name)[1] == "0" for name in parameters)
    torch.testing.assert_close(adapted.forward(embeds), base.forward(embeds), rtol=1e-5, atol=1e-5)
    for parameter in parameters.values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    stack = case.family.PEFT_BASE.stack
    published = to_transformers(lora_files(adapted.transformer), stack=stack)
    merge_lora(again.transformer, from_transformers(published, stack=stack))
    assert (base.forward(embeds) - again.forward(embeds)).abs().max() > 1e-3
    torch.testing.assert_close(again.forward(embeds), adapted.forward(embeds), rtol=1e-3, atol=1e-3)


def test_memory_is_estimated_from_the_very_network(case: Case, base: Backend) -> None:
    files = case.open(case.folder)
    shape = files.shape(images=2)
    with torch.device("meta"):
        network = shape.network.build()
    named = {name: tensor.shape for name, tensor in network.named_parameters()}
    assert named == {name: tensor.shape for name, tensor in base.transformer.named_parameters()}
    h, w = base.code_shape()
    assert shape.codes == h * w
    assert shape.num_codes == base.image_logits(torch.zeros(1, shape.network.hidden_size)).shape[-1]
    whole = base.training_sequence(TEXTS[0], some_codes(base), tokens(base), loss="image_tokens")
    assert shape.answer_tokens == len(whole.ids) - len(prompts(base)[0])
    assert tuple(files.reserved_ids()) == tuple(base.reserved_ids) and not files.missing()
    assert network.head(slice(0, shape.num_codes)) is not None and "transformer" in files.parts()


def test_the_doctor_reads_no_weight_and_finds_what_does_not_fit(
    case: Case, base: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes of all tensors are checked, and the text tokenizer before them."""
    on_meta = {"dtype": torch.float32, "device": "meta"}
    folder = copy_of(case.folder, tmp_path)
    checked = case.open(folder).load(**on_meta).state_dict()
    assert checked.keys() == base.state_dict().keys() and all(t.is_meta for t in checked.values())
    for file in weight_files(folder):
        state = load_file(file)
        save_file({name: t for name, t in state.items() if not name.endswith("norm.weight")}, file)
    with pytest.raises(ValueError, match=r" missing: .*norm\.weight"):
        case.open(folder).load(**on_meta)
    (folder / "tokenizer.json").write_text("{}")
    for how in (on_meta, on_meta | {"device": "cpu"}):
        with pytest.raises(ValueError, match="is not a tokenizer"):
            case.open(folder).load(**how)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_checkpoint_goes_out_and_comes_back(case: Case, tmp_path: Path) -> None:
    base = case.load()
    with torch.no_grad():
        base.word_table[base.reserved_ids[0]] = 7.0
        base.blocks[0].self_attn.q_proj.weight.add_(1.0)
    files = case.open(case.folder)
    assert files.checkpoint_form
    out = files.write_checkpoint(base, tmp_path / "out", dtype=torch.float32)
    again = case.load(out).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in base.state_dict().items())
