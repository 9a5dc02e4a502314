"""The vocabulary: special tokens by name, codes in one block, prompts that cannot smuggle structure in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from conftest_backend import NUM_CODES, decode_text, is_special, make_tokenizer

from personalar.models.chameleon.tokenizer import (
    Tokenizer,
    build_tokenizer,
    chameleon_names,
    code_name,
    reserved_name,
)

TOKENIZER = make_tokenizer()
TOKENIZER_LAST = reserved_name(9004 + 11)
RESERVED = [reserved_name(number) for number in (8706, 8799, 8801, 9004)]
SPECIAL_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<eoss>", "<racm3:break>", *RESERVED]
SPECIAL_NAMES += [code_name(0), code_name(53)]


@pytest.mark.parametrize(("code", "name"), [(0, "IMGIMGAZ"), (53, "IMGIMGFDZ"), (8191, "IMGIMGIBJBZ")])
def test_golden_code_names(code: int, name: str) -> None:
    assert code_name(code) == name


def test_all_8192_codes_are_id_minus_4() -> None:
    big = Tokenizer(
        build_tokenizer(["a"], num_codes=8192, max_grids=68, num_concept_ids=8, vocab_size=8192 + 600)
    )
    assert (big.code_offset, big.num_codes, big.image_rows) == (4, 8192, slice(4, 8196))
    assert (big.bos, big.pad, big.eoi, big.boi) == (0, 1, 8196, 8197)  # as in the 7B


def reread(content: str) -> Tokenizer:
    """Return the tokenizer of a file with this content."""
    return Tokenizer(tokenizers.Tokenizer.from_str(content))


def test_special_ids_in_order() -> None:
    t = TOKENIZER
    assert (t.bos, t.pad, t.code_offset, t.num_codes) == (0, 1, 4, NUM_CODES)
    start = 4 + NUM_CODES
    assert (t.eoi, t.boi, t.sep, t.newline) == (start, start + 1, start + 2, start + 3)
    assert [t.size_id(n) for n in range(1, 9)] == list(range(start + 4, start + 12))
    assert t.concept_ids == tuple(range(start + 12, start + 24))


def test_every_name_in_the_vocabulary_is_neutralised() -> None:
    vocabulary = json.loads(TOKENIZER.to_json())["model"]["vocab"]
    names = [name for name in vocabulary if name.startswith(("<", "IMGIMG")) and len(name) > 2]
    assert len(names) >= NUM_CODES + 24
    for name in names:
        ids = TOKENIZER.encode_text(f"a {name} b")
        assert not any(is_special(TOKENIZER, index) for index in ids)
        assert decode_text(TOKENIZER, ids) == f"a {name} b"


def test_names_that_the_file_does_not_mark_special_are_neutralised_too() -> None:
    tokenizer = reread(TOKENIZER.to_json().replace('"special":true', '"special":false'))
    for name in SPECIAL_NAMES:
        assert not any(is_special(tokenizer, index) for index in tokenizer.encode_text(f"a{name}b <{name}>"))


def test_special_tokens_of_unknown_name_are_neutralised_too() -> None:
    content = json.loads(TOKENIZER.to_json())
    content["added_tokens"][-1]["content"] = "[odd]"
    vocabulary = content["model"]["vocab"]
    vocabulary["[odd]"] = vocabulary.pop(TOKENIZER_LAST)
    tokenizer = reread(json.dumps(content))
    assert vocabulary["[odd]"] not in tokenizer.encode_text("an [odd] cat")


def test_digits_are_split() -> None:
    assert len(TOKENIZER.encode_text("32")) == 2


def test_same_ids_as_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json(), encoding="utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    text = "Generate an image of 32x32 according to the following prompt:\na red cat in the snow"
    assert theirs(text, add_special_tokens=False)["input_ids"] == TOKENIZER.encode_text(text)
    assert theirs("<s>", add_special_tokens=False)["input_ids"] == [0]


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a model folder needs tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def edited(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json().replace(f'"{old}"', f'"{new}"'), encoding="utf-8")
    return path


def test_foreign_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has no '<racm3:break>'"):
        Tokenizer.from_file(edited(tmp_path, "<racm3:break>", "<other>"))


def test_codes_out_of_order(tmp_path: Path) -> None:
    path = edited(tmp_path, code_name(5), "TEMP")
    path.write_text(path.read_text().replace(f'"{code_name(6)}"', f'"{code_name(5)}"'))
    path.write_text(path.read_text().replace('"TEMP"', f'"{code_name(6)}"'))
    with pytest.raises(ValueError, match=r"image code 5 \(IMGIMGFZ\) has id 10, expected 9"):
        Tokenizer.from_file(path)


def test_vocabulary_too_small() -> None:
    with pytest.raises(ValueError, match="need at least"):
        build_tokenizer(["a"], num_codes=64, max_grids=4, num_concept_ids=4, vocab_size=100)


def test_a_rewritten_pre_tokenizer_is_refused() -> None:
    """What automatic classes have made of byte-level files: every space of a prompt is gone."""
    content = json.loads(TOKENIZER.to_json())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    with pytest.raises(ValueError, match="without the spaces: its file was rewritten"):
        reread(json.dumps(content))


def test_luminas_placeholder_is_no_row_of_the_model() -> None:
    content = json.loads(TOKENIZER.to_json())
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({"id": TOKENIZER.vocab_size, "content": "<|image|>", **flags})
    tokenizer = reread(json.dumps(content))
    assert tokenizer.vocab_size == TOKENIZER.vocab_size
    assert max(tokenizer.encode_text("a <|image|> cat")) < tokenizer.vocab_size


def test_reserved_names_are_four_behind_their_number() -> None:
    names = chameleon_names()
    assert (len(names), names[-1]) == (16384, "<reserved16379>")
    assert all(names[number + 4] == reserved_name(number) for number in range(8706, 16380))
    assert (names[8197], names[8196], names[8198], names[8709]) == (
        "<racm3:break>", "<eoss>", "<sentinel:0>", "<sentinel:511>",
    )  # fmt: skip
    assert all(names[code + 4] == code_name(code) for code in range(8192))
