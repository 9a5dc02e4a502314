"""Janus-Pro against transformers' own class on the same tiny random weights; the protocol's golden ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from conftest_janus import (
    CODES,
    janus_model,
    janus_tokenizer_json,
    pre_tokenizer,
)
from conftest_run import compose_config
from test_compiled import Taped
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.adapters.lora import (
    inject_lora,
    lora_files,
    merge_lora,
)
from personalar.concepts.adapters.peft_names import from_transformers, to_transformers
from personalar.data.stream import collate
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.image_transforms import to_model_range
from personalar.models.janus import PEFT_BASE
from personalar.models.janus.janus_backend import JanusBackend
from personalar.models.janus.janus_files import JanusFiles
from personalar.models.janus.janus_network import JanusConfig
from personalar.models.janus.janus_weights import VQ_16
from personalar.models.janus.vocabulary import BEGIN_OF_IMAGE, BOS, PAD, JanusVocabulary
from personalar.models.network.vq import VQConfig
from personalar.training.loss import sequence_loss
from personalar.training.model_prep import quantize_base

TEXTS = ("a red cat", "a blue dog in the snow on the beach", "a teapot")
GREEDY = {"cfg_scale": 5.0, "temperature": 0.0}


def load(files: JanusFiles, dtype: torch.dtype = torch.float32) -> Any:
    return files.load(dtype=dtype, device="cpu")


def hf_rows(backend: Any, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the left-padded ids of the prompts with BOI, and their mask, as transformers wants them."""
    rows = [[*backend.prompt_ids(text), backend.tokenizer.boi] for text in texts]
    longest = max(map(len, rows))
    ids = [[backend.pad_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def hf_codes(backend: Any, texts: tuple[str, ...]) -> Tensor:
    """Return what transformers' `generate` draws greedily with guidance 5, (B, N)."""
    model, (ids, mask) = janus_model(), hf_rows(backend, texts)
    vocabulary, config = backend.tokenizer, janus_model().generation_config
    config.generation_kwargs = {"boi_token_id": vocabulary.boi}
    config.pad_token_id, config.bos_token_id = vocabulary.pad, vocabulary.bos
    return model.generate(
        ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=5
    )


@torch.no_grad()
def test_hidden_states_and_head_are_those_of_transformers(janus_backend: Any) -> None:
    model, ids = janus_model(), torch.tensor([[*janus_backend.prompt_ids(TEXTS[1])]])
    codes = torch.arange(CODES)[None]
    theirs = torch.cat(
        (model.get_input_embeddings()(ids), model.prepare_embeddings_for_image_generation(codes)), dim=1
    )
    ours = janus_backend.embed(torch.cat((ids, codes + janus_backend.code_offset), dim=1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    hidden = model.model.language_model(inputs_embeds=theirs).last_hidden_state
    torch.testing.assert_close(janus_backend.forward(ours), hidden, rtol=0, atol=1e-4)
    logits = model.model.generation_head(hidden)
    torch.testing.assert_close(janus_backend.image_logits(hidden), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "decoder", [PlainDecoder(**GREEDY), Taped(bucket=8, **GREEDY)], ids=lambda d: type(d).__name__
)
def test_greedy_ids_are_those_of_transformers_for_prompts_of_mixed_length(
    decoder: Any, janus_backend: Any
) -> None:
    prompts = [janus_backend.prompt_ids(text) for text in TEXTS]
    assert len(set(map(len, prompts))) == 3
    codes = decoder(janus_backend, prompts, (4, 4), [1, 2, 3])
    assert codes.unique().numel() > 4
    assert torch.equal(codes.flatten(1), hf_codes(janus_backend, TEXTS))


@torch.no_grad()
def test_the_loss_is_the_mean_over_all_codes_by_transformers_modules(janus_backend: Any) -> None:
    codes = torch.randint(CODES, (4, 4), generator=torch.Generator().manual_seed(3))
    identifier = Identifier(tokens={"[V]": 639}, rows=torch.zeros(1, 64))
    sequences = [janus_backend.training_sequence(text, codes, loss="image_tokens") for text in TEXTS[:2]]
    batch = collate(sequences, pad=janus_backend.pad_id)
    assert batch["loss_mask"].sum(1).tolist() == [16, 16]
    model, vocabulary, losses = janus_model(), janus_backend.tokenizer, []
    for text in TEXTS[:2]:
        ids = torch.tensor([[*janus_backend.prompt_ids(text), vocabulary.boi]])
        drawn = model.prepare_embeddings_for_image_generation(codes.flatten()[None, :-1])
        embeds = torch.cat((model.get_input_embeddings()(ids), drawn), dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -16:]
        losses.append(F.cross_entropy(model.model.generation_head(hidden)[0], codes.flatten()))
    ours = sequence_loss(janus_backend, identifier, batch, loss="image_tokens", z_loss=0.0)
    torch.testing.assert_close(ours, torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_unconditional_row_has_the_length_of_the_prompt(janus_backend: Any) -> None:
    vocabulary = janus_backend.tokenizer
    prompt = janus_backend.prompt_ids(f"a [V] {TEXTS[0]}", tokens={"[V]": 639})
    row = janus_backend.unconditional_prompt(prompt)
    assert row == [vocabulary.bos, *[vocabulary.pad] * (len(prompt) - 1)] and 639 in prompt
    codes = torch.zeros(4, 4).long()
    dropped = janus_backend.unconditional_sequence(TEXTS[0], codes, loss="image_tokens")
    kept = janus_backend.training_sequence(TEXTS[0], codes, loss="image_tokens")
    assert dropped.loss_mask == kept.loss_mask and set(dropped.ids[1:12]) <= {vocabulary.pad, vocabulary.boi}
    logits = [
        janus_backend.image_logits(janus_backend.forward(janus_backend.embed(torch.tensor([ids])))[:, -1])
        for ids in ([*row, vocabulary.boi], [*row[:-3], vocabulary.boi])
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.05


@torch.no_grad()
def test_codes_and_pictures_are_those_of_transformers_with_a_normalised_codebook(janus_backend: Any) -> None:
    vq, table = janus_model().model.vqmodel, janus_model().model.vqmodel.quantize.embedding.weight
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = janus_backend.encode_images(images)
    latents = vq.quant_conv(vq.encoder(to_model_range(images))).permute(0, 2, 3, 1)
    similar = F.normalize(latents, dim=-1) @ F.normalize(table, dim=-1).T  # DeepSeek's own rule
    assert torch.equal(ours, similar.argmax(-1)) and ours.unique().numel() > 4
    assert not torch.equal(
        vq.encode(to_model_range(images)).image_tokens, ours.flatten()
    )  # transformers' own
    raw = table.clone()
    try:
        table.copy_(F.normalize(raw, dim=-1))
        theirs = vq.decode(ours.flatten(1))
    finally:
        table.copy_(raw)
    torch.testing.assert_close(
        janus_backend.decode_images(ours), (theirs.clamp(-1, 1) + 1) / 2, rtol=0, atol=1e-4
    )
    wide = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    assert janus_backend.decode_images(janus_backend.encode_images(wide)).shape == wide.shape


def test_embeddings_of_codes_have_the_bits_of_the_published_path_in_bfloat16(janus_files: JanusFiles) -> None:
    model = copy.deepcopy(janus_model()).bfloat16()
    theirs = model.prepare_embeddings_for_image_generation(torch.arange(CODES))
    assert torch.equal(load(janus_files, torch.bfloat16).transformer.code_table.weight, theirs)


PIECES = {
    ":": 25, "Ġa": 245, "Ġphoto": 8072, "Ġof": 280, "Ġcat": 5946, "Ċ": 185, "Ġ": 207, "Ġdog": 5025,
    "Hello": 17464, ",": 11, "Ġhow": 946, "Ġare": 418, "Ġyou": 340, "?": 30, "A": 32, "Ġportrait": 25233,
    "Ġyoung": 2823, "Ġgirl": 5075, ".": 13, "Ġmasterpiece": 54575, "Ġfilm": 6131, "Ġgr": 7272, "ained": 1343,
    "Ġbest": 1608, "Ġquality": 3512,
}  # fmt: skip
"""The pieces of DeepSeek's vocabulary that occur in the golden prompts, with their ids."""
BEFORE = {"1b": 0, "7b": 13}
"""How many letters were added to the vocabulary before the pad."""


def stub(size: str) -> JanusVocabulary:
    """Return the published ids of the special tokens and of a few words."""
    more = BEFORE[size]
    special = {BOS: 100000, PAD: 100002 + more, BEGIN_OF_IMAGE: 100003 + more, "<|User|>": 100590 + more,
               "<|Assistant|>": 100591 + more}  # fmt: skip
    used = set(PIECES.values())
    free = (index for index in range(99000, 99999) if index not in used)
    letters = {letter: next(free) for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in PIECES}
    backend = tokenizers.Tokenizer(models.BPE({**letters, **PIECES, **special}, [], ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer(), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    return JanusVocabulary(backend)


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_golden_ids_of_a_turn(size: str) -> None:
    config = compose_config("+subject=cat", f"model=janus_pro_{size}").model
    vocabulary = stub(size)
    vocabulary.check_ids(config.layout.ids)
    with torch.device("meta"):
        network, vq = JanusConfig(vocab_size=102400, num_hidden_layers=1).build(), VQConfig(**VQ_16).build()
        backend = JanusBackend(transformer=network, vq=vq, tokenizer=vocabulary, layout=config.layout)
    user, assistant = (vocabulary.require(name) for name in ("<|User|>", "<|Assistant|>"))
    photo = [100000, user, 25, 245, 8072, 280, 245, 5946, 185, 185, assistant, 25]
    assert backend.prompt_ids(" a photo of a cat ") == photo
    free = next(iter(vocabulary.unnamed_ids(102400)))
    assert free == 102399
    with_v = [100000, user, 25, 245, 8072, 280, 207, free, 5025, 185, 185, assistant, 25]
    assert backend.prompt_ids("a photo of [V] dog", None, {"[V]": free}) == with_v
    assert vocabulary.encode_text("Hello, how are you?") == [17464, 11, 946, 418, 340, 30]
    assert user not in backend.prompt_ids("<|User|>: a cat")[2:]  # a name in the user's words is text
    grammar = backend.grammar(24, 24)
    assert len(grammar) == 577 and grammar[0] == 100003 + BEFORE[size] and not any(grammar[1:])
    assert backend.unconditional_prompt(photo) == [100000, *[vocabulary.pad] * 11]


def test_the_sizes_refuse_each_others_vocabulary() -> None:
    for size, other in (("1b", "7b"), ("7b", "1b")):
        ids = compose_config("+subject=cat", f"model=janus_pro_{size}").model.layout.ids
        with pytest.raises(ValueError, match="not the one that the model was trained with"):
            stub(other).check_ids(ids)


def test_letters_of_the_7b_stay_text(janus_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(janus_tokenizer_json(letters=True))
    seven, one = JanusVocabulary.from_file(path), JanusVocabulary.from_file(janus_dir / "tokenizer.json")
    assert seven.pad - one.pad == 13 and len(seven.encode_text("ø")) == 1 and len(one.encode_text("ø")) == 2
    assert seven.boi not in seven.encode_text(f"a {BEGIN_OF_IMAGE}")


@torch.no_grad()
def test_an_adapter_is_loaded_by_peft_on_transformers_class(janus_files: JanusFiles, tmp_path: Path) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    ours = load(janus_files)
    parameters = inject_lora(ours.transformer, rank=2, generator=seeded())
    for parameter in parameters.values():
        parameter.copy_(torch.randn(parameter.shape, generator=seeded()))
    exported = to_transformers(lora_files(ours.transformer), stack=PEFT_BASE.stack)
    (tmp_path / "lora").mkdir()
    for name, data in exported.items():
        (tmp_path / name).write_bytes(data)
    model = PeftModel.from_pretrained(copy.deepcopy(janus_model()), tmp_path / "lora")
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 3 * 2 and all(".language_model.layers." in name for name in adapted)
    embeds = torch.randn(1, 5, 64, generator=seeded())
    theirs = model.base_model.model.model.language_model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(ours.forward(embeds), theirs, rtol=0, atol=1e-4)
    back, again = from_transformers(exported, stack=PEFT_BASE.stack), load(janus_files)
    merge_lora(again.transformer, back)
    torch.testing.assert_close(again.forward(embeds), ours.forward(embeds), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"the adapter changes .*; allowed: layers below model\.other"):
        from_transformers(exported, stack="model.other")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_adapter_trains_over_four_bits(janus_files: JanusFiles) -> None:
    pytest.importorskip("bitsandbytes", reason='not installed: pip install "personalar[quantized]"')
    base = load(janus_files, torch.bfloat16)
    quantize_base(base.blocks)
    parameters = inject_lora(base.transformer, rank=2, generator=seeded())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sequence = base.training_sequence(TEXTS[0], torch.zeros(4, 4).long(), loss="image_tokens")
    identifier = Identifier(tokens={"[V]": 639}, rows=torch.zeros(1, 64))
    batch = collate([sequence], pad=base.pad_id)
    loss = sequence_loss(base, identifier, batch, loss="image_tokens", z_loss=0.0)
    loss.backward()
    learned = [name for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0]
    assert loss.isfinite() and len(learned) == 2 * 3  # B of q, k and v in both layers; A's wait for B
