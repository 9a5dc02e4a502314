"""Text to token ids: a wrapper around `tokenizers.Tokenizer`, with special tokens looked up by name.

tokenizer.json is read directly, because transformers' AutoTokenizer has rebuilt byte-level tokenizers with a
wrong pre-tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Self

import tokenizers


class TextEncoder:
    """Encodes text with one vocabulary; subclasses of a family add the special ids.

    Args:
        tokenizer: the vocabulary.
        names: a regular expression for the names of special tokens. In text from users they are encoded as
            plain text. By default there are none.
    """

    family = "text-to-image model"
    """The family in words, for messages."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, names: str = "(?!)") -> None:
        self._tokenizer = tokenizer
        # Names of special tokens in a user's text stay text. Real special tokens are added by id.
        tokenizer.encode_special_tokens = True
        # A tokenizer.json can switch these on, which would change prompts.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocabulary.values()) + 1
        self._names = re.compile(f"(?={names})")  # a lookahead also finds overlapping names
        self._check_spaces()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a `tokenizer.json`. Raises FileNotFoundError or ValueError, naming the file."""
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}; a model folder needs tokenizer.json")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a plain Exception for a damaged file
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        return cls(tokenizer)

    def require(self, name: str) -> int:
        """Return the id of `name`. Raises ValueError if the vocabulary does not contain it."""
        if name not in self.vocabulary:
            raise ValueError(
                f"the tokenizer has no {name!r}; this is not the vocabulary of a {self.family} "
                f"({len(self.vocabulary)} entries)"
            )
        return self.vocabulary[name]

    def code_block(self, name: Callable[[int], str], pattern: str) -> slice:
        """Return the ids of the image codes, whose names match `pattern`; `name` maps a code to its name.

        Raises:
            ValueError: they are not one block of ids in order.
        """
        start = self.require(name(0))
        number = sum(re.fullmatch(pattern, other) is not None for other in self.vocabulary)
        # All codes are checked, because ids are computed as code + offset.
        for code in range(number):
            got = self.vocabulary.get(name(code))
            if got != start + code:
                raise ValueError(
                    f"image code {code} ({name(code)}) has id {got}, expected {start + code}: codes must be "
                    "one block of ids in order, or every decoded image is wrong"
                )
        return slice(start, start + number)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text`; names of special tokens in it are encoded as plain text.

        Raises:
            ValueError: it contains half of a surrogate pair, which cannot be encoded.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text[:60]!r} is not valid text ({error.reason}): enter it again in UTF-8"
            ) from error
        # A name is cut after its first character, so that no piece contains it.
        cuts = [0, *(match.start() + 1 for match in self._names.finditer(text)), len(text)]
        pieces = [text[a:b] for a, b in pairwise(cuts) if a < b]
        # Without the library's own BOS: every layout adds its special tokens itself.
        encodings = self._tokenizer.encode_batch(pieces, add_special_tokens=False)
        return [index for encoding in encodings for index in encoding.ids]

    def check_ids(self, expected: Mapping[str, int]) -> None:
        """Raise ValueError unless every token of `expected` ({name: id}) has its id."""
        wrong = {name: self._tokenizer.token_to_id(name) for name in expected}
        differences = [
            f"{name} is {got}, not {expected[name]}" for name, got in wrong.items() if got != expected[name]
        ]
        if differences:
            raise ValueError(
                f"the tokenizer is not the one that the model was trained with: {'; '.join(differences)}"
            )

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=False)

    def _check_spaces(self) -> None:
        """Raise ValueError if the pre-tokenizer is not byte-level: prompts would lose their spaces."""
        text = "a photo of a red cat"
        tokens = [self._tokenizer.id_to_token(index) or "" for index in self.encode_text(text)]
        if sum(token.count("Ġ") for token in tokens) < text.count(" "):  # Ġ is the space in byte-level BPE
            raise ValueError(
                f"the tokenizer turns {text!r} into {tokens}, without the spaces: its file was rewritten "
                "with another pre-tokenizer (transformers' AutoTokenizer did that); use the original "
                "tokenizer.json"
            )
