"""The vocabulary of Emu3: Qwen's byte-level BPE, with its special tokens looked up by name.

Text is normalised to NFC and split by Qwen's pattern, as in the training of Emu3. The pattern in a file is
ignored: transformers' files of Emu3 contain that of GPT-2, which encodes "close-up" differently.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from personalar.models.emu3.emu3_files import RANKS, VISION_TOKENS
from personalar.models.text_encoder import TextEncoder

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PAD = "<|endoftext|>"
EXTRAS = 205
IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE = "<|image token|>", "<|image start|>", "<|image end|>"
_SPECIAL = r"<\|(?:endoftext|im_start|im_end|extra_\d+|image (?:token|start|end)|visual token \d+)\|>|<image>"


def extra(number: int) -> str:
    """Return the name of an extra token: 200 is "<|extra_200|>"."""
    return f"<|extra_{number}|>"


def code_name(code: int) -> str:
    """Return the name of an image code: 53 is "<|visual token 000053|>"."""
    return f"<|visual token {code:06d}|>"


class Emu3Vocabulary(TextEncoder):
    """Text encoder and special ids.

    Raises:
        ValueError: a special token is missing, or the image codes are not one block of ids in order.
    """

    family = "BAAI Emu3 model"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        words = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        # Set here for both formats, so that they give equal ids.
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
        super().__init__(tokenizer, f"(?:{_SPECIAL})")
        self.eol, self.eof, self.bos, self.eos = (self.require(extra(n)) for n in (200, 201, 203, 204))
        self.pad, self.image = self.require(PAD), self.require(IMAGE)
        self.boi, self.eoi = self.require(BEGIN_OF_IMAGE), self.require(END_OF_IMAGE)
        # Number 0 is left out, because transformers uses it as <image>.
        free = (self.vocabulary.get(extra(number)) for number in range(1, 200))
        self.concept_ids = tuple(index for index in free if index is not None)
        """Unused ids for identifiers, in order."""
        self.codes = self.code_block(code_name, r"<\|visual token \d+\|>")
        """The ids of the image codes."""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a tokenizer.json, or BAAI's emu3.tiktoken with emu3_vision_tokens.txt in the same folder."""
        if path.suffix == ".json":
            return super().from_file(path)
        ranks, names = read_ranks(path), path.with_name(VISION_TOKENS)
        if not names.is_file():
            raise FileNotFoundError(f"{names} is missing; {RANKS} needs it in the same folder")
        return cls(from_ranks(ranks, names.read_text(encoding="utf-8").splitlines()))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return {piece: id} of a tiktoken file, which has a piece in base64 and its rank on every line."""
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; a model folder needs {RANKS} or tokenizer.json")
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        # validate: without it damaged characters are skipped silently.
        return {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except ValueError as error:
        raise ValueError(f"{path} is not a tiktoken file ({error}): copy it again") from error


def from_ranks(ranks: dict[bytes, int], vision_tokens: list[str]) -> tokenizers.Tokenizer:
    """Return the tokenizer of BAAI's two files; the ids of special tokens follow those of the pieces."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    pieces = {"".join(letters[byte] for byte in piece): rank for piece, rank in ranks.items()}
    # A tiktoken file has no merges. As in transformers, every split of a piece into two others is one, in the
    # order of ranks, which is the order in which BPE applies them.
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=pieces.__getitem__):
        splits = ((piece[:end], piece[end:]) for end in range(1, len(piece)))
        known = [(left, right) for left, right in splits if left in pieces and right in pieces]
        merges += sorted(known, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    tokenizer = tokenizers.Tokenizer(models.BPE(pieces, merges))
    tokenizer.decoder = decoders.ByteLevel()
    names = [PAD, "<|im_start|>", "<|im_end|>", *map(extra, range(EXTRAS))]
    names += [name.strip() for name in vision_tokens if name.strip()]
    # In this order they get the ids after the pieces, as in BAAI's tokenizer.
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer
