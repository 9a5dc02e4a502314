"""Sequences by number: what they hold, in which shares, and that they depend on nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest_backend import decode_text, make_backend, parse_image
from PIL import Image

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.recipe import DataNumbers, StageNumbers
from personalar.config.run_config import Stage, StageMethod
from personalar.data.codes import encode_photos
from personalar.data.stream import Replay, SequenceStream, collate
from personalar.training.module import sequence_loss

TOKENS = {"[V]": 70, "[S1]": 71, "[S2]": 72}
NUMBERS = StageNumbers(steps=10, batch=4, lr=0.1, replay_ratio=0.25)
WEIGHTS = StageMethod(numbers="x", parameters=["*"])


def stream(backend, *, data=None, stage_method=WEIGHTS, replay=True, **changes) -> SequenceStream:
    concept = backend.tokenizer.concept_ids
    values = {
        "backend": backend,
        "stage": Stage(name="transformer", trains=stage_method, numbers=NUMBERS),
        "data": data or DataNumbers(templates=["a photo of a {}"]),
        "noun": "cat",
        "tokens": dict(zip(TOKENS, concept, strict=False)),
        "photo_codes": [torch.full((3, 4, 4), 1), torch.full((3, 4, 4), 2)],
        "replay": Replay(prompts=("a cat",), codes=(torch.full((4, 4), 9),)) if replay else None,
        "loss": "image_tokens",
        "seed": 0,
    }
    return SequenceStream(**(values | changes))


def codes_of(sequence, backend) -> set[int]:
    offset = backend.tokenizer.code_offset
    return {i - offset for i, m in zip(sequence.ids, sequence.loss_mask, strict=True) if m}


def test_a_sequence_is_a_function_of_its_number(tiny_backend) -> None:
    one, two = stream(tiny_backend), stream(tiny_backend)
    assert [one.sequence(i) for i in (5, 2)] == [two.sequence(i) for i in (5, 2)]
    two.start = 6
    assert next(iter(two)) == one.sequence(6)
    others = [stream(tiny_backend, seed=1).sequence(i) for i in range(8)]
    assert others != [one.sequence(i) for i in range(8)]


def test_a_subject_of_several_rows_is_several_tokens_in_a_row(tiny_backend) -> None:
    ids = tiny_backend.tokenizer.concept_ids
    tokens = {"[V]": ids[2], "[V:2]": ids[0], "[V:3]": ids[5], "[S1]": ids[1], "[S2]": ids[3]}
    one, three = stream(tiny_backend), stream(tiny_backend, tokens=tokens)
    for number in range(3):  # photos; the fourth sequence is replayed and has no [V]
        single, several = one.sequence(number), three.sequence(number)
        place = single.ids.index(one.tokens["[V]"])
        assert several.ids[place : place + 3] == (ids[2], ids[0], ids[5])
        assert several.ids[:place] == single.ids[:place] and len(several.ids) == len(single.ids) + 2
        assert several.loss_mask[place : place + 3] == (False,) * 3


def test_shares_of_replay_and_image_tokens(tiny_backend) -> None:
    made = stream(tiny_backend)
    sequences = [made.sequence(i) for i in range(80)]
    replayed = [codes_of(s, tiny_backend) == {9} for s in sequences]
    assert [i % 4 for i, is_replay in enumerate(replayed) if is_replay] == [3] * 20
    tokens = made.tokens
    subject = [s for s, is_replay in zip(sequences, replayed, strict=True) if not is_replay]
    assert all(tokens["[V]"] in s.ids for s in subject)
    with_token = [s for s in subject if {tokens["[S1]"], tokens["[S2]"]} & set(s.ids)]
    assert len(with_token) == len(subject) // 2
    for sequence in with_token:  # a photo is named by its own token
        own = {1: "[S1]", 2: "[S2]"}[codes_of(sequence, tiny_backend).pop()]
        assert tokens[own] in sequence.ids


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_the_ratio_of_image_tokens_is_exact(tiny_backend, ratio: float, share: int) -> None:
    numbers = dataclasses.replace(NUMBERS, image_token_ratio=ratio)
    stage = Stage(name="transformer", trains=WEIGHTS, numbers=numbers)
    made = stream(tiny_backend, stage=stage, replay=False)
    own = {made.tokens["[S1]"], made.tokens["[S2]"]}
    assert sum(bool(own & set(made.sequence(i).ids)) for i in range(40)) == share


def test_prompt_dropout_leaves_the_answer_alone_and_spares_stage_one(tiny_backend) -> None:
    data = DataNumbers(templates=["a {}"], prompt_dropout=1.0)
    assert stream(tiny_backend, data=data).sequence(0).ids[0] == tiny_backend.tokenizer.boi
    rows_only = stream(tiny_backend, data=data, stage_method=StageMethod(numbers="x"))
    assert rows_only.sequence(0).ids[0] == tiny_backend.tokenizer.bos


def test_a_tenth_of_the_prompts_is_dropped_as_lumina_does(tiny_backend) -> None:
    made = stream(tiny_backend, data=DataNumbers(templates=["a {}"], prompt_dropout=0.1), loss="answer")
    sequences = [made.sequence(i) for i in range(600)]
    dropped = [s for s in sequences if s.ids[0] == tiny_backend.tokenizer.boi]
    assert 36 <= len(dropped) <= 86  # five deviations around 60
    assert all(all(s.loss_mask) and s.ids[-1] == tiny_backend.tokenizer.eoi for s in dropped)


def test_collate_pads_at_the_right(tiny_backend) -> None:
    made = stream(tiny_backend)
    short, long = (
        made.backend.unconditional_sequence("a dog", torch.ones(4, 4).long(), loss="image_tokens"),
        made.sequence(0),
    )
    batch = collate([short, long], pad=1)
    assert batch["ids"].shape == batch["loss_mask"].shape == (2, len(long.ids))
    assert batch["ids"][0, len(short.ids) :].unique().tolist() == [1]
    assert not batch["loss_mask"][0, len(short.ids) :].any() and batch["loss_mask"].sum() == 2 * 16


def mixed_photos() -> list[Image.Image]:
    gradient = Image.linear_gradient("L").convert("RGB")
    return [gradient.resize(size) for size in ((300, 100), (120, 130), (90, 300))]


def test_photos_of_mixed_shapes_train_together() -> None:
    backend = make_backend(buckets="aspect")
    data = DataNumbers(templates=["a {}"], crops_per_photo=2, crop="random", copies_per_photo=3)
    pools = encode_photos(backend, mixed_photos(), data, seed=0)
    assert [tuple(pool.shape) for pool in pools] == [(5, 2, 6), (5, 4, 4), (5, 6, 2)]  # 48x16, 32x32, 16x48
    made = stream(
        backend,
        data=data,
        photo_codes=pools,
        tokens=dict(zip(("[V]", "[S1]", "[S2]", "[S3]"), backend.tokenizer.concept_ids, strict=False)),
    )
    sequences = [made.sequence(i) for i in range(40)]
    for sequence in sequences:
        h, w = parse_image(backend, sequence.ids).shape
        prompt = sequence.ids[: sequence.ids.index(backend.tokenizer.boi)]
        assert f"an image of {8 * w}x{8 * h} according" in decode_text(backend.tokenizer, prompt)
    assert len({len(parse_image(backend, s.ids)) for s in sequences}) == 3
    batch = collate(sequences[:6], pad=1)
    assert batch["loss_mask"].sum() == sum(sum(s.loss_mask) for s in sequences[:6])


def test_padding_is_never_looked_at(tiny_backend) -> None:
    """Lumina-mGPT pads with id 0 and no mask; whatever stands there, the loss is the same."""
    made = stream(tiny_backend, replay=False)
    sequences = [made.sequence(i) for i in range(4)]
    assert len({len(s.ids) for s in sequences}) > 1
    identifier = Identifier(tokens=made.tokens, rows=torch.ones(3, 32))
    losses = [
        sequence_loss(tiny_backend, identifier, collate(sequences, pad=pad), loss="image_tokens", z_loss=1e-5)
        for pad in (0, 1)
    ]
    assert torch.equal(*losses)


def test_logits_to_distill_from_belong_to_the_context_of_the_image(tiny_backend) -> None:
    logits = tuple(torch.full((16, 64), float(value)) for value in range(4))  # image * 2 + without a prompt
    codes = (torch.full((4, 4), 8), torch.full((4, 4), 9))
    replay = Replay(prompts=("a cat", "a cat"), codes=codes, prompt_dropout=0.5, frozen=logits)
    made = stream(tiny_backend)
    made.replay = replay
    sequences = [made.sequence(number) for number in range(80)]
    photos = [s for s in sequences if not s.is_class]
    assert len(photos) == 60 and all(s.frozen is None for s in photos)
    seen = set()
    for sequence in sequences[3::4]:
        dropped = sequence.ids[0] == tiny_backend.tokenizer.boi
        image = codes_of(sequence, tiny_backend).pop() - 8
        assert float(sequence.frozen[0, 0]) == 2 * image + dropped
        seen.add((image, dropped))
    assert len(seen) == 4
    batch = collate(sequences[:8], pad=1)
    assert batch["is_class"].tolist() == [False] * 3 + [True] + [False] * 3 + [True]
    assert torch.equal(batch["frozen"], torch.cat([sequences[3].frozen, sequences[7].frozen]))


def test_processes_see_each_sequence_once(tiny_backend) -> None:
    whole = stream(tiny_backend)
    parts = [stream(tiny_backend), stream(tiny_backend)]
    for rank, part in enumerate(parts):
        part.share = (rank, 2)
    sources = [iter(part) for part in parts]
    drawn = [next(part) for _ in range(4) for part in sources]
    assert drawn == [whole.sequence(n) for n in range(8)]


@pytest.mark.parametrize("loss", ["image_tokens", "answer"])
def test_a_mask_limits_the_loss_to_the_subject(tiny_backend, loss: str) -> None:
    kept = torch.zeros(3, 4, 4, dtype=torch.int64)
    kept[0, 1, 2] = kept[2, 3, 3] = 1  # the second view has lost the subject
    photos = [torch.arange(48).view(3, 4, 4), torch.full((3, 4, 4), 50)]
    how = {"photo_codes": photos, "loss": loss, "data": DataNumbers(templates=["a {}"], prompt_dropout=0.3)}
    plain, offset = stream(tiny_backend, **how), tiny_backend.tokenizer.code_offset
    masked = stream(tiny_backend, subject_codes=[kept, torch.ones_like(kept)], **how)
    seen: set[int] = set()
    for number in range(60):
        sequence, whole = masked.sequence(number), plain.sequence(number)
        codes = {index for index in codes_of(sequence, tiny_backend) if 0 <= index < 64}
        if codes in ({50}, {9}):  # a photo without a mask, and a class image
            assert sequence == whole
            continue
        assert codes in ({6}, {47})
        seen |= codes
        lost = [i for i, on in zip(sequence.ids, sequence.loss_mask, strict=True) if not on and i >= offset]
        assert len(lost) >= 15
    assert seen == {6, 47}


def test_a_full_mask_is_no_mask(tiny_backend) -> None:
    plain = stream(tiny_backend)
    full = stream(tiny_backend, subject_codes=[torch.ones(3, 4, 4).long()] * 2, captions=(None, None))
    assert [full.sequence(i) for i in range(20)] == [plain.sequence(i) for i in range(20)]


def test_a_caption_is_the_prompt_of_its_photo(tiny_backend) -> None:
    made = stream(tiny_backend, replay=False, captions=("a {} in the snow", None))
    for number in range(12):
        sequence = made.sequence(number)
        text = decode_text(tiny_backend.tokenizer, sequence.ids)
        assert ("in the snow" in text) == (codes_of(sequence, tiny_backend) == {1})
        assert made.tokens["[V]"] in sequence.ids


def test_proxies_alone_are_photos_without_their_tokens(tiny_backend) -> None:
    """The same pictures as proxies and as photos: the same sequences, so the same loss."""
    data = DataNumbers(templates=["a photo of a {}", "a {}"], prompt_dropout=0.2)
    without = Stage(name="s", trains=WEIGHTS, numbers=dataclasses.replace(NUMBERS, image_token_ratio=0.0))
    expected = stream(tiny_backend, data=data, stage=without)
    proxies = expected.photo_codes
    with_tokens = Stage(name="s", trains=WEIGHTS, numbers=NUMBERS)
    made = stream(tiny_backend, data=data, stage=with_tokens, proxy_codes=proxies, proxy_share=1.0)
    sequences = [made.sequence(number) for number in range(40)]
    assert sequences == [expected.sequence(number) for number in range(40)]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_proxies_have_their_share_and_the_photos_keep_their_tokens(tiny_backend, share: float) -> None:
    proxies = [torch.full((1, 4, 4), code) for code in range(20, 50)]
    made = stream(tiny_backend, proxy_codes=proxies, proxy_share=share)
    own = {made.tokens["[S1]"], made.tokens["[S2]"]}
    counts = {"photos": 0, "tokens": 0, "proxies": 0}
    for number in range(160):  # of these 40 are replayed
        sequence = made.sequence(number)
        (code,) = codes_of(sequence, tiny_backend)
        counts["photos"] += code in (1, 2)
        counts["proxies"] += code >= 20
        counts["tokens"] += bool(own & set(sequence.ids))
        assert code in (1, 2) or not own & set(sequence.ids)
        assert code == 9 or made.tokens["[V]"] in sequence.ids
    assert counts["proxies"] == int(120 * share) == 120 - counts["photos"]
    assert counts["tokens"] == counts["photos"] // 2


def test_a_share_without_proxies_changes_nothing(tiny_backend) -> None:
    plain, same = stream(tiny_backend), stream(tiny_backend, proxy_share=0.5)
    assert [same.sequence(number) for number in range(20)] == [plain.sequence(number) for number in range(20)]
