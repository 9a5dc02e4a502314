"""The text tokenizer of Chameleon, with its special tokens looked up by name.

The names are those of Meta's and Lumina-mGPT's vocabulary. No id is hard-coded.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from personalar.models.text_encoder import TextEncoder

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
END_OF_IMAGE, BEGIN_OF_IMAGE = "<eoss>", "<racm3:break>"
SEPARATOR, NEWLINE = "<reserved08706>", "<reserved08799>"
SIZE_BASE = 8800  # `<reserved(8800 + n)>` is the size token for a side of n * grid_px pixels
CONCEPT_BASE = 9004  # no released checkpoint uses the reserved names from here on
PLACEHOLDER = "<|image|>"
IMAGE, IMAGE_RESERVED = "<image>", "<reserved08707>"  # the same id: published checkpoints renamed it

_DIGITS_TO_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
_SPECIAL = (
    r"(?:IMGIMG[A-J]+Z|</?s>|<pad>|<unk>|<mask>|<eoss>|<racm3:break>|<image>|<\|image\|>"
    r"|<sentinel:\d+>|<reserved\d+>)"
)


def code_name(code: int) -> str:
    """Return the vocabulary name of an image code: 53 is "IMGIMGFDZ"."""
    return f"IMGIMG{str(code).translate(_DIGITS_TO_LETTERS)}Z"


def reserved_name(number: int) -> str:
    """Return the name of a reserved token: 8706 is "<reserved08706>"."""
    return f"<reserved{number:05d}>"


class Tokenizer(TextEncoder):
    """Text encoder and special ids.

    Raises:
        ValueError: a special token is missing, or the image codes are not one block of ids in order.
    """

    family = "Chameleon image model"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        super().__init__(tokenizer, _SPECIAL)
        vocabulary, require = self.vocabulary, self.require
        # Lumina-mGPT's own code appends this name to the vocabulary for its own use; it has no embedding.
        self.vocab_size = max(index for name, index in vocabulary.items() if name != PLACEHOLDER) + 1
        self.bos, self.pad, self.eos = require(BOS), require(PAD), require(EOS)
        self.boi, self.eoi = require(BEGIN_OF_IMAGE), require(END_OF_IMAGE)
        self.sep, self.newline = require(SEPARATOR), require(NEWLINE)
        self.image_rows = self.code_block(code_name, "IMGIMG[A-J]+Z")
        """The ids of the image codes, which are also their rows in the embedding table."""
        self.code_offset = self.image_rows.start
        self.num_codes = self.image_rows.stop - self.code_offset
        # Meta's file has the reserved name, published checkpoints have "<image>".
        self.image = vocabulary.get(IMAGE, vocabulary.get(IMAGE_RESERVED))
        """The id that transformers' class replaces by the codes of a picture; None in a small vocabulary."""
        self._size_ids = _numbered(vocabulary, SIZE_BASE + 1, CONCEPT_BASE)
        self.concept_ids = _numbered(vocabulary, CONCEPT_BASE, 10 * CONCEPT_BASE)
        """Unused ids for identifiers, in order."""

    def size_id(self, grids: int) -> int:
        """Return the size token for a side of `grids` * grid_px pixels.

        Raises:
            ValueError: the vocabulary has no token for such a side.
        """
        if grids > len(self._size_ids):
            raise ValueError(
                f"the layout has sides of {grids} x grid_px pixels, but the vocabulary has size tokens only "
                f"up to {len(self._size_ids)} x grid_px: choose a smaller layout.resolution"
            )
        return self._size_ids[grids - 1]


def build_tokenizer(
    texts: Iterable[str], *, num_codes: int, max_grids: int, num_concept_ids: int, vocab_size: int
) -> tokenizers.Tokenizer:
    """Train a small byte-level BPE with Chameleon's special tokens, in Chameleon's order.

    Args:
        texts: training texts of the merges.
        num_codes, max_grids, num_concept_ids: numbers of image codes, size tokens and identifier tokens.
        vocab_size: largest size of the whole vocabulary; at least the special tokens and 256 bytes.
    """
    specials = [BOS, PAD, EOS, UNK, *(code_name(code) for code in range(num_codes))]
    specials += [END_OF_IMAGE, BEGIN_OF_IMAGE, SEPARATOR, NEWLINE]
    specials += [reserved_name(SIZE_BASE + 1 + n) for n in range(max_grids)]
    specials += [reserved_name(CONCEPT_BASE + n) for n in range(num_concept_ids)]
    return train_tokenizer(texts, specials=specials, vocab_size=vocab_size)


def chameleon_names(*, last_reserved: int = 16379) -> list[str]:
    """Return the names of the special tokens of Chameleon 7B in the order of their ids, from 0.

    Args:
        last_reserved: number of the last reserved name; lower it for a small vocabulary.
    """
    names = [BOS, PAD, EOS, UNK, *(code_name(code) for code in range(8192)), END_OF_IMAGE, BEGIN_OF_IMAGE]
    # Not used here, but they count in the ids.
    names += [f"<sentinel:{n}>" for n in range(512)]
    return names + [reserved_name(number) for number in range(8706, last_reserved + 1)]


def train_tokenizer(texts: Iterable[str], *, specials: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE on `texts` with Chameleon's pre-tokenizer; the first ids are `specials`.

    Raises:
        ValueError: `vocab_size` is too small.
    """
    if vocab_size < len(specials) + 256:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {len(specials)} special tokens and 256 bytes "
            f"need at least {len(specials) + 256}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # Whitespace is split off first and digits are single tokens, as in Chameleon's tokenizer.json.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\t\n]|    |  "), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        # All 256 bytes, so that any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _numbered(vocabulary: dict[str, int], start: int, stop: int) -> tuple[int, ...]:
    ids = []
    for number in range(start, stop):
        if reserved_name(number) not in vocabulary:
            break  # a small vocabulary ends here
        ids.append(vocabulary[reserved_name(number)])
    return tuple(ids)
