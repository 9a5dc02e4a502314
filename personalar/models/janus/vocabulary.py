"""The vocabulary of Janus: DeepSeek's byte-level BPE, with its special tokens looked up by name.

The two model sizes use the same names with different ids. The vocabulary contains no image codes. The last
rows of the embedding table belong to no token.
"""

from __future__ import annotations

import re

import tokenizers

from personalar.models.text_encoder import TextEncoder

BOS, PAD = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
ROLE = re.compile(r"<\|\w+\|>")
"""Pattern of the role names in a prompt template; each is a single token."""


class JanusVocabulary(TextEncoder):
    """Text encoder and special ids. Raises ValueError if a special token is missing."""

    family = "Janus model"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        # Some added tokens are single letters, such as ø. They are ordinary text and not special.
        names = sorted((name for name in added if len(name) > 1), key=len, reverse=True)
        super().__init__(tokenizer, f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})")
        self.bos, self.pad, self.boi = map(self.require, (BOS, PAD, BEGIN_OF_IMAGE))

    def roles(self, template: str) -> dict[str, int]:
        """Return the ids of the role names in a prompt template."""
        return {name: self.require(name) for name in ROLE.findall(template)}

    def unnamed_ids(self, rows: int) -> range:
        """Return the ids of an embedding table of `rows` rows that belong to no token, the last first.

        Raises:
            ValueError: there are none.
        """
        if self.vocab_size >= rows:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} ids, the model embeds {rows}: no row is left for [V]; "
                "the tokenizer belongs to another model"
            )
        return range(rows - 1, self.vocab_size - 1, -1)
