"""The vocabulary of Janus: DeepSeek's byte-level BPE, with its special tokens looked up by name.

The two sizes have the same names under other ids. Image codes are not in the vocabulary; the rows of the
embedding table behind the last name belong to no token.
"""

from __future__ import annotations

import re

import tokenizers

from personalar.models.text_encoder import TextEncoder

BOS, PAD = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
ROLE = re.compile(r"<\|\w+\|>")
"""The names of the roles in a prompt template; they are single ids."""


class JanusVocabulary(TextEncoder):
    """Text encoder and table of special ids. Raises ValueError when a special token is missing."""

    family = "Janus model"

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        # An added token of one character is a letter, such as ø: it belongs to the text.
        names = sorted((name for name in added if len(name) > 1), key=len, reverse=True)
        super().__init__(backend, f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})")
        self.bos, self.pad, self.boi = map(self.require, (BOS, PAD, BEGIN_OF_IMAGE))
        self.named_rows = max(self.vocabulary.values()) + 1
        """Rows of the embedding table that belong to a token."""

    def roles(self, template: str) -> dict[str, int]:
        """Return the ids of the role names in a prompt template."""
        return {name: self.require(name) for name in ROLE.findall(template)}

    def unnamed_ids(self, rows: int) -> range:
        """Return the ids of a table of `rows` rows that no token has, the last first.

        Raises:
            ValueError: there is none.
        """
        if self.named_rows >= rows:
            raise ValueError(
                f"the tokenizer has {self.named_rows} ids, the model embeds {rows}: no row is left for [V]; "
                "the tokenizer belongs to another model"
            )
        return range(rows - 1, self.named_rows - 1, -1)
